"""Giving a server another release, and being sure that it holds it.

Two ways. *Restart*: the process ends and starts with the other directory, so it holds what it was started
with. *Reload*: the weights are replaced in the running server, with nothing under way::

    label "changing" -> pause -> reload_weights -> caches -> checksums -> label -> resume

The label "changing" outlives a crash of the gateway: whoever comes next sees that nothing is certain.
Whatever fails leaves the server without a certain release; the caller gives it the one before again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from autoglm.errors import BackendError, ConfigError, EngineError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway import weights
from autoglm.service.gateway.release import Checkpoints, ServedRelease
from autoglm.service.gateway.server import Server
from autoglm.service.gateway.traffic import Traffic

CHANGING = "changing"
_LOOK_S = 0.25

_log = logging.getLogger(__name__)


class Loader:
    """Brings releases into servers.

    Args:
        settings: of the backend.
        checkpoints: from which servers load.
        traffic: under whose lock a server's fields change.
        sleep: passes this many seconds; returns whether to give up.
    """

    def __init__(
        self,
        settings: BackendSettings,
        checkpoints: Checkpoints,
        traffic: Traffic,
        sleep: Callable[[float], bool],
    ) -> None:
        self._settings, self._checkpoints, self._traffic = settings, checkpoints, traffic
        self._sleep = sleep

    def compare(self, old: ServedRelease | None, new: ServedRelease) -> dict[weights.Place, bool]:
        """Find out, while the old release still answers, what a reload must change.

        Raises:
            EngineError: the new one cannot be loaded in the old one's place.
        """
        if not self._settings.reloads or old is None:
            return {}
        changed = sorted(old.fixed_files.items() ^ new.fixed_files.items())
        if changed:
            raise EngineError(
                f"{new.version} changes {changed[0][0]}, which vLLM reads only at its start: set "
                "backend.update to restart, or start the server again with the new release"
            )
        return weights.changed_places(old.directory, new.directory)

    def bring(
        self,
        server: Server,
        release: ServedRelease,
        places: dict[weights.Place, bool] | None = None,
        *,
        afresh: bool = False,
    ) -> None:
        """Give a server a release; it computes nothing while that happens.

        Args:
            server: drained, and marked as changing.
            release: what it gets.
            places: from :meth:`compare` with what it holds now.
            afresh: start it again where that can be done: something went wrong in it.

        Raises:
            EngineError: the release cannot be loaded, or not all of it was.
            BackendError: the server was not reached, or broke off.
        """
        before = server.release
        self._traffic.change(lambda: _forget(server, release))
        can_reload = server.process is None or (
            server.process.is_running and self._settings.reloads and not afresh
        )
        if not can_reload:
            self._restart(server, release)
        else:
            self._reload(server, before, release, places or {})
        self._traffic.change(lambda: _hold(server, release))

    def wait_healthy(self, server: Server) -> None:
        """Wait until a server answers.

        Raises:
            EngineError: its process ended.
            BackendError: it did not in ``backend.start_seconds``.
        """
        deadline = time.monotonic() + self._settings.start_seconds
        while not server.admin.is_healthy():
            if server.process is not None and not server.process.is_running:
                raise EngineError(f"{server} ended while it started: {server.process.last_words()}")
            if time.monotonic() > deadline or self._sleep(_LOOK_S):
                raise BackendError(f"{server} did not answer within {self._settings.start_seconds:g} s")

    def holds(self, server: Server, release: ServedRelease) -> bool:
        """Tell whether a server that answers is certain to hold a release.

        Raises:
            BackendError: it was not reached.
        """
        return server.admin.label() == release.label

    def require_held(self, server: Server, release: ServedRelease) -> None:
        """See that a server that was not looked at since its self-test is still as it was.

        Raises:
            EngineError: it is not, or is not reached.
        """
        is_ours = server.process is None or server.process.is_running
        if not (is_ours and server.admin.is_healthy()):
            raise EngineError(f"{server} broke down before {release.version} was swapped in")
        if self._settings.reloads and not self.holds(server, release):
            raise EngineError(f"{server} lost {release.version} before it was swapped in")

    def meet(self, servers: Sequence[Server], release: ServedRelease) -> Server:
        """Wait for servers that are run elsewhere; return the one to be active.

        That is the one that holds the release already, else the first.

        Raises:
            BackendError: the one to be active was not reached in time.
            ConfigError: one cannot be given other weights.
        """
        for server in servers[1:]:
            if server.admin.is_healthy():
                server.admin.require_routes()
                if self.holds(server, release):
                    return server
        self.wait_healthy(servers[0])
        servers[0].admin.require_routes()
        return servers[0]

    def take_over(self, server: Server, release: ServedRelease) -> None:
        """Note that a server that was there before holds a release.

        Raises:
            BackendError: it was not reached.
        """
        self._note_sums(server, release)
        self._traffic.change(lambda: _forget(server, release))
        self._traffic.change(lambda: _hold(server, release))

    def require_name(self, server: Server, name: str) -> None:
        """See that a server serves its model under the name that is asked for.

        Raises:
            ConfigError: it does not.
            BackendError: it was not reached, or refuses the key.
        """
        names = server.admin.served_names()
        if name not in names:
            raise ConfigError(
                f"{server} serves {', '.join(names) or 'nothing'}, not {name}: start it with "
                f"--served-model-name {name}"
            )

    def _restart(self, server: Server, release: ServedRelease) -> None:
        assert server.process is not None
        server.process.start(self._checkpoints.path_there(release))
        self.wait_healthy(server)
        if self._settings.reloads:
            server.admin.require_routes()
            server.admin.set_label(release.label)
            self._note_sums(server, release)

    def _reload(
        self,
        server: Server,
        before: ServedRelease | None,
        release: ServedRelease,
        places: dict[weights.Place, bool],
    ) -> None:
        admin, settings = server.admin, self._settings
        self.wait_healthy(server)
        started = time.monotonic()
        admin.set_label(CHANGING)
        admin.pause(settings.drain_seconds)
        try:
            admin.reload(self._checkpoints.path_there(release), settings.load_seconds)
            admin.forget_caches()
            sums = admin.checksums(settings.load_seconds)
            if sums is None:  # this version computes them only while it is not paused
                admin.resume()
                sums = admin.checksums(settings.load_seconds) or {}
            self._judge(server, before, release, places, sums)
            admin.set_label(release.label)
        except BaseException:
            with contextlib.suppress(BackendError):
                admin.resume()
            raise
        admin.resume()
        _log.info("%s reloaded %s in %.1f s", server, release.version, time.monotonic() - started)

    def _judge(
        self,
        server: Server,
        before: ServedRelease | None,
        release: ServedRelease,
        places: dict[weights.Place, bool],
        sums: dict[str, str],
    ) -> None:
        known = server.known_sums.get(release.label)
        if known is not None and known != sums:
            raise EngineError(f"{server} does not hold the weights of {release.version} as it did before")
        old = None if before is None else server.known_sums.get(before.label)
        if known is None and old is not None and places:
            if wrong := weights.faults(places, old, sums):
                raise EngineError(f"{server} did not load all of {release.version}: {'; '.join(wrong)}")
            _log.info("%d of %d parameters checked", weights.num_placed(places, sums), len(sums))
        server.known_sums[release.label] = sums

    def _note_sums(self, server: Server, release: ServedRelease) -> None:
        sums = server.admin.checksums(self._settings.load_seconds)
        if sums is not None:
            server.known_sums[release.label] = sums


def _forget(server: Server, wanted: ServedRelease) -> None:
    server.release, server.wanted = None, wanted


def _hold(server: Server, release: ServedRelease) -> None:
    server.release, server.is_up = release, True
