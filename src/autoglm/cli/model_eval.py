"""``autoglm model eval``: scores of a release on data it never saw, beside chance or beside another's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoglm.errors import ConfigError

if TYPE_CHECKING:
    from autoglm.training.evaluation import Score

_DEFAULT_SEED = 90_001  # that of autoglm.training.evaluation, which --help must not import


def evaluate(
    place: Annotated[
        Path | None, typer.Argument(metavar="[RELEASE]", help="The same as --release.", show_default=False)
    ] = None,
    release: Annotated[
        Path | None, typer.Option(help="A release directory, a .wpatch package, or the directory of a run.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another one, to be scored beside it.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Whose answers are right; the release's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the items; any.")] = _DEFAULT_SEED,
    only: Annotated[
        str | None, typer.Option(help="Sections to run, separated by commas; all if not given.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="About how many items of a kind, for a quick look.", min=1, max=100_000)
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where clips and rendered pages are kept.")] = Path(
        "runs/evaluation"
    ),
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a release on held-out data, free-running, with chance and an interval of 95 % beside each score.

    Interrupted, it goes on behind the sections that are done when it is asked the same again.

    Examples:

      autoglm model eval --release models/autoglm-phone-nano/v1.3.wpatch

      autoglm model eval runs/releases/v1.2 --only screens,identity --items 40

      autoglm model eval runs/releases/v1.2 --against runs/v1.2
    """
    from autoglm.cli.output import print_json
    from autoglm.training.threads import use_threads

    chosen = release if place is None else place
    if chosen is None or (place is not None and release is not None):
        raise ConfigError("name one release to evaluate: `autoglm model eval RELEASE`")
    use_threads(threads)
    names = [] if only is None else [name.strip() for name in only.split(",")]
    asked = _Asked(seed, names, items, cache, quiet=as_json)
    first = _scores_of(chosen, version, asked)
    second = None if against is None else _scores_of(against, version or first["version"], asked)
    if as_json:
        other = None if second is None else _as_plain(second)
        print_json({"seed": seed, **_as_plain(first), "against": other})
    else:
        _print_scores(first, second)


@dataclass(frozen=True)
class _Asked:
    """What is to be scored, the same for both sides."""

    seed: int
    only: list[str]
    items: int | None
    cache: Path
    quiet: bool


def _scores_of(place: Path, version: str | None, asked: _Asked) -> dict[str, Any]:
    """Open one model and score it."""
    from autoglm.training.evaluation import evaluate as score
    from autoglm.training.evaluation.opening import opened
    from autoglm.training.quantize import as_release

    with (
        opened(place) as subject,
        _bar(f"{subject.name}, {subject.precision}", quiet=asked.quiet) as report,
    ):
        whose = as_release(version or subject.version or "v1.2")
        scores = score(
            subject.loaded,
            release=whose,
            cache=asked.cache,
            seed=asked.seed,
            only=asked.only,
            items=asked.items,
            digest=subject.digest,
            report=report,
        )
    return {
        "release": str(place),
        "version": whose,
        "name": subject.name,
        "precision": subject.precision,
        "scores": scores,
    }


def _as_plain(result: Mapping[str, Any]) -> dict[str, Any]:
    scores: dict[str, Score] = result["scores"]
    return {**result, "scores": {name: score.to_dict() for name, score in scores.items()}}


def _print_scores(first: Mapping[str, Any], second: Mapping[str, Any] | None) -> None:
    from autoglm.cli.output import print_table

    scores: dict[str, Score] = first["scores"]
    columns = [
        "score",
        "items",
        f"{first['name']}, {first['precision']}",
        "95 %",
        "chance",
        "blank or silent",
    ]
    rows = [[name, s.count, _percent(s.value), _range(s), _percent(s.chance), _percent(s.without)]
            for name, s in scores.items()]  # fmt: skip
    if second is not None:
        others: dict[str, Score] = second["scores"]
        columns += [f"{second['name']}, {second['precision']}", "points"]
        for row, (name, score) in zip(rows, scores.items(), strict=True):
            other = others.get(name)
            row += [None, None] if other is None else [_percent(other.value), _points(score, other)]
    print_table(columns, rows, empty="nothing was asked for")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _range(score: Score) -> str:
    return f"{score.low:.0%} to {score.high:.0%}"


def _points(score: Score, other: Score) -> str:
    return f"{100 * (other.value - score.value):+.1f}"


@contextlib.contextmanager
def _bar(name: str, *, quiet: bool) -> Generator[Callable[[str, int, int], None]]:
    """Give a function to call with what is under way, how many items are done and of how many."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{name}: {what}", total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield report
