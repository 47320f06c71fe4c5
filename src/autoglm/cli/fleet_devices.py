"""``autoglm fleet list|show|register|invite|invites|uninvite|move|forget``: which devices there are."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption
from autoglm.errors import ConfigError

DeviceArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's id.")]
GroupOption = Annotated[list[str] | None, typer.Option("--group", help="A group of it (repeatable).")]
RegionOption = Annotated[str | None, typer.Option("--region", help="Its region.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to ``autoglm fleet``."""
    app.command("list")(list_devices)
    for verb in (show, register_device, invite, invites, uninvite, move, forget):
        app.command("register" if verb is register_device else verb.__name__)(verb)


def list_devices(
    version: Annotated[str | None, typer.Option(help="Only devices that run this version.")] = None,
    group: Annotated[str | None, typer.Option(help="Only devices of this group.")] = None,
    region: Annotated[str | None, typer.Option(help="Only devices of this region.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only devices in this state, such as TRIAL; UNSEEN never asked.")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 100,
    after: Annotated[str | None, typer.Option(help="Where the last list ended.")] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the devices that were seen or registered, newest sight first.

    Examples:

      autoglm fleet list --group staff

      autoglm fleet list --version v1.2 --limit 1000 --json
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.paging import read_pages
    from autoglm.cli.places import admin_client

    wanted = {"version": version, "group": group, "region": region, "state": state, "after": after}
    answer = read_pages(admin_client(hub, token, data), "/v1/admin/devices", "devices", wanted, limit)
    if as_json:
        print_json(answer)
        return
    _print_devices(answer["devices"])
    if answer["next"] is not None:
        print(f"{len(answer['devices'])} of {answer['total']}; more: --after {answer['next']}")


def _print_devices(devices: list[dict[str, Any]]) -> None:
    from autoglm.cli.output import as_time, print_table

    print_table(
        ("device", "version", "groups", "region", "state", "result", "code", "seen"),
        [
            (
                each["device_id"],
                each["version"],
                ", ".join(each["groups"]) or None,
                each["region"],
                each["state"],
                each["result"],
                each["code"],
                as_time(each["seen_at"]),
            )
            for each in devices
        ],
        empty="there is no such device",
    )


def show(
    device_id: DeviceArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show a device: its registration, what it runs, and its newest events.

    Example:

      autoglm fleet show dev_12345
    """
    from autoglm.cli.output import as_time, print_json, print_table
    from autoglm.cli.places import admin_client

    found = admin_client(hub, token, data).get(_path(device_id))
    if as_json:
        print_json(found)
        return
    rows: list[tuple[str, Any]] = [
        ("device", found["device_id"]),
        ("registered", as_time(found["registered_at"]) or "no"),
        ("by", found["registered_by"]),
        ("groups", ", ".join(found["groups"]) or None),
        ("region", found["region"]),
        ("runs", found["version"]),
        ("first seen", as_time(found["first_seen_at"])),
        ("last seen", as_time(found["seen_at"])),
    ]
    for name, value in rows:
        print(f"{name:12} {'-' if value is None else value}")
    print_table(
        ("at", "state", "result", "code", "from", "to", "roll-out"),
        [
            (as_time(e["at"]), e["state"], e["result"], e["code"], e["from"], e["to"], e["rollout_id"])
            for e in found["events"]
        ],
        empty="it has reported nothing",
    )


def register_device(
    device_id: DeviceArgument,
    group: GroupOption = None,
    region: RegionOption = None,
    new_token: Annotated[
        bool, typer.Option("--new-token", help="It is registered: revoke its token and make a new one.")
    ] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Register a device and print its token, which is shown this once.

    Example:

      autoglm fleet register dev_12345 --group staff --region cn-east
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    if new_token and (group or region):
        raise ConfigError("--new-token changes no group and no region: use autoglm fleet move")
    wanted = {"device_id": device_id, "groups": group or [], "region": region, "new_token": new_token}
    answer = admin_client(hub, token, data).send("POST", "/v1/model/register", wanted)
    print_json(answer) if as_json else print(answer["token"])


def invite(
    group: GroupOption = None,
    region: RegionOption = None,
    uses: Annotated[int, typer.Option(help="How many devices may use it.", min=1)] = 1,
    lasting: Annotated[str, typer.Option("--for", metavar="T", help="How long it is good.")] = "24h",
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make an enrolment code, with which devices register themselves; it is shown this once.

    Example:

      autoglm fleet invite --group staff --region cn-east --uses 20 --for 7d
    """
    from autoglm.cli.output import as_time, print_json
    from autoglm.cli.places import admin_client
    from autoglm.device import parse_every

    wanted = {"groups": group or [], "region": region, "uses": uses, "expires_in_s": parse_every(lasting)}
    answer = admin_client(hub, token, data).send("POST", "/v1/admin/invites", wanted)
    if as_json:
        print_json(answer)
        return
    print(answer["code"])
    print(f"{answer['id']}: for {uses} device(s), until {as_time(answer['expires_at'])}; on each of them:")
    print(f"autoglm device run --hub URL --enrol {answer['code']}")


def invites(
    live: Annotated[bool, typer.Option("--live", help="Only those that can still be used.")] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the enrolment codes, without the codes themselves.

    Example:

      autoglm fleet invites --live
    """
    from autoglm.cli.output import as_time, print_json, print_table
    from autoglm.cli.places import admin_client

    answer = admin_client(hub, token, data).get(f"/v1/admin/invites?live={str(live).lower()}")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "groups", "region", "uses left", "of", "made by", "expires", "revoked"),
        [
            (
                each["id"],
                ", ".join(each["groups"]) or None,
                each["region"],
                each["uses_left"],
                each["uses"],
                each["created_by"],
                as_time(each["expires_at"]),
                as_time(each["revoked_at"]),
            )
            for each in answer["invites"]
        ],
        empty="there is no enrolment code; make one with: autoglm fleet invite",
    )


def uninvite(
    invite_id: Annotated[str, typer.Argument(metavar="ID", help="Such as i3.")],
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make an enrolment code useless; devices that used it stay registered.

    Example:

      autoglm fleet uninvite i3
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    path = f"/v1/admin/invites/{quote(invite_id, safe='')}"
    answer = admin_client(hub, token, data).delete(path)
    print_json(answer) if as_json else print(
        f"{invite_id} is useless now; {answer['uses_left']} uses were left"
    )


def move(
    device_id: DeviceArgument,
    group: GroupOption = None,
    region: RegionOption = None,
    no_group: Annotated[bool, typer.Option("--no-group", help="Take all its groups away.")] = False,
    no_region: Annotated[bool, typer.Option("--no-region", help="Take its region away.")] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Give a registered device other groups or another region; its token goes on working.

    The groups named are all that it has afterwards; what is not named stays.

    Example:

      autoglm fleet move dev_12345 --group beta --group staff
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    if (no_group and group) or (no_region and region) or not (group or region or no_group or no_region):
        raise ConfigError("name the groups or the region to move it to, or --no-group or --no-region")
    change: dict[str, Any] = {}
    if group or no_group:
        change["groups"] = group or []
    if region or no_region:
        change["region"] = region
    answer = admin_client(hub, token, data).send("PATCH", _path(device_id), change)
    groups = ", ".join(answer["groups"]) or "no group"
    print_json(answer) if as_json else print(f"{device_id}: {groups}, {answer['region'] or 'no region'}")


def forget(
    device_id: DeviceArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Drop a device's registration and revoke its tokens; what it reported stays in the roll-outs' counts.

    Example:

      autoglm fleet forget dev_12345
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    answer = admin_client(hub, token, data).delete(_path(device_id))
    print_json(answer) if as_json else print(
        f"{device_id} is forgotten, {answer['tokens_revoked']} token(s) revoked"
    )


def _path(device_id: str) -> str:
    return f"/v1/admin/devices/{quote(device_id, safe='')}"
