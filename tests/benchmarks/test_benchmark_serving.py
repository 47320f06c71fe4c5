"""The load generator asks when it is due, counts what comes, and hides nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from service.running import running_service, tiny_settings
from service.tiny import write_store


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    """A service on the tiny model that answers one at a time and lets one wait."""
    store = write_store(tmp_path_factory.mktemp("model"))
    settings = tiny_settings(
        store, tmp_path_factory.mktemp("busy"), limits={"queue": 1}, model={"max_batch": 1}
    )
    with running_service(settings) as service:
        yield service


def run(project_root: Path, *arguments: str) -> str:
    """Run the benchmark to its end."""
    command = [sys.executable, str(project_root / "benchmarks" / "serving"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_request_is_accounted_for(project_root: Path, busy: Any, tmp_path: Path) -> None:
    """Whole, refused and failed add up at each rate; a full queue shows as refusals; the plot is drawn."""
    picture = tmp_path / "load.svg"
    options = ("--rate", "2,60", "--duration", "2", "--mix", "chat=3,schema,voice", "--max-tokens", "40")
    report = json.loads(
        run(project_root, "--url", f"{busy.url}/v1", *options, "--json", "--plot", str(picture))
    )
    assert [entry["rate"] for entry in report["runs"]] == [2, 60]
    for entry in report["runs"]:
        for each in entry["kinds"].values():
            assert each["requests"] == each["whole"] + each["rejected"] + each["failed"]
        assert entry["kinds"]["all"]["failed"] == 0
    assert report["runs"][1]["kinds"]["all"]["rejected"] > 0
    assert report["runs"][1]["errors"]
    assert picture.read_text().startswith("<?xml")


def test_latency_counts_from_the_due_moment(project_root: Path) -> None:
    """Seeded arrivals are the same again, and what the generator was late is part of the latency."""
    program = (
        "import asyncio, sys, time; sys.path.insert(0, 'benchmarks/serving');"
        "from load import arrivals, run_load;"
        "assert arrivals(5, 9, 1) == arrivals(5, 9, 1) != arrivals(5, 9, 2);"
        "slow = lambda outcome: time.sleep(0.3);"  # the generator itself stalls after each answer
        "ask = run_load('http://127.0.0.1:9', 'k', [0.0] * 3, [('chat', b'{}')] * 3, 5, slow);"
        "outcomes = asyncio.run(ask);"
        "assert all(o.error and o.total_s >= o.lag_s for o in outcomes);"
        "print(max(o.total_s for o in outcomes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0.3
