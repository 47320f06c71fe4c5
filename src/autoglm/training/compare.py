"""Scores and bytes of several models side by side: what a student, and its quantised form, lost.

The mean is over the shares of right answers, which have a chance level: those of news (``new_``) count from
v1.3 on, and what has none, such as valid grammar or thoughts kept out, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoglm.model.weights import LoadedModel
from autoglm.training.dialogue import Release
from autoglm.training.evaluation import Score, evaluate
from autoglm.training.sources import read_source


@dataclass(frozen=True)
class Comparison:
    """One model's place in a comparison.

    Attributes:
        model: its directory.
        parameters: trained values and stored statistics.
        bytes: of its weights: as stored in a release, in bf16 otherwise.
        scores: by name.
        counted: names of the scores in the mean.
    """

    model: Path
    parameters: int
    bytes: int
    scores: Mapping[str, Score]
    counted: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean of the scores that count, 0 to 1."""
        return sum(self.scores[name].value for name in self.counted) / len(self.counted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {
            "model": str(self.model),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "mean": self.mean,
            "scores": scores,
        }


def compare_models(
    models: Sequence[Path],
    *,
    release: Release,
    cache: Path,
    only: Sequence[str] = (),
    items: int | None = None,
) -> list[Comparison]:
    """Score each model on the same held-out items.

    Args:
        models: runs, pruned models or releases.
        release: whose answers are right.
        cache: directory that keeps synthesised clips and rendered pages.
        only: sections of the evaluation; all if none is named.
        items: about how many items of a kind; None for the usual numbers.

    Raises:
        ConfigError: a directory holds no model, or there is no such section.
        FormatError: a file is missing or damaged.
        EngineError: a weight of a release is missing, unknown, of a wrong shape, or not finite.
    """
    ask = partial(evaluate, release=release, cache=cache, only=only, items=items)
    return [_compared(model, release, ask) for model in models]


def _compared(model: Path, release: Release, ask: Callable[[LoadedModel], dict[str, Score]]) -> Comparison:
    source = read_source(model)
    scores = ask(source.load())
    counted = tuple(name for name, score in scores.items() if _counts(name, score, release))
    parameters = sum(tensor.numel() for tensor in source.state.values())
    return Comparison(model, parameters, source.stored_bytes, scores, counted)


def _counts(name: str, score: Score, release: Release) -> bool:
    return score.chance is not None and (release != "v1.2" or not name.startswith("new_"))
