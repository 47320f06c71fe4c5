"""``autoglm device pause|resume|now``: what a person tells a device that may be running.

They write to the device's directory without its lock; ``device run`` looks there every few seconds, and
finds what was asked also after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from autoglm.cli.hub_options import JSONOption
from autoglm.cli.output import print_json
from autoglm.errors import ConfigError

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The device's directory.", show_default="phone in the data directory"),
]

Place = Callable[[Path | None], Path]
"""Returns the directory of the device that ``--data`` names."""


def register(app: typer.Typer, directory: Place) -> None:
    """Add the verbs to the device's commands."""

    @app.command()
    def pause(
        data: DataOption = None,
        reason: Annotated[str, typer.Option(help="Kept beside the pause.")] = "",
        as_json: JSONOption = False,
    ) -> None:
        """Let a device update nothing until it is resumed; a download under way stops and is kept.

        Example:

          autoglm device pause --data /var/lib/autoglm --reason "field test"
        """
        _control(directory(data)).pause(reason)
        _say({"paused": True}, "paused: it goes on after autoglm device resume", as_json)

    @app.command()
    def resume(data: DataOption = None, as_json: JSONOption = False) -> None:
        """End a pause.

        Example:

          autoglm device resume --data /var/lib/autoglm
        """
        _control(directory(data)).resume()
        _say({"paused": False}, "resumed", as_json)

    @app.command()
    def now(
        data: DataOption = None,
        force: Annotated[
            bool, typer.Option("--force", help="Also against the rules on network, power, storage and hours.")
        ] = False,
        as_json: JSONOption = False,
    ) -> None:
        """Let a device look for an update now, whatever its schedule and a pause say.

        Example:

          autoglm device now --data /var/lib/autoglm
        """
        _control(directory(data)).ask(force=force)
        _say({"asked": True, "force": force}, "asked: a running device looks within seconds", as_json)


def _control(root: Path) -> Any:
    from autoglm.device import Control

    if not root.is_dir():
        raise ConfigError(f"there is no device in {root}; make one with: autoglm device run --data {root}")
    return Control(root)


def _say(value: dict[str, Any], text: str, as_json: bool) -> None:
    print_json(value) if as_json else print(text)
