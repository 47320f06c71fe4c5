"""``autoglm fleet explain`` and ``who``: why a device is offered what it is, and what was when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption
from autoglm.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("explain")(explain)
    app.command("who")(who)


def explain(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    version: Annotated[
        str | None, typer.Option(help="As if it ran this version; else the one it ran when last seen.")
    ] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say why a device is offered what it is offered: its groups, and each roll-out's stage and bucket.

    Example:

      autoglm fleet explain dev_12345
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    query = "" if version is None else f"?{urlencode({'version': version})}"
    path = f"/v1/admin/devices/{quote(device, safe='')}/explain{query}"
    found = admin_client(hub, token, data).get(path)
    print_json(found) if as_json else _show_explanation(found)


def _show_explanation(found: dict[str, Any]) -> None:
    from autoglm.cli.output import print_table

    groups, region = ", ".join(found["groups"]) or "no group", found["region"] or "no region"
    print(f"{found['device_id']} runs {found['version'] or 'nothing'} ({groups}, {region})")
    offered = f"{found['target_version']} by {found['rollout_id']}: " if found["rollout_id"] else ""
    print(
        f"it is offered {'nothing' if found['kind'] == 'none' else found['kind']}: {offered}{found['reason']}"
    )
    if found["failed"]:
        print(f"failed on it: {', '.join(found['failed'])}")
    print_table(
        ("roll-out", "version", "state", "stage", "bucket", "below", "in", "why"),
        [
            (
                r["rollout_id"],
                r["version"],
                r["state"],
                r["stage"],
                r["bucket"],
                r["basis_points"],
                "yes" if r["is_in"] else "no",
                r["why"],
            )
            for r in found["rollouts"]
        ],
        empty="there is no roll-out",
    )


def who(
    at: Annotated[
        str | None, typer.Option(help="When, such as 2026-11-22T20:00; local time without a zone.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="List the devices that ran this version.")] = None,
    limit: Annotated[int, typer.Option(help="List this many of them.", min=0, max=10_000)] = 1000,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say what the devices ran at a time, and how the roll-outs stood; now, when no time is given.

    Examples:

      autoglm fleet who --at 2026-11-22T20:00

      autoglm fleet who --version v1.3
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    query: dict[str, Any] = {"limit": limit}
    if at is not None:
        query["at"] = parse_time(at)
    if version is not None:
        query["version"] = version
    found = admin_client(hub, token, data).get(f"/v1/admin/history?{urlencode(query)}")
    print_json(found) if as_json else _show_moment(found, version)


def parse_time(text: str) -> float:
    """Return a time in ISO 8601, or in seconds since 1970, as the latter.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"--at: {text!r} is no time: write for example 2026-11-22T20:00") from error


def _show_moment(found: dict[str, Any], version: str | None) -> None:
    from autoglm.cli.output import as_time, print_table

    print(f"at {as_time(found['at'])}")
    names = sorted({*found["versions"], *found["offered"]})
    print_table(
        ("version", "devices that ran it", "had been offered it"),
        [(name, found["versions"].get(name, 0), found["offered"].get(name, 0)) for name in names],
        empty="no device had been seen yet",
    )
    print_table(
        ("roll-out", "version", "state", "share", "since", "by", "reason"),
        [
            (
                r["rollout_id"],
                r["version"],
                r["state"],
                f"{r['percent']:g} %",
                as_time(r["at"]),
                r["by"],
                r["reason"],
            )
            for r in found["rollouts"]
        ],
        empty="there was no roll-out yet",
    )
    if version is not None:
        print_table(
            ("device", "ran", "since"),
            [(d["device_id"], d["version"], as_time(d["since"])) for d in found["devices"]],
            empty=f"no device ran {version}",
        )
