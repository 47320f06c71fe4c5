"""The benchmark of the hub runs: one short turn of its cheapest part, with real server and load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.needs("wrk")
def test_the_checks_are_measured_beside_a_bare_server(project_root: Path) -> None:
    """Every kind of check has a row, and what does nothing costs least."""
    command = [sys.executable, str(project_root / "benchmarks" / "hub"), "--only", "checks", "--json"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--seconds", "1"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)["Update checks on one core"]
    assert [row["what"] for row in rows][:3] == [
        "bare ASGI application",
        "bare route of the framework",
        "check, nothing to do",
    ]
    assert all(float(row["CPU µs a request"]) > 0 for row in rows)
