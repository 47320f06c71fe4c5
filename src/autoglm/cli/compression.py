"""``autoglm model distill``, ``prune`` and ``compare``: a smaller model of a larger one, and what it lost."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.cli.courses import Healing, Place, course_pruning, distill_course

if TYPE_CHECKING:
    from autoglm.training.compare import Comparison
    from autoglm.training.prune import Kept


def distill(
    recipe: Annotated[str, typer.Argument(help="The course whose data are used: student, say.")],
    teacher: Annotated[Path, typer.Option(help="The teacher: a run, a pruned model or a release.")],
    student: Annotated[
        Path | None, typer.Option(help="The student's first weights; a fresh model if not given.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run's directory; runs/RECIPE-distilled.")] = None,
    steps: Annotated[int, typer.Option(help="Of a student that has weights.", min=1)] = 600,
    learning_rate: Annotated[float, typer.Option(help="Its peak, likewise.", min=1e-6, max=1.0)] = 1e-3,
    direction: Annotated[
        str, typer.Option(help="Of the KL divergence: forward, reverse or both.")
    ] = "forward",
    temperature: Annotated[float, typer.Option(help="Softens both distributions.", min=0.1, max=100)] = 2.0,
    share: Annotated[float, typer.Option(help="Of the divergence in the loss.", min=0, max=1)] = 0.7,
    match: Annotated[
        list[str] | None, typer.Option(help="STUDENT:TEACHER, blocks whose streams are to match; repeat it.")
    ] = None,
    hidden: Annotated[float, typer.Option(help="Weight of that match.", min=0, max=100)] = 1.0,
    rounded: Annotated[int, typer.Option(help="So many of the last steps see INT8 weights.", min=0)] = 0,
    data: Annotated[Path | None, typer.Option(help="Another run, whose recordings are used.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that draw screens ahead.", min=0, max=256)] = 0,
    shard: Annotated[bool, typer.Option("--shard", help="Spread the blocks over the processes.")] = False,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the last measures as JSON.")] = False,
) -> None:
    """Distil a student from a teacher; a run that was stopped goes on from its last checkpoint.

    Examples:

      autoglm model distill student --teacher runs/teacher --student runs/pruned --data runs/teacher

      autoglm model distill student --teacher runs/teacher --student runs/pruned --match 3:3
    """
    from autoglm.training.distill import Distillation, as_direction
    from autoglm.training.threads import use_threads

    use_threads(threads)
    settings = Distillation(as_direction(direction), temperature, share, _pairs(match or []), hidden)
    healed = Healing(steps, learning_rate, rounded)
    place = Place(run or Path("runs") / f"{recipe}-distilled", data, seed, workers, shard)
    distill_course(recipe, teacher, student, settings, healed, place, as_json=as_json)


def _pairs(texts: list[str]) -> tuple[tuple[int, int], ...]:
    """Read ``STUDENT:TEACHER`` pairs of blocks.

    Raises:
        ConfigError: a text is no such pair.
    """
    from autoglm.errors import ConfigError

    pairs: list[tuple[int, int]] = []
    for text in texts:
        mine, _, theirs = text.partition(":")
        if not (mine.isascii() and theirs.isascii() and mine.isdigit() and theirs.isdigit()):
            raise ConfigError(f"--match {text!r} is no pair of blocks such as 5:6")
        pairs.append((int(mine), int(theirs)))
    return tuple(pairs)


def prune(
    source: Annotated[Path, typer.Argument(help="What to prune: a run, a pruned model or a release.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; replaced.")],
    recipe: Annotated[str, typer.Option(help="The course whose data show what is used.")] = "student",
    sizes: Annotated[str | None, typer.Option(help="Prune to these: nano, say.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the stream to keep.", min=1)] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads to keep.", min=1)] = None,
    ffn: Annotated[int | None, typer.Option(help="Feed-forward channels to keep.", min=1)] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks to keep.", min=1)] = None,
    batches: Annotated[int, typer.Option(help="Batches of calibration data.", min=1, max=100_000)] = 24,
    data: Annotated[Path | None, typer.Option(help="Another run, whose recordings are used.")] = None,
    seed: Annotated[int, typer.Option(help="Of the calibration data.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print what stays as JSON.")] = False,
) -> None:
    """Prune channels, heads, width and blocks by what they do on calibration data; distil the result.

    Examples:

      autoglm model prune runs/teacher --sizes nano -o runs/pruned

      autoglm model prune runs/teacher -o runs/pruned --ffn 320 --layers 5
    """
    from autoglm.cli.output import print_json
    from autoglm.training.prune import prune_source, target_config
    from autoglm.training.sources import read_source
    from autoglm.training.threads import use_threads

    use_threads(threads)
    model = read_source(source)
    given = {"width": width, "num_heads": heads, "ffn_width": ffn, "num_layers": layers}
    named = {} if sizes is None else _sizes_named(sizes)
    target = target_config(model.config, **named | {name: n for name, n in given.items() if n is not None})
    with tempfile.TemporaryDirectory(prefix="autoglm-calibration-") as scratch:
        importance = course_pruning(recipe, model, data or source, Path(scratch), batches, seed)
    kept = prune_source(model, target, output, importance)
    counts = [sum(t.numel() for t in state.values()) for state in (model.state, read_source(output).state)]
    if as_json:
        print_json({"model": str(output), "parameters": counts, "kept": kept.to_dict()})
    else:
        _explain(output, counts, kept)


def _sizes_named(name: str) -> dict[str, int]:
    """Return the sizes of a configuration that pruning can change.

    Raises:
        ConfigError: there is none of that name.
    """
    from autoglm.errors import ConfigError
    from autoglm.model.config import CONFIGS
    from autoglm.training.prune import PRUNED

    if name not in CONFIGS:
        raise ConfigError(f"there are no sizes named {name!r}: choose one of {', '.join(CONFIGS)}")
    return {each: getattr(CONFIGS[name], each) for each in PRUNED}


def _explain(output: Path, counts: list[int], kept: Kept) -> None:
    before, after = counts
    print(f"{output}: {after:,} of {before:,} parameters ({after / before:.1%})")
    blocks = ", ".join(str(block + 1) for block in kept.blocks)
    print(f"blocks that stay: {blocks}; distil it with `autoglm model distill`")


def compare(
    models: Annotated[
        list[Path], typer.Argument(help="Runs, pruned models or releases; the first is the measure.")
    ],
    version: Annotated[str, typer.Option(help="Whose answers are right: v1.2 or v1.3.")] = "v1.2",
    only: Annotated[str | None, typer.Option(help="Sections of the evaluation, with commas between.")] = None,
    items: Annotated[int | None, typer.Option(help="About how many items of a kind.", min=1)] = None,
    cache: Annotated[Path, typer.Option(help="Keeps clips and pages.")] = Path("runs/evaluation"),
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score models side by side with their bytes: teacher, student, INT8 student.

    Example:

      autoglm model compare runs/v1.2 runs/v1.2-distilled runs/releases/student --items 20
    """
    from autoglm.cli.output import print_json
    from autoglm.training.compare import compare_models
    from autoglm.training.quantize import as_release
    from autoglm.training.threads import use_threads

    use_threads(threads)
    sections = [] if only is None else only.split(",")
    rows = compare_models(models, release=as_release(version), cache=cache, only=sections, items=items)
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        _print_comparison(rows)


