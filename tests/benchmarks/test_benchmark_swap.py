"""The benchmarks of hot swaps, in short: nothing lost over HTTP, and only changed weights take memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(root: Path, name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(root / "benchmarks" / name), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("swaps", "requests"),
    [
        pytest.param(6, 200, id="short"),
        pytest.param(100, 10_000, id="long", marks=pytest.mark.long),
    ],
)
def test_no_answer_is_lost_or_torn_by_swaps_over_http(project_root: Path, swaps: int, requests: int) -> None:
    """Streams, choices, forms, pictures and pins: each is, to the character, its release's own answer."""
    found = run(project_root, "swap_torture.py", "--swaps", str(swaps), "--requests", str(requests))
    assert found["swaps"] >= swaps and found["requests"] >= requests
    assert (found["failed"], found["truncated"], found["torn"]) == (0, 0, 0), found["troubles"]
    assert found["engine_failed"] == 0
    assert found["patches_built"] > 0
    assert found["exit_status"] == 0
    busy, commits = map(int, found["commits_with_half_in_flight"].split(" of "))
    assert busy >= 0.95 * commits


def test_staging_takes_the_memory_of_what_changes(project_root: Path) -> None:
    """And at most 64 MiB more; the whole release would be much more than that."""
    found = run(project_root, "swap_memory.py")
    assert found["weights"] > found["allowed"] + (32 << 20)
    assert found["extra_peak"] <= found["allowed"]
