"""Telling an app how far an update is, often enough to draw and no more, and never at the update's expense.

The phases in their order: ``check``, ``download`` (bytes), ``apply`` (bytes), ``load``, ``self_test``,
``swap``. Those without bytes are told once, with 0 of 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from autoglm.device.settings import Progress

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.25


class Throttle:
    """Passes progress on at most every :data:`INTERVAL_SECONDS`, but each new phase and each end at once.

    Args:
        listener: the app's; what it raises is logged and not passed on.
        monotonic: seconds.
    """

    def __init__(self, listener: Progress, monotonic: Callable[[], float]) -> None:
        self._listener, self._monotonic = listener, monotonic
        self._phase = ""
        self._told_at = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take in how far a phase is."""
        now = self._monotonic()
        due = phase != self._phase or done >= total or now - self._told_at >= INTERVAL_SECONDS
        if due:
            self._phase, self._told_at = phase, now
            self._tell(phase, done, total)

    def _tell(self, phase: str, done: int, total: int) -> None:
        try:
            self._listener(phase, done, total)
        except Exception:  # noqa: BLE001 - the app's own code: an update does not fail for a progress bar
            _log.exception("the app's progress callback broke")
