"""``autoglm keys raise``: let devices follow a hub again that was restored from a backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[
        Path | None, typer.Option(help="The configuration file.", show_default="config.yaml")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The hub's data directory.", show_default="data")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """After a restore: sign everything anew, above all versions that devices may have seen.

    Runs on the hub's machine, with the keys that are there; the service may be running.

    Example:

      autoglm keys raise --data data
    """
    from autoglm.cli.output import print_json
    from autoglm.cli.places import find_config
    from autoglm.hub import raise_versions
    from autoglm.service.hub_config import hub_config
    from autoglm.service.settings import load_settings

    directory = None if data is None else str(data.absolute())
    left = raise_versions(hub_config(load_settings(find_config(config), data_dir=directory)))
    if as_json:
        print_json({"not_signed": left})
        return
    print("the signed metadata is above what devices may have seen before the restore")
    if left:
        print(f"not signed, their keys are not here: {', '.join(left[:3])}{' ...' if left[3:] else ''}")
        print("next, with the release key: autoglm keys renew releases --hub URL --token T")
    print("next: publish and revoke again what came after the backup; until then devices wait")
