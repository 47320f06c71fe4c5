"""Giving a server a release that answers nobody yet, and giving up a server or a release that is not needed.

What it guarantees: a server computes nothing while it changes; where it is the only one, requests wait at the
door until it holds the new release or, when that cannot be had, the old one again.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from autoglm.errors import AutoGLMError, OverloadedError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway.loading import Loader
from autoglm.service.gateway.pool import Pool
from autoglm.service.gateway.release import Checkpoints, ServedRelease
from autoglm.service.gateway.server import Server
from autoglm.service.gateway.staged import StagedRelease
from autoglm.service.gateway.traffic import Traffic

_RETRY_S = 60

_log = logging.getLogger(__name__)


class StagingArea:
    """Where a release is from its loading until it is swapped in or discarded.

    Args:
        pool: the servers.
        settings: of the backend.
        checkpoints: from which servers load.
        loader: brings releases into servers.
        traffic: under whose lock a server's fields change.
        changing: held by whoever gives a server another release.
    """

    def __init__(
        self,
        pool: Pool,
        settings: BackendSettings,
        checkpoints: Checkpoints,
        loader: Loader,
        traffic: Traffic,
        changing: threading.RLock,
    ) -> None:
        self._pool, self._settings, self._checkpoints = pool, settings, checkpoints
        self._loader, self._traffic, self._changing = loader, traffic, changing

    def stage(self, directory: Path) -> StagedRelease:
        """Give a release to the server that answers nobody, or, where there is one only, to that.

        Raises:
            TrustError: a file differs from the manifest.
            FormatError: a file does not parse.
            OverloadedError: not now: answers did not end in time, or the server is down.
            EngineError: it cannot be loaded; the release before it answers.
        """
        release = self._checkpoints.publish(directory)
        with self._changing:
            server = self._pool.candidate
            if server.is_changing:
                raise OverloadedError("another release is just being staged", retry_after_s=_RETRY_S)
            if server.process is None and not server.admin.is_healthy():
                raise OverloadedError(f"{server} is down: the update waits", retry_after_s=_RETRY_S)
            return self._stage_in(server, release)

    def discard(self, staged: StagedRelease) -> None:
        """Forget a staged release; where it took the only server, give that the one before again.

        Raises:
            EngineError: the server cannot be given it now; that is tried again until it succeeds.
        """
        if staged.is_over:
            return
        staged.is_over = True
        staged.server.known_sums.pop(staged.release.label, None)
        if staged.instead_of is not None:
            self._restore(staged.server, staged.instead_of)
        else:
            self._traffic.change(lambda: setattr(staged.server, "is_changing", False))
            self.retire(staged.server)

    def retire(self, server: Server) -> None:
        """End a server that is not needed any more, once its last answers are given."""
        self._traffic.drain(server, self._settings.drain_seconds)
        with self._changing:
            if not self._pool.needs(server) and server.process is not None:
                self._traffic.change(lambda: _free(server))
                server.process.stop()
            self.keep_wanted()

    def keep_wanted(self) -> None:
        """Remove the checkpoints that no server should hold."""
        self._checkpoints.keep_only(*self._pool.wanted)

    def _stage_in(self, server: Server, release: ServedRelease) -> StagedRelease:
        """Drain a server and give it a release; where it is the active one, the door stays shut."""
        is_active, old = server is self._pool.active, server.release
        if is_active and old is None:
            raise OverloadedError(
                f"it is not certain what {server} holds: the update waits", retry_after_s=_RETRY_S
            )
        places = self._loader.compare(old, release)
        self._traffic.change(lambda: self._reserve(server))
        if is_active:
            self._traffic.shut()
        try:
            if not self._traffic.drain(server, self._settings.drain_seconds):
                message = f"answers took longer than {self._settings.drain_seconds:g} s to end"
                raise OverloadedError(message, retry_after_s=_RETRY_S)
        except BaseException:
            self._traffic.change(lambda: setattr(server, "is_changing", False))
            self._traffic.open()
            raise
        # Counted from here: until now, requests were answered.
        staged = StagedRelease(release.version, release, server, old if is_active else None, time.monotonic())
        try:
            self._loader.bring(server, release, places)
        except BaseException:
            self._give_up(staged)
            raise
        return staged

    def _reserve(self, server: Server) -> None:
        server.is_changing = True
        if server is self._pool.previous:
            self._pool.previous = None  # what it holds is given up for the new release

    def _give_up(self, staged: StagedRelease) -> None:
        try:
            self.discard(staged)
        except AutoGLMError as error:
            _log.error("%s: %s", staged.server, error)

    def _restore(self, server: Server, old: ServedRelease) -> None:
        try:
            with self._changing:
                self._loader.bring(server, old, afresh=True)
            _log.warning("%s answers again with %s", server, old.version)
        finally:
            self._traffic.change(lambda: setattr(server, "is_changing", False))
            self._traffic.open()
            server.wake.set()


def _free(server: Server) -> None:
    server.release = server.wanted = None
