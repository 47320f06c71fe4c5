"""Who is let through to which server, and who waits.

What it guarantees: choosing a server and counting the request in are one act, so a server that was found
drained gets nothing any more; a request waits no longer than its limit and no more wait than allowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from autoglm.errors import OverloadedError
from autoglm.service.gateway.release import ServedRelease
from autoglm.service.gateway.server import Server

_RETRY_S = 5


class Traffic:
    """The door of the gateway.

    Args:
        limit: how many requests may wait in front of it.
        wait_s: how long each of them may.
    """

    def __init__(self, limit: int, wait_s: float) -> None:
        self._limit, self._wait_s = limit, wait_s
        self._changed = threading.Condition()
        self._is_shut = self._is_closed = False
        self._num_in_threads = 0
        self._turns: list[Future[None]] = []

    @property
    def num_waiting(self) -> int:
        """How many wait in front of it."""
        return self._num_in_threads + sum(not turn.done() for turn in self._turns)

    def turn(self, pick: Callable[[], Server]) -> Future[None] | None:
        """Return None when :meth:`enter` would not wait; else a future, done when that may have changed.

        It counts as a request that waits until then, or until it is cancelled.

        Raises:
            OverloadedError: the server is down, too many wait, or the gateway closes.
        """
        with self._changed:
            if self._admitted(pick) is not None:
                return None
            self._require_place()
            turn: Future[None] = Future()
            self._turns.append(turn)
            return turn

    def enter(self, pick: Callable[[], Server]) -> tuple[Server, ServedRelease]:
        """Count a request in with the server that ``pick`` chooses, once that one may answer.

        Returns:
            The server, and the release that it holds.

        Raises:
            OverloadedError: it is down, too many wait, the wait was too long, or the gateway closes.
            RequestError: as ``pick`` does.
        """
        with self._changed:
            server, release = self._admitted(pick) or self._wait_for(pick)
            server.in_flight += 1
            return server, release

    def leave(self, server: Server) -> None:
        """Count a request out."""
        with self._changed:
            server.in_flight -= 1
            self._changed.notify_all()  # for those who drain; nobody comes in by this

    def shut(self) -> None:
        """Let nobody in."""
        with self._changed:
            self._is_shut = True

    def open(self) -> None:
        """Let everybody in."""
        with self._changed:
            self._is_shut = False
            self._let_look()

    def change(self, act: Callable[[], object]) -> None:
        """Do something to servers between two requests, and let those who wait look again."""
        with self._changed:
            act()
            self._let_look()

    def drain(self, server: Server, seconds: float) -> bool:
        """Wait until the server computes nothing for this gateway; return whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: server.in_flight == 0, seconds)

    def close(self) -> None:
        """Send everybody away for good."""
        with self._changed:
            self._is_closed = True
            self._let_look()

    def _admitted(self, pick: Callable[[], Server]) -> tuple[Server, ServedRelease] | None:
        if self._is_closed:
            raise OverloadedError("the service is shutting down", retry_after_s=_RETRY_S)
        if self._is_shut:
            return None
        server = pick()
        if not server.is_up:
            raise OverloadedError("the vLLM server is down: try again later", retry_after_s=_RETRY_S)
        return None if server.release is None else (server, server.release)

    def _wait_for(self, pick: Callable[[], Server]) -> tuple[Server, ServedRelease]:
        self._require_place()
        deadline = time.monotonic() + self._wait_s
        self._num_in_threads += 1
        try:
            while (admitted := self._admitted(pick)) is None:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    raise OverloadedError(
                        f"the model was not there for {self._wait_s:g} s: try again later",
                        retry_after_s=_RETRY_S,
                    )
            return admitted
        finally:
            self._num_in_threads -= 1

    def _require_place(self) -> None:
        self._turns = [turn for turn in self._turns if not turn.done()]
        if self.num_waiting >= self._limit:
            raise OverloadedError(
                f"{self._limit} requests wait already: try again later", retry_after_s=_RETRY_S
            )

    def _let_look(self) -> None:
        """Wake all who wait, in threads or with a turn; they see for themselves."""
        self._changed.notify_all()
        turns, self._turns = self._turns, []
        for turn in turns:
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
