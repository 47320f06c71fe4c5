"""Time as the device sees it, in one place, so that a test can hold it still."""

from __future__ import annotations

import time
from datetime import datetime


class Clock:
    """The machine's clocks; a test passes its own subclass."""

    def monotonic(self) -> float:
        """Return seconds of uptime; only differences mean something."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the local date and time, with its zone."""
        return datetime.now().astimezone()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