def _print_comparison(rows: list[Comparison]) -> None:
    from autoglm.cli.output import print_table

    names = [str(row.model) for row in rows]
    cells: list[tuple[Any, ...]] = [
        ("parameters", *(f"{row.parameters:,}" for row in rows)),
        ("bytes", *(f"{row.bytes:,}" for row in rows)),
        ("bytes of the first", *(f"{row.bytes / rows[0].bytes:.1%}" for row in rows)),
        ("mean score", *(f"{row.mean:.2%}" for row in rows)),
        ("points behind the first", *(f"{100 * (rows[0].mean - row.mean):.2f}" for row in rows)),
    ]
    cells += [(name, *(f"{row.scores[name].value:.1%}" for row in rows)) for name in rows[0].scores]
    print_table(("", *names), cells, empty="")


def export(
    release: Annotated[Path, typer.Argument(help="A release directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    like: Annotated[
        Path | None,
        typer.Option(help="An earlier export of the same sizes: keep its program, write weights."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of the program's cache; the model's own.", min=256)
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a release to ExecuTorch: program, weights, and the probe that shows that they belong together.

    Examples:

      autoglm model export runs/releases/v1.2 -o exported/v1.2

      autoglm model export runs/releases/v1.3 --like exported/v1.2 -o exported/v1.3
    """
    from autoglm.cli.output import as_bytes, print_json
    from autoglm.training.export import DATA_NAME, PROGRAM_NAME, export_release, export_weights
    from autoglm.training.threads import use_threads

    use_threads(threads)
    if like is not None:
        made = export_weights(release, like, output)
    else:
        made = export_release(release, output, context=context)
    if as_json:
        sizes = {PROGRAM_NAME: made.program_bytes, DATA_NAME: made.data_bytes}
        print_json({"directory": str(output), "bytes": sizes})
    else:
        print(f"{output}: {as_bytes(made.program_bytes)} of program, {as_bytes(made.data_bytes)} of weights")
