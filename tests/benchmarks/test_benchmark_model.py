"""The benchmarks of the model: what they estimate follows from counts, what they cannot measure they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def printed(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def test_a_9b_is_estimated_from_bytes_and_labelled_so() -> None:
    """Every recipe stands beside every machine, the label first, and more bandwidth takes less time."""
    first, _, *lines = printed("model.py", "estimate").splitlines()
    assert first.startswith("estimate, not measured")
    totals = [int(line.split()[-2]) for line in lines]
    assert len(totals) == 8
    assert totals[:4] == sorted(totals[:4], reverse=True)


def test_the_gate_is_timed_beside_dense_in_one_run() -> None:
    """Attention, prefill and step have a line each, nothing saved where the configuration is dense."""
    arguments = ("--sizes", "nano", "--contexts", "768", "--piece", "32", "--repeats", "1")
    lines = printed("attention.py", *arguments).splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["attention", "prefill", "step"]
    assert all(line.endswith(" 0.0%") for line in lines)
