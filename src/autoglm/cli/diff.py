"""``autoglm diff``: make a package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoglm.patch import DiffReport


def command(
    old: Annotated[
        Path | None, typer.Argument(help="What devices have: a file or a folder; - for nothing.")
    ] = None,
    new: Annotated[Path | None, typer.Argument(help="What they shall have.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The package to write.")] = None,
    full: Annotated[
        Path | None, typer.Option(help="Pack this with nothing to start from, instead of OLD NEW.")
    ] = None,
    hint: Annotated[
        Path | None, typer.Option(help="The factors that `autoglm model merge` wrote beside NEW.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Blocks coded at a time.", min=1, max=256)] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing package.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the .wpatch package that turns OLD into NEW; the same inputs always give the same bytes.

    Examples:

      autoglm diff releases/v1.2 releases/v1.3 -o v1.3.wpatch

      autoglm diff old.gguf new.gguf -o new.wpatch --threads 4

      autoglm diff releases/v1.3 releases/v1.4 -o v1.4.wpatch --hint releases/v1.4.factors.safetensors

      autoglm diff --full releases/v1.2 -o v1.2.wpatch
    """
    from autoglm import patch
    from autoglm.cli.output import print_json, progress_bar

    base, target, package = _places(old, new, output, full, force)
    with progress_bar(f"diff {target.name}", quiet=as_json) as progress:
        report = patch.diff(base, target, package, hint=hint, threads=threads, progress=progress)
    if as_json:
        print_json({"package": str(package), **asdict(report)})
    else:
        _explain(package, report)


def _places(
    old: Path | None, new: Path | None, output: Path | None, full: Path | None, force: bool
) -> tuple[Path | None, Path, Path]:
    """Check what was given; return the base, the new files and the package's name."""
    from autoglm.errors import ConfigError

    if full is not None:
        if old is not None or new is not None:
            raise ConfigError("give OLD and NEW, or --full NEW, not both")
        old, new = None, full
    elif old is None or new is None:
        raise ConfigError("give OLD and NEW (see: autoglm diff --help)")
    if output is None:
        raise ConfigError("name the package to write: -o FILE.wpatch")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists: choose another name, or --force")
    return None if old is None or str(old) == "-" else old, new, output


def _explain(package: Path, report: DiffReport) -> None:
    from autoglm.cli.output import as_bytes

    share = report.package_bytes / report.new_bytes if report.new_bytes else 0.0
    print(
        f"{package}: a {report.kind} package of {as_bytes(report.package_bytes)}, "
        f"{share:.1%} of the {as_bytes(report.new_bytes)} that it makes"
    )
