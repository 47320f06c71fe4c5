"""How often the guard is wrong, over a thousand roll-outs of each kind under continuous monitoring."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from autoglm.hub.verdict import Counts, halt_reason


@pytest.fixture(scope="module")
def benchmark(project_root: Path) -> ModuleType:
    """``benchmarks/rollouts.py``, which is run and not installed."""
    path = project_root / "benchmarks" / "rollouts.py"
    spec = importlib.util.spec_from_file_location("rollout_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("fleet", "rate", "low", "high"),
    [
        (50, 0.005, 0.0, 0.01),
        (50, 0.01, 0.0, 0.05),
        (50, 0.10, 0.8, 1.0),
        (50, 0.30, 0.999, 1.0),
        (1_000, 0.005, 0.0, 0.01),
        (1_000, 0.01, 0.0, 0.05),
        (1_000, 0.05, 0.99, 1.0),
        (1_000_000, 0.005, 0.0, 0.015),
        (1_000_000, 0.01, 0.0, 0.05),
        (1_000_000, 0.03, 0.999, 1.0),
    ],
)
def test_good_releases_pass_and_bad_ones_are_halted(
    benchmark: ModuleType, fleet: int, rate: float, low: float, high: float
) -> None:
    """At half the allowed rate few roll-outs halt falsely; well above it nearly none gets through."""
    assert low <= benchmark.simulate(fleet, rate).halted <= high


def test_the_simulation_puts_the_guards_own_question(benchmark: ModuleType) -> None:
    """Looking after failures only gives the answer that asking the guard after every report gives."""
    for seed in range(60):
        fleet, rate = 400, 0.04
        found = benchmark.halting_point(np.random.default_rng(seed), fleet, rate)
        gaps = np.random.default_rng(seed).geometric(rate, 4096)
        fails = {int(place) for place in np.cumsum(gaps)}
        failed, expected = 0, None
        for results in range(1, fleet + 1):
            failed += results in fails
            if halt_reason(Counts(succeeded=results - failed, failed=failed), (), 0.02) is not None:
                expected = (results, failed)
                break
        assert found == expected, seed
