"""The options of ``autoglm device run`` that say when it may update, and how."""

from __future__ import annotations

from typing import Annotated, Any

import typer

WifiOption = Annotated[bool, typer.Option("--wifi-only", help="Update only over Wi-Fi or a cable.")]
ChargingOption = Annotated[bool, typer.Option("--charging-only", help="Update only while charging.")]
BatteryOption = Annotated[
    int | None, typer.Option("--min-battery", help="Per cent below which it waits, unless charging.")
]
FreeOption = Annotated[int | None, typer.Option("--keep-free", help="Bytes of storage to leave free.")]
HoursOption = Annotated[
    list[str] | None,
    typer.Option("--quiet-hours", metavar="HH:MM-HH:MM", help="Local time without updates (repeatable)."),
]
MeteredOption = Annotated[
    int | None, typer.Option("--metered-per-day", help="Bytes a day over metered networks.")
]
UnknownOption = Annotated[
    str | None,
    typer.Option("--when-unknown", help="What to do where a rule needs what is not known: wait or go."),
]
SwapOption = Annotated[
    str | None, typer.Option("--swap-mode", help="How to swap models: auto, side_by_side or exclusive.")
]


def rules(
    wifi_only: bool,
    charging_only: bool,
    min_battery: int | None,
    keep_free: int | None,
    quiet_hours: list[str] | None,
    metered_per_day: int | None,
    when_unknown: str | None,
    swap_mode: str | None,
) -> dict[str, Any]:
    """Return the settings that the options stand for; None is one that was not given."""
    return {
        "wifi_only": wifi_only or None,
        "charging_only": charging_only or None,
        "min_battery": min_battery,
        "keep_free_bytes": keep_free,
        "quiet_hours": tuple(quiet_hours) if quiet_hours else None,
        "metered_bytes_per_day": metered_per_day,
        "when_unknown": when_unknown,
        "swap_mode": swap_mode,
    }
