"""How long a halt takes to reach another hub on the same database."""

from __future__ import annotations

import argparse
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from autoglm.hub import Hub, HubConfig
from autoglm.releases import UpdateRequest
from table import Table
from world import NEW, OLD, make_world

_ASKING = UpdateRequest("halt-probe", OLD)
_PATIENCE_S = 30.0


def measure(directory: Path, databases: dict[str, str | None], rounds: int) -> Iterator[Table]:
    """Yield one table: milliseconds from the call that pauses a roll-out to the other hub's last offer."""
    table = Table("A halt reaches a second hub", ("database", "median ms", "worst ms"))
    for name, url in databases.items():
        times = _rounds(directory / name.lower(), url, rounds)
        table.rows.append((name, f"{statistics.median(times):.1f}", f"{max(times):.1f}"))
    table.remarks.append(
        f"Two hubs in two processes, the second asked a thousand times a second; {rounds} halts."
    )
    yield table


def _rounds(directory: Path, url: str | None, rounds: int) -> list[float]:
    config = HubConfig(make_world(directory, database_url=url).directory, database_url=url)
    command = [sys.executable, __file__, str(config.directory), *([url] if url else [])]
    times: list[float] = []
    with Hub.open(config) as hub, subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        rollout = next(each for each in hub.rollouts() if each.version == NEW)
        for _ in range(rounds):
            assert other.stdout.readline() == "offered\n"
            began = time.monotonic()  # one clock for all processes of a machine
            hub.set_rollout_state(rollout.id, "paused")
            times.append(1000 * (float(other.stdout.readline()) - began))
            hub.set_rollout_state(rollout.id, "active")
        other.stdin.close()
    return times


def watch(config: HubConfig) -> None:
    """Say when the offer comes and when it is gone, until standard input closes."""
    with Hub.open(config) as hub:
        offered = False
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            now_offered = hub.check(_ASKING).target_version == NEW
            if now_offered != offered:
                offered, deadline = now_offered, time.monotonic() + _PATIENCE_S
                print("offered" if offered else time.monotonic(), flush=True)
            time.sleep(0.001)
            if select.select([sys.stdin], [], [], 0)[0]:
                return  # whoever asks has closed it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("database_url", nargs="?")
    given = parser.parse_args()
    watch(HubConfig(given.directory, database_url=given.database_url))
