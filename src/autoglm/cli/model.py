"""``autoglm model``: train, distil, prune, quantise, merge, evaluate, compare and size models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoglm.cli.compression import compare, distill, export, prune
from autoglm.cli.courses import Place, card, data, train_course
from autoglm.cli.merging import merge
from autoglm.cli.model_eval import evaluate

if TYPE_CHECKING:
    from autoglm.training.quantize import Change
    from autoglm.training.retention import Retention

app = typer.Typer(help="Train, quantise, merge, evaluate and size models.", no_args_is_help=True)
app.command("merge")(merge)
app.command("data")(data)
app.command("distill")(distill)
app.command("prune")(prune)
app.command("compare")(compare)
app.command("export")(export)
app.command("card")(card)
app.command("eval")(evaluate)


@app.callback()
def _group() -> None:
    """Train, quantise, merge, evaluate and size models."""


@app.command("train")
def train(
    course: Annotated[str, typer.Argument(help="teacher, student, further, update or screens-by-heart.")],
    run: Annotated[Path | None, typer.Option(help="The run's directory; runs/COURSE if not given.")] = None,
    base: Annotated[Path | None, typer.Option(help="The release that further or update starts from.")] = None,
    base_run: Annotated[
        Path | None,
        typer.Option(help="The run that this release was made of, for its auxiliary heads."),
    ] = None,
    adapter: Annotated[
        int | None, typer.Option(help="Train an adapter of this rank, and no other weight.", min=1, max=64)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that draw screens ahead.", min=0, max=256)] = 0,
    recordings: Annotated[
        Path | None, typer.Option("--data", help="Another run, whose recordings are used.")
    ] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Spread the blocks over the processes.")] = False,
) -> None:
    """Train a course; a run that was stopped goes on from its last checkpoint.

    Examples:

      autoglm model train teacher

      autoglm model train update --base runs/releases/v1.2 --base-run runs/student --data runs/teacher

      autoglm model train further --base runs/releases/v1.2

      autoglm model train update --base runs/releases/v1.2 --adapter 8
    """
    from autoglm.training.threads import use_threads

    use_threads(threads)
    folder = course if adapter is None else f"{course}-adapter"
    place = Place(run or Path("runs") / folder, recordings, seed, workers, shard)
    train_course(course, place, base, base_run, adapter)


@app.command("quantize")
def quantize(
    run: Annotated[Path, typer.Argument(help="The directory of a finished run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The release directory to write.")],
    version: Annotated[str, typer.Option(help="v1.2 or v1.3.")],
    base: Annotated[Path | None, typer.Option(help="The release it follows; its scales are kept.")] = None,
    bits: Annotated[int, typer.Option(help="8, or 4 for the blocks' matrices.", min=4, max=8)] = 8,
    group: Annotated[int, typer.Option(help="With 4 bits: columns that share a scale.", min=2)] = 64,
    base_run: Annotated[
        Path | None, typer.Option(help="The run that the fine-tune began with, where that was not the base.")
    ] = None,
    no_retention: Annotated[
        bool, typer.Option("--no-retention", help="With a base: do not measure what is kept.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn a run into a release directory: INT8 or INT4, manifest, self-test; refused if the self-test fails.

    Examples:

      autoglm model quantize runs/student-distilled --version v1.2 -o runs/releases/v1.2

      autoglm model quantize runs/update --version v1.3 --base runs/releases/v1.2 -o runs/releases/v1.3
    """
    from dataclasses import asdict

    from autoglm.cli.merging import held_out_loss
    from autoglm.cli.output import as_bytes, print_json
    from autoglm.training.quantize import as_bits, as_release, compare_codes, measure_retention, quantize_run
    from autoglm.training.threads import use_threads

    use_threads(threads)
    manifest = quantize_run(run, output, as_release(version), base=base, bits=as_bits(bits), group=group)
    changes = compare_codes(base, output) if base is not None else {}
    kept: Retention | None = None
    if base is not None and not no_retention:
        evaluate = held_out_loss(output, version)
        kept = measure_retention(run, output, base, evaluate, base_run=base_run)
    if as_json:
        report = {"release": str(output), "bytes": manifest.total_bytes}
        parts = {part: asdict(change) for part, change in changes.items()}
        print_json({**report, "parts": parts, "retention": None if kept is None else kept.to_dict()})
    else:
        print(f"{output}: {manifest.folder}, {as_bytes(manifest.total_bytes)}")
        _print_changes(changes, kept)


def _print_changes(changes: dict[str, Change], kept: Retention | None) -> None:
    """Print how far the codes moved from the base's, and how much of the update they hold."""
    from autoglm.cli.merging import print_retention
    from autoglm.cli.output import print_table

    columns = ("part", "codes changed", "bits a code", "saturated", "scales replaced")
    if changes:
        rows = [
            (part, f"{c.changed:.1%}", f"{c.entropy_bits:.2f}", f"{c.saturated:.3%}", f"{c.rescaled:.1%}")
            for part, c in changes.items()
        ]
        print_table(columns, rows, empty="")
    if kept is not None:
        print_retention([("the fine-tune in floats", kept)])


@app.command("size")
def size(
    name: Annotated[str, typer.Argument(help="9b, 9b-int8, 9b-int4, 9b-int8-pruned, 9b-int4-pruned, nano.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count a model's parameters and bytes from its real modules.

    Example:

      autoglm model size 9b-int4-pruned
    """
    from autoglm.cli.output import print_json, print_table
    from autoglm.model.sizes import size_table

    report = size_table(name)
    if as_json:
        print_json(report.to_dict())
        return
    rows = [(part.name, f"{part.parameters:,}", f"{part.bytes:,}", part.matrices) for part in report.parts]
    rows.append(
        ("all", f"{report.parameters:,}", f"{report.bytes:,}", f"{report.bits_per_parameter:.2f} bits")
    )
    print_table(("part", "parameters", "bytes", "stored as"), rows, empty="")
