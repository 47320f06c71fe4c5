"""Looks at one server again and again, and sees that it holds what it should.

One look that fails makes what the server holds uncertain, so no request is sent until that is found out; only
several in a row make it count as down, and several good ones as up again. A server that comes back with other
weights than it had (it was started again) is given the right ones before it answers anybody. A process that
ended is started again, after a pause that doubles from one second to a minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from autoglm.errors import AutoGLMError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway.loading import Loader
from autoglm.service.gateway.server import Server
from autoglm.service.gateway.traffic import Traffic

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


class Hysteresis:
    """Turns looks into up or down.

    >>> state = Hysteresis(failures=2, successes=2)
    >>> [state.look(ok) for ok in (False, True, False, False, True, True)]
    [True, True, True, False, False, True]
    """

    def __init__(self, failures: int, successes: int) -> None:
        self._needed = {False: failures, True: successes}
        self._is_up, self._num_against = True, 0

    def look(self, ok: bool, *, is_up: bool | None = None) -> bool:
        """Count a look; return whether the server counts as up.

        Args:
            ok: what was seen.
            is_up: what somebody else has found out since the last look.
        """
        if is_up is not None and is_up != self._is_up:
            self._is_up, self._num_against = is_up, 0
        self._num_against = 0 if ok == self._is_up else self._num_against + 1
        if self._num_against >= self._needed[ok]:
            self._is_up, self._num_against = ok, 0
        return self._is_up


class Watch:
    """Watches a server from a thread of its own.

    Args:
        changing: held by whoever gives a server another release.
        stopped: set when the gateway ends.
    """

    def __init__(
        self,
        server: Server,
        settings: BackendSettings,
        loader: Loader,
        traffic: Traffic,
        changing: threading.RLock,
        stopped: Callable[[float], bool],
    ) -> None:
        self._server, self._settings, self._loader, self._traffic = server, settings, loader, traffic
        self._changing, self._stopped = changing, stopped
        self._state = Hysteresis(settings.failures, settings.successes)
        self._pause_s = FIRST_PAUSE_S

    def run(self) -> None:
        """Look until the gateway ends."""
        while not self._stopped(0.0):
            self._server.wake.wait(self._settings.health_seconds)
            self._server.wake.clear()
            if self._stopped(0.0):
                return
            try:
                self.look()
            except Exception:  # noqa: BLE001 - logged; the watch must go on, whatever a server answers
                _log.exception("looking at %s", self._server)

    def look(self) -> None:
        """Look once, and do what is due."""
        server = self._server
        if server.wanted is None or server.is_changing:
            return
        is_there = server.process is None or server.process.is_running
        ok = is_there and server.admin.is_healthy()
        was_up = server.is_up
        is_up = self._state.look(ok, is_up=was_up)
        self._traffic.change(lambda: self._note(ok, is_up))
        if was_up != is_up:
            _log.log(logging.INFO if is_up else logging.ERROR, "%s is %s", server, "up" if is_up else "down")
        if is_there and not ok and not is_up and server.process is not None:
            _log.error("%s does not answer any more: ending it", server)
            server.process.stop()  # the next look starts it again
        elif not is_there or (ok and server.release is None):
            self._repair()

    def _note(self, ok: bool, is_up: bool) -> None:
        server = self._server
        if server.is_changing:
            return
        server.is_up = is_up
        if not ok or (server.process is None and not self._is_certain()):
            server.release = None

    def _is_certain(self) -> bool:
        """Whether a server that is run elsewhere still says that it holds what it should."""
        try:
            return self._server.wanted is not None and self._loader.holds(self._server, self._server.wanted)
        except AutoGLMError:
            return False

    def _repair(self) -> None:
        """Find out that it holds what it should, or give it that."""
        server = self._server
        with self._changing:
            if server.is_changing or (wanted := server.wanted) is None:
                return
            try:
                if self._is_as_it_was():
                    self._traffic.change(lambda: setattr(server, "release", wanted))
                    self._pause_s = FIRST_PAUSE_S
                    return
                _log.warning("%s does not hold %s any more: giving it that again", server, wanted.version)
                server.known_sums.clear()
                self._loader.bring(server, wanted)
                return
            except AutoGLMError as error:
                _log.error("%s cannot be given %s: %s", server, wanted.version, error)
        self._stopped(self._pause_s)
        self._pause_s = min(LAST_PAUSE_S, 2 * self._pause_s)

    def _is_as_it_was(self) -> bool:
        process = self._server.process
        return self._is_certain() if process is None else process.is_running
