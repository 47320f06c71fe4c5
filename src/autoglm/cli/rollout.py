"""``autoglm rollout``: who is offered which release."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption
from autoglm.errors import ConfigError

app = typer.Typer(help="Who is offered which release.", no_args_is_help=True)

RolloutArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as r1.")]

_PATH = "/v1/admin/rollouts"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def create(
    version: Annotated[str, typer.Argument(help="A published version, such as v1.3.")],
    percent: Annotated[
        float | None, typer.Option(help="Offer it to this share of the devices at once.", min=0, max=100)
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only this group (repeatable).")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Only this region (repeatable).")] = None,
    stages: Annotated[
        str | None, typer.Option(help="Go by these groups and percentages, such as staff,1,5,25,50,100.")
    ] = None,
    soak: Annotated[str | None, typer.Option(help="How long each stage lasts at least, such as 24h.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The share of failures that is allowed, in per cent.", min=0, max=50)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do; do nothing.")] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Offer a release: stage by stage, or at once with --percent, --group or --region.

    The same release, groups and regions with another --percent raise or lower the same roll-out.

    Examples:

      autoglm rollout create v1.3

      autoglm rollout create v1.3 --stages staff,1,5,25,50,100 --soak 24h --threshold 2

      autoglm rollout create v1.3 --percent 5 --dry-run
    """
    from autoglm.cli.output import print_json, show_rollout
    from autoglm.cli.places import admin_client
    from autoglm.cli.rollout_view import show_preview

    wanted = _wanted(version, percent, group, region, stages, soak, threshold)
    client = admin_client(hub, token, data)
    answer = client.send("POST", f"{_PATH}/preview" if dry_run else _PATH, wanted)
    if as_json:
        print_json(answer)
    elif dry_run:
        show_preview(answer)
    else:
        print(show_rollout(answer))


def _wanted(
    version: str,
    percent: float | None,
    groups: list[str] | None,
    regions: list[str] | None,
    stages: str | None,
    soak: str | None,
    threshold: float | None,
) -> dict[str, Any]:
    """Return the body of the request; what was not said is left to the hub."""
    given = {
        "percent": percent,
        "stages": None if stages is None else [name.strip() for name in stages.split(",")],
        "soak_s": None if soak is None else parse_duration(soak),
        "threshold_percent": threshold,
    }
    said = {key: value for key, value in given.items() if value is not None}
    return {"version": version, "groups": groups or [], "regions": regions or []} | said


def parse_duration(text: str) -> float:
    """Return a length of time such as ``90s``, ``30m``, ``24h`` or ``7d`` in seconds.

    Raises:
        ConfigError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or (match[2] is None and float(match[1])):
        raise ConfigError(f"{text!r} is no length of time: write for example 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


@app.command()
def status(
    rollout_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Such as r1; all of them without.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C or until ID is over.")
    ] = False,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show the roll-outs and what came of them; with ID, one in full with all that was done to it.

    Examples:

      autoglm rollout status

      autoglm rollout status r2 --watch
    """
    from autoglm.cli import rollout_view
    from autoglm.cli.output import print_json
    from autoglm.cli.places import admin_client

    client = admin_client(hub, token, data)
    path = _PATH if rollout_id is None else f"{_PATH}/{quote(rollout_id, safe='')}"
    if watch:
        if as_json:
            raise ConfigError("--watch is for people: leave it out with --json, and ask again")
        key = "rollouts" if rollout_id is None else "rollout"

        def fetch() -> list[dict[str, Any]]:
            found = client.get(path)[key]
            return found if isinstance(found, list) else [found]

        rollout_view.watch(fetch, one=rollout_id is not None)
        return
    answer = client.get(path)
    if as_json:
        print_json(answer)
    elif rollout_id is None:
        rollout_view.list_rollouts(answer["rollouts"])
    else:
        rollout_view.show(answer["rollout"], answer["log"])


@app.command()
def promote(
    rollout_id: RolloutArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Go on to the next stage now, without waiting for its time and for results.

    Example:

      autoglm rollout promote r2
    """
    _act(rollout_id, "promote", {}, hub, token, data, as_json)


@app.command()
def pause(
    rollout_id: RolloutArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Stop offering for now; devices in the middle of it wait, devices that have it keep it.

    Example:

      autoglm rollout pause r1
    """
    _change(rollout_id, "paused", hub, token, data, as_json)


@app.command()
def resume(
    rollout_id: RolloutArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Offer again after a pause or a halt; the stage's time begins anew.

    After a halt, only what is reported from now on counts towards the next one.

    Example:

      autoglm rollout resume r1
    """
    _change(rollout_id, "active", hub, token, data, as_json)


@app.command()
def abort(
    rollout_id: RolloutArgument,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """End a roll-out for good; devices in the middle of it drop it, devices that have the release keep it.

    Example:

      autoglm rollout abort r1
    """
    _change(rollout_id, "aborted", hub, token, data, as_json)


@app.command()
def rollback(
    rollout_id: RolloutArgument,
    to: Annotated[
        str | None, typer.Option(help="The version to return to; else the one that most devices came from.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="How the old bytes are called now; else VERSION.rCOUNTER.")
    ] = None,
    hub: HubOption = None,
    token: TokenOption = None,
    data: DataOption = None,
    as_json: JSONOption = False,
) -> None:
    """Take a release back: end its roll-outs, and offer the old bytes, as a new release, to its devices.

    Examples:

      autoglm rollout rollback r2

      autoglm rollout rollback r2 --to v1.2 --version v1.2.1
    """
    body = {key: value for key, value in (("to", to), ("version", version)) if value is not None}
    _act(rollout_id, "rollback", body, hub, token, data, as_json)


def _act(
    rollout_id: str,
    act: str,
    body: dict[str, Any],
    hub: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    from autoglm.cli.output import print_json, show_rollout
    from autoglm.cli.places import admin_client

    path = f"{_PATH}/{quote(rollout_id, safe='')}/{act}"
    rollout = admin_client(hub, token, data).send("POST", path, body)
    print_json(rollout) if as_json else print(show_rollout(rollout))


def _change(
    rollout_id: str, state: str, hub: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    from autoglm.cli.output import print_json, show_rollout
    from autoglm.cli.places import admin_client

    path = f"{_PATH}/{quote(rollout_id, safe='')}"
    rollout = admin_client(hub, token, data).send("PATCH", path, {"state": state})
    print_json(rollout) if as_json else print(show_rollout(rollout))
