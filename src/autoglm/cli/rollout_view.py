"""Roll-outs for people: the table of all of them, one in full, and what one would do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autoglm.cli.output import as_bytes, as_time, make_console, make_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

WATCH_EVERY_S = 2.0
_OVER = ("halted", "aborted", "done")
_COLUMNS = (
    "id",
    "version",
    "state",
    "stage",
    "soak left",
    "to",
    "offered",
    "ok",
    "failed",
    "crash loops",
    "unreported",
    "fails at least",
    "allowed",
    "why",
)


def list_rollouts(rollouts: list[dict[str, Any]]) -> None:
    """Print all roll-outs."""
    print_table(
        _COLUMNS,
        [_row(each) for each in rollouts],
        empty="there is no roll-out yet; make one with: autoglm rollout create VERSION",
    )


def table_of(rollouts: list[dict[str, Any]]) -> Table:
    """Return the table of all roll-outs, to be refreshed."""
    return make_table(_COLUMNS, [_row(each) for each in rollouts])


def _row(rollout: dict[str, Any]) -> tuple[object, ...]:
    bound = rollout["lower_bound_percent"]
    return (
        rollout["id"],
        rollout["version"],
        rollout["state"],
        _stage(rollout),
        as_duration(rollout["soak_left_s"]),
        _whom(rollout),
        rollout["offered"],
        rollout["succeeded"],
        rollout["failed"],
        rollout["crash_loops"],
        rollout["offered"] - rollout["succeeded"] - rollout["failed"],
        None if bound is None else f"{bound:.1f} %",
        f"{rollout['threshold_percent']:g} %",
        rollout["reason"] or rollout["holding"],
    )


def _stage(rollout: dict[str, Any]) -> str:
    stages, place = rollout["stages"], rollout["stage"]
    if not stages:
        return f"{rollout['percent']:g} %"
    name = stages[place]
    shown = f"{name} %" if name.replace(".", "", 1).isdigit() else name
    return f"{shown} ({place + 1}/{len(stages)})"


def _whom(rollout: dict[str, Any]) -> str:
    on = [f"on {version}" for version in rollout["from_versions"]]
    return ", ".join([*rollout["groups"], *rollout["regions"], *on]) or "all"


def as_duration(seconds: float | None) -> str | None:
    """Return a length of time for people."""
    if seconds is None:
        return None
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def show(rollout: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Print one roll-out: where it stands, what was reported, what was done."""
    print_table(_COLUMNS, [_row(rollout)], empty="")
    for name, value in _facts(rollout):
        print(f"{name:20} {value}")
    print()
    print_table(
        ("when", "by", "act", "state", "share", "reason"),
        [(as_time(e["at"]), e["by"], e["act"], e["state"], f"{e['percent']:g} %", e["reason"]) for e in log],
        empty="nothing was done to it yet",
    )


def _facts(rollout: dict[str, Any]) -> list[tuple[str, str]]:
    stages = rollout["stages"]
    marked = [f"[{name}]" if place == rollout["stage"] else name for place, name in enumerate(stages)]
    facts = [
        ("stages", " > ".join(marked) or "none: it stays as it is"),
        ("each at least", as_duration(rollout["soak_s"]) or "-"),
        ("results that count", f"{rollout['judged_results']}, {rollout['judged_failures']} of them failures"),
        ("began", f"{rollout['began']}, {rollout['silent']} of them fell silent"),
        ("awaited", str(rollout["expected"])),
    ]
    for each in rollout["regressions"]:
        facts.append((each["metric"], f"worse on {each['worse']} of {each['devices']} devices compared"))
    if rollout["holding"]:
        facts.append(("it waits", rollout["holding"]))
    if rollout["rollback_of"]:
        facts.append(("takes back", rollout["rollback_of"]))
    return facts


def show_preview(found: dict[str, Any]) -> None:
    """Print a dry run."""
    rate, ahead = found["patch_hit_rate"], found["ahead"]
    print(f"{found['version']}: {found['devices']} of {found['known']} devices known")
    print(f"left out: {found['not_for']} by group, region or version; {ahead} have it or a newer one")
    if rate is not None:
        print(f"to be sent: {as_bytes(found['bytes'])}, {rate:.1%} of the devices by patch")
    if found["waiting"]:
        print(f"packages are still being built for {found['waiting']} devices: see autoglm release list")
    print_table(
        ("stage", "adds", "in all", "by patch", "in full", "waiting", "bytes"),
        [
            (
                s["stage"],
                s["devices"],
                s["total"],
                s["patches"],
                s["full"],
                s["waiting"],
                as_bytes(s["bytes"]),
            )
            for s in found["stages"]
        ],
        empty="",
    )
    print_table(
        ("region", "group", "in", "out"),
        [(p["region"], p["group"], p["in"], p["out"]) for p in found["places"]],
        empty="the hub knows no device yet",
    )


def watch(fetch: Callable[[], list[dict[str, Any]]], *, one: bool) -> None:
    """Show roll-outs until interrupted, or, when it is one alone, until that is over.

    Args:
        fetch: asks the hub.
        one: whether it is about one roll-out.
    """
    from rich.live import Live

    rollouts = fetch()
    with Live(table_of(rollouts), console=make_console(), auto_refresh=False) as live:
        while not (one and rollouts[0]["state"] in _OVER):
            time.sleep(WATCH_EVERY_S)
            rollouts = fetch()
            live.update(table_of(rollouts), refresh=True)
