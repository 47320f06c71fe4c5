"""Time as the device sees it, in one place, so that a test can hold it still."""

from __future__ import annotations

import time
from datetime import datetime

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock:
    """The machine's clocks; a test passes its own subclass."""

    def monotonic(self) -> float:
        """Return seconds of uptime, sleep included where the system counts it; differences mean something.

        A phone sleeps most of the day: by a clock that stands still in the meantime, "every six hours" would
        be days.
        """
        return time.clock_gettime(_CLOCK) if _CLOCK is not None else time.monotonic()

    def now(self) -> datetime:
        """Return the local date and time, with its zone."""
        return datetime.now().astimezone()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
