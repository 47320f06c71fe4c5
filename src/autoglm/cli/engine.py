"""``autoglm engine``: the engine of a running service, and the release that it swaps in."""

from __future__ import annotations

from typing import Any

import typer

from autoglm.cli.hub_options import DataOption, HubOption, JSONOption, TokenOption

app = typer.Typer(help="Swap the release of a running service, step by step.", no_args_is_help=True)

_PATH = "/v1/admin/engine"


@app.command()
def status(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """Show which release answers, which one is staged, and which one can be gone back to.

    Example:

      autoglm engine status
    """
    from autoglm.cli.output import print_json, print_table
    from autoglm.cli.places import admin_client

    answer = admin_client(hub, token, data).get(_PATH)
    if as_json:
        print_json(answer)
        return
    engine, updater = answer["engine"], answer["updater"] or {}
    print_table(("engine", ""), _rows(engine, updater), empty="")


def _rows(engine: dict[str, Any], updater: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the table of a status; a rollback returns to what is on the disk, not only in memory."""
    return [
        ("active", engine["active"]),
        ("on trial", "no" if updater.get("confirmed", True) else "yes"),
        ("previous", updater.get("previous", engine["previous"])),
        ("staged", updater.get("staged")),
        ("running, waiting", f"{engine['running']}, {engine['waiting']}"),
        ("swaps", engine["swaps"]),
        ("quarantined", ", ".join(updater.get("quarantined", ()))),
    ]


@app.command()
def stage(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """Fetch, verify, load and examine the release that the hub offers; the live one serves on.

    Example:

      autoglm engine stage
    """
    answer = _post("stage", hub, token, data)
    text = f"{answer['version']} is staged: swap it in with autoglm engine commit"
    _say(answer, text if answer["result"] == "staged" else _why_nothing(answer), as_json)


def _why_nothing(answer: dict[str, Any]) -> str:
    """Say what is known of why nothing was staged."""
    if (seconds := answer["retry_after_s"]) is not None:
        return f"the hub is still preparing the package for this service: try again in {seconds} s"
    failed = ", ".join(answer["quarantined"])
    passed_over = f"; passed over, as it failed or was rolled back here: {failed}" if failed else ""
    return f"the hub offers this service nothing newer{passed_over}"


@app.command()
def commit(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """Swap the staged release in; its trial begins.

    Example:

      autoglm engine commit
    """
    answer = _post("commit", hub, token, data)
    pause = answer["pause_s"]
    held = "" if pause is None else f", {pause * 1e3:.2f} ms between two steps"
    _say(answer, f"{answer['from_version']} -> {answer['version']}{held}", as_json)


@app.command()
def discard(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """Drop the staged release.

    Example:

      autoglm engine discard
    """
    answer = _post("discard", hub, token, data)
    _say(answer, "dropped" if answer["discarded"] else "nothing was staged", as_json)


@app.command()
def rollback(
    hub: HubOption = None, token: TokenOption = None, data: DataOption = None, as_json: JSONOption = False
) -> None:
    """Return to the previous release; the present one is not installed again.

    Example:

      autoglm engine rollback
    """
    answer = _post("rollback", hub, token, data)
    _say(answer, f"{answer['version']} answers", as_json)


def _post(step: str, hub: Any, token: Any, data: Any) -> dict[str, Any]:
    from autoglm.cli.places import admin_client

    return admin_client(hub, token, data).send("POST", f"{_PATH}/{step}", {})


def _say(answer: dict[str, Any], text: str, as_json: bool) -> None:
    from autoglm.cli.output import print_json

    print_json(answer) if as_json else print(text)
