"""``autoglm token``: who may do what."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption

app = typer.Typer(help="Tokens: who may do what at a hub.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whom or what it is for, such as alice or ci.")],
    role: Annotated[str, typer.Option(help="viewer, operator, publisher, admin or device.")] = "viewer",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Narrow it to this permission of its role, such as releases:write (repeatable)."),
    ] = None,
    lasting: Annotated[
        str | None, typer.Option("--for", metavar="T", help="How long it is good, such as 90d.")
    ] = None,
    device_id: Annotated[
        str | None,
        typer.Option("--device-id", help="The one device that may use it; needed for the role device."),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="A group of the device, where it is not registered (repeatable).")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="The region of the device, where it is not registered.")
    ] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Make a token and print it; it is shown this once, and can do no more than the one that makes it.

    Examples:

      autoglm token create alice --role operator --for 90d

      autoglm token create ci --role publisher --scope releases:write
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client
    from autoglm.device import parse_every

    wanted: dict[str, Any] = {"name": name, "role": role, "scopes": scope or [], "groups": group or []}
    wanted |= {"device_id": device_id, "region": region}
    wanted["expires_in_s"] = None if lasting is None else parse_every(lasting)
    answer = admin_client(hub, token, data).send("POST", "/v1/admin/tokens", wanted)
    print_json(answer) if as_json else print(answer["token"])


@app.command("list")
def list_tokens(
    role: Annotated[str | None, typer.Option(help="Only tokens of this role.")] = None,
    device_id: Annotated[str | None, typer.Option("--device-id", help="Only tokens of this device.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 100,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the tokens, without the tokens themselves.

    Example:

      autoglm token list --all
    """
    from autoglm.cli.output import as_time, print_json, print_table
    from autoglm.cli.paging import read_pages
    from autoglm.cli.places import admin_client

    wanted = {"role": role, "device_id": device_id, "live": str(not every).lower()}
    answer = read_pages(admin_client(hub, token, data), "/v1/admin/tokens", "tokens", wanted, limit)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "name", "role", "scopes", "device", "made by", "made", "expires", "last used", "revoked"),
        [
            (
                each["id"],
                each["name"],
                each["role"],
                ", ".join(each["scopes"]) or None,
                each["device_id"],
                each["created_by"],
                as_time(each["created_at"]),
                as_time(each["expires_at"]),
                as_time(each["last_used_at"]),
                as_time(each["revoked_at"]),
            )
            for each in answer["tokens"]
        ],
        empty="there is no such token",
    )
    if answer["next"] is not None:
        print("there are more: raise --limit")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name, or its id, such as t3.")],
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Revoke all tokens of a name, or the one of an id; they prove nothing from the next request on.

    Example:

      autoglm token revoke alice
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    answer = admin_client(hub, token, data).delete(f"/v1/admin/tokens/{quote(name, safe='')}")
    print_json(answer) if as_json else print(f"{answer['revoked']} token(s) of {name} revoked")
