"""How a device updates itself: the numbers an app may choose, and the rules for when to hold back.

>>> parse_every("6h")
21600.0
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from autoglm.errors import ConfigError
from autoglm.files import CHUNK_BYTES
from autoglm.releases import DeviceEnvironment

MAX_TRIAL_ANSWERS = 10_000
MAX_TRIAL_MINUTES = 7 * 24 * 60
MAX_TRIES = 100

_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Conditions = Callable[[], DeviceEnvironment]
"""Asked for the device's state (network, charging, battery) before and during each scheduled update."""

Gate = Callable[[], str | None]
"""Asked between two steps whether to go on: None, or the reason to stop here for now."""

Progress = Callable[[str, int, int], None]
"""Told ``download`` or ``apply``, the bytes done and the bytes in all."""


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
        quiet_hours: local hours (from, to), the end excluded, in which no scheduled update runs.
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
    quiet_hours: tuple[int, int] | None = None

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
        for hour in self.quiet_hours or ():
            _in_range("quiet_hours", hour, 0, 24)

    @property
    def needs_conditions(self) -> bool:
        """Whether a rule asks for what only the app can know."""
        return self.wifi_only or self.charging_only or self.min_battery > 0


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must lie between {low:g} and {high:g}")


def reason_to_wait(settings: UpdateSettings, env: DeviceEnvironment, now: datetime) -> str | None:
    """Return why a scheduled update must wait, or None when it may run. What is not known counts as bad."""
    if settings.wifi_only and env.net not in ("wifi", "ethernet"):
        return "waiting for Wi-Fi"
    if settings.charging_only and not env.charging:
        return "waiting for the charger"
    if settings.min_battery and not env.charging and (env.battery or 0) < settings.min_battery:
        return f"waiting for {settings.min_battery} % battery"
    if settings.quiet_hours is not None and _within(now.hour, *settings.quiet_hours):
        return "quiet hours"
    return None


def _within(hour: int, start: int, end: int) -> bool:
    """Tell whether ``hour`` lies from ``start`` to before ``end``, over midnight where start > end."""
    return start <= hour < end if start <= end else hour >= start or hour < end
