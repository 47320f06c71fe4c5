"""``autoglm release``: the releases that a hub holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption

app = typer.Typer(help="The releases that a hub holds.", no_args_is_help=True)


@app.command("list")
def list_releases(
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the releases, and the packages that lead to them.

    Example:

      autoglm release list
    """
    from autoglm.cli.output import as_bytes, as_time, print_json, print_table
    from autoglm.cli.places import admin_client

    client = admin_client(hub, token, data)
    releases = client.get("/v1/admin/releases")
    packages = client.get("/v1/admin/packages")["packages"]
    if as_json:
        print_json(releases | {"packages": packages})
        return
    print_table(
        ("version", "counter", "channel", "size", "published", "revoked"),
        [
            (
                r["version"],
                r["counter"],
                r["channel"],
                as_bytes(r["total_bytes"]),
                as_time(r["created_at"]),
                "yes" if r["revoked"] else None,
            )
            for r in releases["releases"]
        ],
        empty="there is no release yet; publish one with: autoglm publish PATH",
    )
    print_table(
        ("package", "to", "state", "size", "seconds", "reason"),
        [
            (
                p["from"] or "full",
                p["to"],
                p["state"],
                as_bytes(p["size"]),
                None if p["seconds"] is None else f"{p['seconds']:.1f}",
                p["reason"],
            )
            for p in packages
        ],
        empty="there is no package yet",
    )


@app.command()
def revoke(
    version: Annotated[str, typer.Argument(help="A published version, such as v1.3.")],
    keys: Annotated[
        Path | None, typer.Option(help="Sign with the release key in this directory of 'autoglm keys'.")
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for the release key's passphrase.")
    ] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Call a release back: it is offered, installed and fallen back to no more, and never again.

    Devices that run it keep running it until a newer release is offered: publish one.

    Examples:

      autoglm release revoke v1.3

      autoglm release revoke v1.3 --keys ceremony --hub https://hub.example.com --token T
    """
    from urllib.parse import quote

    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    client = admin_client(hub, token, data)
    if keys is None:
        client.send("POST", f"/v1/admin/releases/{quote(version, safe='')}/revoke", {})
    else:
        from autoglm.cli.keyroom import KeyRoom
        from autoglm.cli.keys import read_passphrase

        names = client.get("/v1/admin/releases")["hub"]
        room = KeyRoom(keys.absolute(), [keys], read_passphrase(passphrase))
        room.revoke_release(names["model"], names["variant"], version, client)
    found = client.get("/v1/admin/releases")["releases"]
    release = next(
        (each for each in found if each["version"] == version), {"version": version, "revoked": True}
    )
    print_json(release) if as_json else print(
        f"{version} is called back; publish a newer release for its devices"
    )
