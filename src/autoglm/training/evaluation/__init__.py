"""Scores of a model on data it never saw, free-running, with chance and an interval beside each.

Nothing is teacher-forced: every answer is generated greedily through the chat template, prefill and decode.
Any seed may be asked for; what it draws is never what training drew
(:mod:`autoglm.training.evaluation.sources`).

    >>> scores = evaluate(load_release(path), release="v1.2", cache=Path("runs/evaluation"), seed=7)
    ... # doctest: +SKIP
    >>> scores["screens_tap"].value, scores["screens_tap"].chance        # doctest: +SKIP
    (0.99, 0.03)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.model.weights import LoadedModel
from autoglm.training.dialogue import Release
from autoglm.training.evaluation.examiner import Examiner, Report, no_report
from autoglm.training.evaluation.items import Score
from autoglm.training.evaluation.kept import KeptScores
from autoglm.training.evaluation.sections import SECTIONS

__all__ = ["EVALUATION_SEED", "SECTIONS", "Score", "evaluate"]

EVALUATION_SEED = 90_001


def evaluate(
    loaded: LoadedModel,
    *,
    release: Release,
    cache: Path,
    seed: int = EVALUATION_SEED,
    only: Sequence[str] = (),
    items: int | None = None,
    digest: str | None = None,
    report: Report = no_report,
) -> dict[str, Score]:
    """Score a model.

    Args:
        loaded: the model with its tokenizer and processor.
        release: whose answers are right, where the releases differ.
        cache: directory that keeps synthesised clips and rendered pages for the next time.
        seed: of the items.
        only: the sections to run; all if none is named.
        items: about how many items of a kind, for a quick look; None for the usual numbers.
        digest: tells the model from others: what is done when a run is interrupted is kept in the cache
            under it, and the next run goes on behind it. Nothing is kept without.
        report: told what is under way, how many items are done, and of how many.

    Returns:
        Scores by name.

    Raises:
        ConfigError: there is no such section, or a program or font that one needs is not installed.
        StorageError: the cache cannot be written.
    """
    if unknown := [name for name in only if name not in SECTIONS]:
        raise ConfigError(
            f"there is no section {unknown[0]!r} of the evaluation: choose from {', '.join(SECTIONS)}"
        )
    examiner = Examiner(loaded, seed=seed, cache=cache, items=items, report=report)
    wanted = tuple(only or SECTIONS)
    kept = None if digest is None else KeptScores(cache, digest, release, seed=seed, items=items)
    done = {} if kept is None else dict(kept.sections)
    scores: dict[str, Score] = {}
    for name in wanted:
        if name not in done:
            done[name] = SECTIONS[name](examiner, release)
            if kept is not None:
                kept.add(name, done[name])
        scores |= done[name]
    if kept is not None:
        kept.drop(wanted)
    return scores
