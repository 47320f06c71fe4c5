"""Reading beside the live model: rest after each piece of work while requests run."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST_REST_S = 0.25


class Pace:
    """Called between two pieces of work, rests for as long as the last one took; not when nobody is served.

    Args:
        is_busy: whether requests run.
        clock, sleep: of this machine.
    """

    def __init__(
        self,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._is_busy, self._clock, self._sleep = is_busy, clock, sleep
        self._since = clock()

    def __call__(self) -> None:
        """Rest, if there is reason to."""
        if self._is_busy():
            self._sleep(min(_LONGEST_REST_S, self._clock() - self._since))
        self._since = self._clock()
