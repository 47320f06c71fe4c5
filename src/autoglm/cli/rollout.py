"""``autoglm rollout``: who is offered which release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Who is offered which release.", no_args_is_help=True)

HubOption = Annotated[str | None, typer.Option("--hub", help="The hub's address.")]
TokenOption = Annotated[str | None, typer.Option("--token", help="The admin token; else AUTOGLM_TOKEN.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The data directory of a service on this machine.")
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    version: Annotated[str, typer.Argument(help="A published version, such as v1.3.")],
    percent: Annotated[float, typer.Option(help="Share of the devices.", min=0, max=100)] = 100.0,
    group: Annotated[list[str] | None, typer.Option(help="Only this group (repeatable).")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Only this region (repeatable).")] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Offer a release; the same release, groups and regions again set a new percentage.

    Examples:

      autoglm rollout create v1.3 --percent 5

      autoglm rollout create v1.3 --group staff
    """
    from autoglm.cli.output import print_json, show_rollout
    from autoglm.cli.places import admin_client

    wanted = {"version": version, "percent": percent, "groups": group or [], "regions": region or []}
    rollout = admin_client(hub, token, data).send("POST", "/v1/admin/rollouts", wanted)
    print_json(rollout) if as_json else print(show_rollout(rollout))


@app.command()
def status(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """List the roll-outs with what came of them.

    Example:

      autoglm rollout status
    """
    from autoglm.cli.output import as_time, print_json, print_table
    from autoglm.cli.places import admin_client

    answer = admin_client(hub, token, data).get("/v1/admin/rollouts")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "version", "percent", "groups", "regions", "state", "offered", "ok", "failed", "created"),
        [
            (
                r["id"],
                r["version"],
                f"{r['percent']:g}",
                ", ".join(r["groups"]) or "all",
                ", ".join(r["regions"]) or "all",
                r["state"],
                r["offered"],
                r["succeeded"],
                r["failed"],
                as_time(r["created_at"]),
            )
            for r in answer["rollouts"]
        ],
        empty="there is no roll-out yet; make one with: autoglm rollout create VERSION --percent 5",
    )


@app.command()
def pause(
    rollout_id: Annotated[str, typer.Argument(metavar="ID", help="Such as r1.")],
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Stop offering for now; devices that have it keep it.

    Example:

      autoglm rollout pause r1
    """
    _change(rollout_id, "paused", hub, token, data, as_json)


@app.command()
def resume(
    rollout_id: Annotated[str, typer.Argument(metavar="ID", help="Such as r1.")],
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Offer again after a pause.

    Example:

      autoglm rollout resume r1
    """
    _change(rollout_id, "active", hub, token, data, as_json)


@app.command()
def abort(
    rollout_id: Annotated[str, typer.Argument(metavar="ID", help="Such as r1.")],
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """End a roll-out for good; devices that have the release keep it.

    Example:

      autoglm rollout abort r1
    """
    _change(rollout_id, "aborted", hub, token, data, as_json)


def _change(
    rollout_id: str, state: str, hub: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    from urllib.parse import quote

    from autoglm.cli.output import print_json, show_rollout
    from autoglm.cli.places import admin_client

    path = f"/v1/admin/rollouts/{quote(rollout_id, safe='')}"
    rollout = admin_client(hub, token, data).send("PATCH", path, {"state": state})
    print_json(rollout) if as_json else print(show_rollout(rollout))
