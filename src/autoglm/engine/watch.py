"""A step that does not return: noticed, given up, and gone on without.

A thread cannot be ended from outside, so the one that hangs is left behind, with the cache that it may still
write to; another one takes over. What was under way ends with an error; what waits is computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOKS_A_LIMIT = 8


class StepTimer:
    """When the present step's computing began; decides, for two threads, who has the last word on it.

    Args:
        clock: monotonic seconds.

    Attributes:
        is_given_up: whether the step was given up; its thread must touch nothing any more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_given_up = False
        self._clock, self._lock = clock, threading.Lock()
        self._since: float | None = None

    def begin(self) -> None:
        """Note that the model begins to compute."""
        with self._lock:
            self._since = self._clock()

    def end(self) -> bool:
        """Note that it has ended; return False when the step was given up meanwhile."""
        with self._lock:
            self._since = None
            return not self.is_given_up

    def give_up_after(self, seconds: float) -> bool:
        """Give the step up when it has computed for longer; return whether that is so."""
        with self._lock:
            late = self._since is not None and self._clock() - self._since > seconds
            self.is_given_up = self.is_given_up or late
            return late


class Watch:
    """Looks a few times in each ``limit_s`` whether a step takes longer, on a thread of its own.

    Args:
        limit_s: seconds that a step may take.
        look: called with it; gives the step up and goes on without, if it is late.
    """

    def __init__(self, limit_s: float, look: Callable[[float], None]) -> None:
        self._limit_s, self._look = limit_s, look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autoglm-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._limit_s / _LOOKS_A_LIMIT):
            self._look(self._limit_s)
