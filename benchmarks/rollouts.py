"""How often the guard of roll-outs is wrong: false halts of good releases, bad releases let through.

Each simulated roll-out draws, for each device in the order in which it reports, whether the release fails on
it, and puts the guard's own question after every single report, as the hub does. Stages are as by default;
a small fleet passes those that nobody is in. Run it by ``python benchmarks/rollouts.py``.

A release is good when it fails on 0.5 % or 1 % of the devices, and bad from 5 % on; the threshold is 2 %.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from autoglm.hub.verdict import MIN_RESULTS, THRESHOLD, wilson_lower

FLEETS = (50, 1_000, 1_000_000)
RATES = (0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10, 0.30)
NUM_ROLLOUTS = 1_000
_BATCH = 4_096  # failures drawn at a time


@dataclass(frozen=True)
class Outcome:
    """What came of many roll-outs of one kind of release to one size of fleet.

    Attributes:
        fleet: devices.
        rate: share on which the release fails.
        halted: share of the roll-outs that were halted.
        median_failures: devices that had failed when it was halted, the median of those halted.
        median_results: devices that had reported by then.
    """

    fleet: int
    rate: float
    halted: float
    median_failures: float | None
    median_results: float | None


def halting_point(rng: np.random.Generator, fleet: int, rate: float) -> tuple[int, int] | None:
    """Run one roll-out; return (results, failures) when it is halted, None when it is not.

    The bound rises with failures only, so it is enough to look after each of them, and once when the number
    of results is reached from which a rate is judged at all.
    """
    results, failures = 0, 0
    while results < fleet:
        gaps = rng.geometric(rate, _BATCH)
        at = results + np.cumsum(gaps)
        count = failures + np.arange(1, _BATCH + 1)
        if failures == 0:
            early = int(np.sum(at <= MIN_RESULTS))
            if fleet >= MIN_RESULTS and wilson_lower(early, MIN_RESULTS) > THRESHOLD:
                return MIN_RESULTS, early
        judged = (at >= MIN_RESULTS) & (at <= fleet) & (wilson_lower(count, at) > THRESHOLD)
        if judged.any():
            first = int(np.argmax(judged))
            return int(at[first]), int(count[first])
        results, failures = int(at[-1]), failures + _BATCH
    return None


def simulate(fleet: int, rate: float, num_rollouts: int = NUM_ROLLOUTS, seed: int = 1) -> Outcome:
    """Run many roll-outs with a fixed seed."""
    rng = np.random.default_rng((seed, fleet, round(rate * 10_000)))
    found = [halting_point(rng, fleet, rate) for _ in range(num_rollouts)]
    halts = [point for point in found if point is not None]
    return Outcome(
        fleet,
        rate,
        len(halts) / num_rollouts,
        float(np.median([failures for _, failures in halts])) if halts else None,
        float(np.median([results for results, _ in halts])) if halts else None,
    )


def report(num_rollouts: int) -> str:
    """Return the table in Markdown."""
    lines = [
        "| fleet | release fails on | roll-outs halted | median failures at the halt | median results |",
        "|---|---|---|---|---|",
    ]
    for fleet in FLEETS:
        for rate in RATES:
            each = simulate(fleet, rate, num_rollouts)
            failures = "-" if each.median_failures is None else f"{each.median_failures:,.0f}"
            results = "-" if each.median_results is None else f"{each.median_results:,.0f}"
            lines.append(f"| {fleet:,} | {rate:.1%} | {each.halted:.1%} | {failures} | {results} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=NUM_ROLLOUTS, help="roll-outs of each kind")
    print(report(parser.parse_args().rollouts))


if __name__ == "__main__":
    main()
