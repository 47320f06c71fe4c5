"""How many packages a worker builds: many small releases, on each database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from autoglm.hub import Hub, HubConfig
from table import Table
from world import build_all, publish

_SIZE = 1 << 14  # so small that the work around the codec is what is measured


def measure(directory: Path, databases: dict[str, str | None], releases: int) -> Iterator[Table]:
    """Yield one table.

    Args:
        directory: for the hubs.
        databases: their addresses by name; None is the hub's own SQLite.
        releases: that are published first; each has patches from those before.
    """
    table = Table("Builds of small packages", ("database", "packages", "packages/s", "publications/s"))
    for name, url in databases.items():
        place = directory / name.lower()
        with Hub.open(HubConfig(place / "hub", database_url=url)) as hub:
            began = time.perf_counter()
            for counter in range(1, releases + 1):
                publish(hub, place, f"v1.{counter}", counter, _SIZE)
            published_s = time.perf_counter() - began
            began = time.perf_counter()
            count = build_all(hub.config)
            built_s = time.perf_counter() - began
        table.rows.append((name, str(count), f"{count / built_s:.1f}", f"{releases / published_s:.1f}"))
    table.remarks.append(
        "One worker. Each package is made, tried out, signed and put into the ledger; each publication is "
        "applied, verified and signed, and here also made."
    )
    yield table
