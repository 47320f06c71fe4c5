"""``autoglm inspect``: look into a package without applying it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoglm.patch import PackageInfo


def command(
    package: Annotated[Path, typer.Argument(help="The .wpatch package.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a package makes, from what, and what each tensor costs; only its header is read.

    Examples:

      autoglm inspect v1.3.wpatch

      autoglm inspect v1.3.wpatch --json
    """
    from autoglm import patch
    from autoglm.cli.output import print_json

    info = patch.inspect(package)
    if as_json:
        print_json(asdict(info))
    else:
        _show(package, info)


def _show(package: Path, info: PackageInfo) -> None:
    from autoglm.cli.output import as_bytes, print_table

    share = info.package_bytes / info.output_bytes if info.output_bytes else 0.0
    print(
        f"{package.name}: a {info.kind} package of {as_bytes(info.package_bytes)}, "
        f"{share:.1%} of the {as_bytes(info.output_bytes)} that it makes"
    )
    print(f"header {info.header_length} bytes, sha256 {info.header_sha256}")
    files = [(file.path, as_bytes(file.size), file.mode, file.sha256[:16]) for file in info.files]
    print_table(("makes", "size", "mode", "sha256"), files, empty="it makes no files")
    if info.base_files:
        bases = [(base.path, as_bytes(base.size), base.sha256[:16]) for base in info.base_files]
        print_table(("reads", "size", "sha256"), bases, empty="")
    rows = [
        (
            tensor.name,
            f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}",
            f"{tensor.mode}, rank {tensor.rank}" if tensor.rank else tensor.mode,
            as_bytes(tensor.package_bytes),
            f"{tensor.package_bytes / tensor.bytes:.1%}" if tensor.bytes else "-",
            as_bytes(tensor.entropy_bytes),
            f"{tensor.changed:.1%}",
        )
        for tensor in info.tensors
    ]
    columns = ("tensor", "type", "mode", "bytes", "of size", "entropy", "changed")
    print_table(columns, rows, empty="it holds no tensors")
