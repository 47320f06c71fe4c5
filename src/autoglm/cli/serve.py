"""``autoglm serve``: run the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoglm.errors import ConfigError


def command(
    config: Annotated[
        Path | None, typer.Option(help="The configuration file.", show_default="config.yaml")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.", show_default="0.0.0.0")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000", min=0, max=65535)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data directory.", show_default="data")] = None,
    hub_only: Annotated[bool, typer.Option("--hub-only", help="The hub, without a model.")] = False,
    engine_only: Annotated[
        bool, typer.Option("--engine-only", help="The model, following the hub at update.hub_url.")
    ] = False,
) -> None:
    """Run the service: the model over OpenAI's API, the hub, and the update endpoints.

    Options win over the configuration file.

    Examples:

      autoglm serve

      autoglm serve --port 9000 --data /srv/autoglm --config /etc/autoglm.yaml

      autoglm serve --hub-only
    """
    from autoglm.cli.places import find_config
    from autoglm.service.machine import check_machine
    from autoglm.service.settings import load_settings

    directory = None if data is None else str(data.absolute())
    if hub_only and engine_only:
        raise ConfigError("give either --hub-only or --engine-only; without both, one process is both")
    role = "hub" if hub_only else "engine" if engine_only else None
    settings = load_settings(find_config(config), host=host, port=port, data_dir=directory, role=role)
    check_machine(settings)
    from autoglm.service.serve import serve

    serve(settings)
