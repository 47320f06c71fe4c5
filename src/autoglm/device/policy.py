"""The rules by which scheduled updates hold back: a pure function of settings, surroundings and traffic.

What it guarantees: a rule that needs something that is not known waits, or lets pass where the settings say
so, and says which it was.
"""

from __future__ import annotations

from datetime import datetime

from autoglm.device.environment import Reading
from autoglm.device.settings import UpdateSettings, parse_window


def reason_to_wait(
    settings: UpdateSettings, reading: Reading, now: datetime, *, metered_bytes: int = 0
) -> str | None:
    """Return why a scheduled update must wait, or None when it may run.

    Args:
        reading: the surroundings.
        now: local time, where the reading has none.
        metered_bytes: what went over metered networks today.
    """
    local = reading.local_time or now
    if any(_is_within(local, window) for window in settings.quiet_hours):
        return "quiet hours"
    for reason in (
        _network(settings, reading),
        _power(settings, reading),
        _storage(settings, reading),
        _traffic(settings, reading, metered_bytes),
    ):
        if reason is not None:
            return reason
    return None


def counts_as_metered(settings: UpdateSettings, reading: Reading) -> bool:
    """Tell whether traffic now is counted against the day's allowance."""
    metered = reading.is_metered
    return settings.when_unknown == "wait" if metered is None else metered


def _unknown(settings: UpdateSettings, what: str) -> str | None:
    return f"{what} is not known" if settings.when_unknown == "wait" else None


def _network(settings: UpdateSettings, reading: Reading) -> str | None:
    if not settings.wifi_only:
        return None
    if reading.net is None:
        return _unknown(settings, "the network")
    return None if reading.net in ("wifi", "ethernet") else "waiting for Wi-Fi"


def _power(settings: UpdateSettings, reading: Reading) -> str | None:
    if settings.charging_only and reading.charging is None:
        return _unknown(settings, "whether it charges")
    if settings.charging_only and not reading.charging:
        return "waiting for the charger"
    if not settings.min_battery or reading.charging:
        return None
    if reading.battery is None:
        return _unknown(settings, "the battery")
    if reading.battery < settings.min_battery:
        return f"waiting for {settings.min_battery} % battery"
    return None


def _storage(settings: UpdateSettings, reading: Reading) -> str | None:
    if not settings.keep_free_bytes:
        return None
    if reading.free_bytes is None:
        return _unknown(settings, "the free storage")
    if reading.free_bytes < settings.keep_free_bytes:
        return f"waiting for {settings.keep_free_bytes} bytes of free storage"
    return None


def _traffic(settings: UpdateSettings, reading: Reading, metered_bytes: int) -> str | None:
    allowance = settings.metered_bytes_per_day
    if allowance is None or metered_bytes < allowance or not counts_as_metered(settings, reading):
        return None
    return f"{allowance} bytes went over metered networks today: waiting for another network or day"


def _is_within(local: datetime, window: str) -> bool:
    """Tell whether the time of day lies in the window, its end excluded; it may pass midnight."""
    start, end = parse_window(window)
    minute = local.hour * 60 + local.minute
    return start <= minute < end if start <= end else minute >= start or minute < end
