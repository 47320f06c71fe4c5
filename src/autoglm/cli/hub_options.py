"""The options by which verbs find the hub that they administer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HubOption = Annotated[str | None, typer.Option("--hub", help="The hub's address.")]
TokenOption = Annotated[str | None, typer.Option("--token", help="The admin token; else AUTOGLM_TOKEN.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The data directory of a service on this machine.")
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
