"""``autoglm release``: the releases that a hub holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The releases that a hub holds.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The releases that a hub holds."""


@app.command("list")
def list_releases(
    hub: Annotated[str | None, typer.Option(help="The hub's address.")] = None,
    token: Annotated[str | None, typer.Option(help="The admin token; else AUTOGLM_TOKEN.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data directory of a service on this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        ("version", "counter", "channel", "size", "published"),
        [
            (r["version"], r["counter"], r["channel"], as_bytes(r["total_bytes"]), as_time(r["created_at"]))
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
