"""``autoglm model merge``: make a release of a shipped one and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autoglm.releases import HealthCheck
    from autoglm.training.merge import MergeReport
    from autoglm.training.retention import Evaluate, Retention


def merge(
    adapter: Annotated[Path, typer.Option(help="The adapter's directory, as PEFT writes it.")],
    base: Annotated[Path, typer.Option(help="The shipped INT8 release.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The release directory to write.")],
    version: Annotated[str, typer.Option(help="The new release's version, such as v1.4.")],
    counter: Annotated[
        int | None, typer.Option(help="Its place in the order; the base's and one if not given.", min=1)
    ] = None,
    health: Annotated[Path | None, typer.Option(help="Its self-test; the base's if not given.")] = None,
    factor_error: Annotated[
        float,
        typer.Option(help="Share of the adapter that rounding may cost.", min=1e-5, max=0.5),
    ] = 0.01,
    knowledge: Annotated[str, typer.Option(help="Whose topics the retention is measured on.")] = "v1.3",
    base_run: Annotated[
        Path | None, typer.Option(help="The run of the base: retention against its float weights too.")
    ] = None,
    no_retention: Annotated[bool, typer.Option("--no-retention", help="Do not measure it.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge an adapter into a shipped INT8 release, so that the patch is little more than the adapter.

    Example:

      autoglm model merge --adapter runs/update-adapter/adapter --base releases/v1.2 --version v1.4 -o v1.4
    """
    from autoglm.cli.output import print_json
    from autoglm.training.merge import merge_adapter
    from autoglm.training.quantize import read_run
    from autoglm.training.threads import use_threads

    use_threads(threads)
    report = merge_adapter(
        base,
        adapter,
        output,
        version=version,
        counter=counter,
        health=_health(health),
        factor_error=factor_error,
        evaluate=None if no_retention else held_out_loss(base, knowledge),
        float_weights=read_run(base_run) if base_run is not None else None,
    )
    if as_json:
        print_json({"release": str(output), **report.to_dict()})
    else:
        _explain(output, report)


def held_out_loss(release: Path, knowledge: str) -> Evaluate:
    """Return the loss on held-out dialogues, and on screens where the model of ``release`` sees them."""
    from autoglm.model.config import ModelConfig
    from autoglm.model.tokenizer import Tokenizer
    from autoglm.model.weights import CONFIG_NAME, TOKENIZER_NAME
    from autoglm.training.lesson_loss import LessonLoss
    from autoglm.training.quantize import as_release

    config = ModelConfig.from_json((release / CONFIG_NAME).read_bytes())
    return LessonLoss(Tokenizer.from_file(release / TOKENIZER_NAME), config, as_release(knowledge))


def print_retention(rows: list[tuple[str, Retention]]) -> None:
    """Print the four losses and the share that is kept, a row each."""
    from autoglm.cli.output import print_table

    columns = ("retention against", "base", "update", "base shipped", "update shipped", "kept")
    cells: list[tuple[Any, ...]] = []
    for name, kept in rows:
        losses = (kept.base_float, kept.new_float, kept.base_shipped, kept.new_shipped)
        share = kept.to_dict()["retained"]
        cells.append((name, *(f"{loss:.5f}" for loss in losses), None if share is None else f"{share:.2%}"))
    print_table(columns, cells, empty="")


def _health(path: Path | None) -> HealthCheck | None:
    from autoglm.releases import HealthCheck

    return None if path is None else HealthCheck.from_bytes(path.read_bytes())


def _explain(output: Path, report: MergeReport) -> None:
    from autoglm.cli.output import as_bytes, print_table

    print_table(
        ("matrix", "rank", "codes changed", "rows rescaled", "gain"),
        [(m.name, m.rank, f"{m.changed:.1%}", f"{m.rescaled:.1%}", f"{m.gain:.4f}") for m in report.matrices],
        empty="the adapter changes nothing",
    )
    both = (("shipped base + adapter", report.shipped), ("float base + adapter", report.float_base))
    if kept := [(name, measured) for name, measured in both if measured is not None]:
        print_retention(kept)
    print(f"{output}: {report.manifest.folder}, {as_bytes(report.release_bytes)}; its factors: {report.hint}")
    print(
        f"the patch takes about {as_bytes(report.patch_bytes)}, {report.patch_share:.2%} of the release: "
        f"{report.num_factors:,} factors of {report.bits_per_factor:.1f} bits"
    )
