"""Percentiles, tables and a plot of what became of the requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import Outcome

SHARES = (50, 95, 99)


@dataclass(frozen=True)
class Goal:
    """What a good answer is.

    Attributes:
        first_s: at most this until the first token.
        gap_s: at most this between two pieces, on average.
    """

    first_s: float
    gap_s: float

    def holds(self, outcome: Outcome) -> bool:
        """Whether an answer is whole and soon enough."""
        if outcome.error or outcome.first_s is None:
            return False
        gap = sum(outcome.gaps_s) / len(outcome.gaps_s) if outcome.gaps_s else 0.0
        return outcome.first_s <= self.first_s and gap <= self.gap_s


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` per cent of the values do not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def figures(outcomes: Sequence[Outcome], duration_s: float, goal: Goal) -> dict[str, Any]:
    """Return the figures of one set of requests; times in milliseconds."""
    whole = [outcome for outcome in outcomes if not outcome.error]
    spans = {
        "first": [outcome.first_s for outcome in whole if outcome.first_s is not None],
        "gap": [gap for outcome in whole for gap in outcome.gaps_s],
        "total": [outcome.total_s for outcome in whole],
    }
    end = max((outcome.due_s + outcome.total_s for outcome in outcomes), default=0.0)
    span = max(duration_s, end)
    return {
        "requests": len(outcomes),
        "whole": len(whole),
        "rejected": sum(outcome.is_rejected for outcome in outcomes),
        "failed": sum(bool(outcome.error) and not outcome.is_rejected for outcome in outcomes),
        **{
            f"{name}_p{share}_ms": _ms(percentile(values, share))
            for name, values in spans.items()
            for share in SHARES
        },
        "tokens_per_answer": round(sum(o.tokens for o in whole) / len(whole), 1) if whole else None,
        "tokens_per_s": round(sum(outcome.tokens for outcome in whole) / span, 1),
        "answers_per_s": round(len(whole) / span, 3),
        "good_per_s": round(sum(map(goal.holds, outcomes)) / span, 3),
        "generator_lag_p99_ms": _ms(percentile([outcome.lag_s for outcome in outcomes], 99)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)


def rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: one for each rate and kind."""
    head = ("rate", "kind", "asked", "whole", "reject", "fail", "first p50/95/99", "gap p50/95/99",
            "total p50/95/99", "tok", "tok/s", "good/s")  # fmt: skip
    lines = [head]
    for run in runs:
        for kind, each in run["kinds"].items():
            spans = [
                "/".join(_short(each[f"{name}_p{share}_ms"]) for share in SHARES)
                for name in ("first", "gap", "total")
            ]
            counts = [str(each[name]) for name in ("requests", "whole", "rejected", "failed")]
            rest = [str(each[name]) for name in ("tokens_per_answer", "tokens_per_s", "good_per_s")]
            lines.append((f"{run['rate']:g}", kind, *counts, *spans, *rest))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def plot(runs: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw latency and throughput over the rate, as SVG or PNG by the name of the file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rates = [run["rate"] for run in runs]
    every = [run["kinds"]["all"] for run in runs]
    picture, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, style in (("first", "-"), ("total", "--")):
        for share in (50, 95):
            label = f"{'first token' if name == 'first' else 'whole answer'} p{share}"
            left.plot(rates, [each[f"{name}_p{share}_ms"] for each in every], style, marker="o", label=label)
    left.set(xlabel="requests a second, offered", ylabel="ms from the due moment", yscale="log")
    right.plot(rates, rates, ":", color="grey", label="offered")
    for name, label in (("answers_per_s", "whole answers"), ("good_per_s", "within the goal")):
        right.plot(rates, [each[name] for each in every], marker="o", label=label)
    right.set(xlabel="requests a second, offered", ylabel="a second")
    for side in (left, right):
        side.grid(alpha=0.3)
        side.legend()
    picture.tight_layout()
    picture.savefig(target)
    plt.close(picture)
