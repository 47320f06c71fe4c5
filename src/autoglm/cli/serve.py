"""``autoglm serve``: run the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[
        Path | None, typer.Option(help="The configuration file.", show_default="config.yaml")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.", show_default="0.0.0.0")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000", min=0, max=65535)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data directory.", show_default="data")] = None,
) -> None:
    """Run the service: the model over OpenAI's API, the hub, and the update endpoints.

    Options win over the configuration file.

    Examples:

      autoglm serve

      autoglm serve --port 9000 --data /srv/autoglm --config /etc/autoglm.yaml
    """
    from autoglm.cli.places import find_config
    from autoglm.service.machine import check_machine
    from autoglm.service.settings import load_settings

    directory = None if data is None else str(data.absolute())
    settings = load_settings(find_config(config), host=host, port=port, data_dir=directory)
    check_machine(settings)
    from autoglm.service.serve import serve

    serve(settings)
