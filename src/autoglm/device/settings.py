"""How a device updates itself: the numbers an app may choose, and the rules for when to hold back.

>>> parse_every("6h")
21600.0
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from autoglm.errors import ConfigError
from autoglm.files import CHUNK_BYTES

MAX_TRIAL_ANSWERS = 10_000
MAX_TRIAL_MINUTES = 7 * 24 * 60
MAX_TRIES = 100

_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_WINDOW = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Gate = Callable[[], str | None]
"""Asked between two steps whether to go on: None, or the reason to stop here for now."""

Progress = Callable[[str, int, int], None]
"""Told the phase (see :mod:`autoglm.device.progress`), the bytes done and the bytes in all."""


def parse_every(text: str | float) -> float:
    """Return an interval such as ``30s``, ``10m``, ``6h`` or ``1d`` in seconds; a number is seconds.

    Raises:
        ConfigError: it is no such interval, or shorter than a tenth of a second.
    """
    if isinstance(text, str):
        match = _EVERY.fullmatch(text.strip())
        seconds = float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0.0
    else:
        seconds = float(text)
    if not 0.1 <= seconds <= 366 * 86400:
        raise ConfigError(f"every: {text!r} is no interval; write for example '30s', '10m' or '6h'")
    return seconds


@dataclass(frozen=True)
class UpdateSettings:
    """How a device updates itself.

    Attributes:
        every: time between two scheduled checks, such as ``6h``.
        trial_answers: good live answers that confirm a new release ...
        trial_minutes: ... once it has also run this long.
        trial_failures: failed live answers that send it back.
        tries: starts that an unconfirmed release gets, the hot swap included, before the previous one loads.
        chunk_bytes: what is written, synced and journalled at a time while downloading.
        retries: broken-off downloads in a row, without a byte won, before the update waits for its next turn.
        slowest_bytes_per_s: a download slower than this for a minute is broken off (and resumed later).
        wifi_only: scheduled updates only over Wi-Fi or a cable.
        charging_only: scheduled updates only while charging.
        min_battery: per cent below which scheduled updates wait, unless charging.
        keep_free_bytes: storage that an update leaves free.
        quiet_hours: windows of local time, such as ``22:30-07:00``, in which no scheduled update runs.
        metered_bytes_per_day: what may go over metered networks in a day; None for any amount.
        when_unknown: ``wait`` or ``go`` where a rule needs what the device does not know.
        swap_mode: ``side_by_side``, ``exclusive``, or ``auto``: by the memory that is free.
        scrub_every: time in which all files of the installed releases are read and checked once; None never.
    """

    every: str = "6h"
    trial_answers: int = 5
    trial_minutes: float = 10.0
    trial_failures: int = 1
    tries: int = 3
    chunk_bytes: int = CHUNK_BYTES
    retries: int = 5
    slowest_bytes_per_s: float = 64.0
    wifi_only: bool = False
    charging_only: bool = False
    min_battery: int = 0
    keep_free_bytes: int = 0
    quiet_hours: tuple[str, ...] = ()
    metered_bytes_per_day: int | None = None
    when_unknown: str = "wait"
    swap_mode: str = "auto"
    scrub_every: str | None = "7d"

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            ConfigError: names the setting.
        """
        parse_every(self.every)
        _in_range("trial_answers", self.trial_answers, 0, MAX_TRIAL_ANSWERS)
        _in_range("trial_minutes", self.trial_minutes, 0, MAX_TRIAL_MINUTES)
        _in_range("trial_failures", self.trial_failures, 1, 1000)
        _in_range("tries", self.tries, 1, MAX_TRIES)
        _in_range("chunk_bytes", self.chunk_bytes, 1024, 1 << 28)
        _in_range("retries", self.retries, 0, 1000)
        _in_range("slowest_bytes_per_s", self.slowest_bytes_per_s, 0, 1e9)
        _in_range("min_battery", self.min_battery, 0, 100)
        _in_range("keep_free_bytes", self.keep_free_bytes, 0, 1 << 62)
        _in_range("metered_bytes_per_day", self.metered_bytes_per_day or 0, 0, 1 << 62)
        _one_of("when_unknown", self.when_unknown, ("wait", "go"))
        _one_of("swap_mode", self.swap_mode, ("auto", "side_by_side", "exclusive"))
        for window in self.quiet_hours:
            parse_window(window)
        if self.scrub_every is not None:
            parse_every(self.scrub_every)

    @property
    def needs_environment(self) -> bool:
        """Whether a rule asks for what only the device's system can know."""
        rules = (self.wifi_only, self.charging_only, self.min_battery, self.keep_free_bytes)
        return any(rules) or self.metered_bytes_per_day is not None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must lie between {low:g} and {high:g}")


def parse_window(text: str) -> tuple[int, int]:
    """Return a time window such as ``22:30-07:00`` as minutes of the day; the end may be ``24:00``.

    Raises:
        ConfigError: it is no such window.
    """
    match = _WINDOW.fullmatch(text)
    if match is not None:
        hours, minutes = (int(match[1]), int(match[3])), (int(match[2]), int(match[4]))
        start, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
        if max(minutes) < 60 and start < _DAY_MINUTES and end <= _DAY_MINUTES and start != end:
            return start, end
    raise ConfigError(f"quiet_hours: {text!r} is no window; write for example '22:30-07:00'")
