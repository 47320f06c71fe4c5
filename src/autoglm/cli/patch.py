"""``autoglm patch``: apply a package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    old: Annotated[Path, typer.Argument(help="What there is: a file or a folder; - for nothing.")],
    package: Annotated[Path, typer.Argument(help="The .wpatch package.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="What to make; must not exist.")
    ] = None,
    partial: Annotated[
        Path | None,
        typer.Option(
            help="Keep unfinished work in this folder, and continue what an earlier run left there."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Blocks decoded at a time.", min=1, max=256)] = 1,
    link: Annotated[
        bool, typer.Option("--link", help="Make files that did not change hard links to OLD's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the new files from OLD and a package: verified, and whole or not at all.

    Examples:

      autoglm patch releases/v1.2 v1.3.wpatch -o releases/v1.3

      autoglm patch - v1.2.wpatch -o releases/v1.2

      autoglm patch old.gguf new.wpatch -o new.gguf --partial .unfinished
    """
    from autoglm import patch
    from autoglm.cli.output import as_bytes, print_json, progress_bar
    from autoglm.errors import ConfigError

    if output is None:
        raise ConfigError("name what to make: -o NEW")
    base = None if str(old) == "-" else old
    with progress_bar(f"patch {output.name}", quiet=as_json) as progress:
        report = patch.apply(
            *(base, package, output),
            partial=partial,
            link_unchanged=link,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json({"output": str(output), **asdict(report)})
    else:
        count = "1 file" if report.files == 1 else f"{report.files} files"
        linked = f", {report.linked} of them linked" if report.linked else ""
        print(f"{output}: {count}{linked}, {as_bytes(report.output_bytes)}, verified")
