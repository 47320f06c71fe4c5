"""How much one hub carries: update checks, reports, downloads, builds, and how fast a halt arrives.

    python benchmarks/hub                                 # a few minutes; Markdown tables
    python benchmarks/hub --only checks --rounds 9
    python benchmarks/hub --no-slow                       # fewer and shorter rounds
    python benchmarks/hub --database-url postgresql://admin@database/postgres

Servers and the load generator (wrk) are pinned to different cores. What is compared runs in turns, so that a
busy machine slows all alike; figures are medians over the rounds. CPU time is read from the server's process,
so it says what a request costs also where neighbours take part of the core. PostgreSQL is started on this
machine, with its defaults (every commit synced), when no address is given and it is installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import building
import checks
import database
import downloads
import halts
from table import Table
from world import make_world

PARTS = ("checks", "downloads", "builds", "halts")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS], help="only these parts")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each measurement takes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each turn")
    parser.add_argument("--no-slow", action="store_true", help="three rounds of one second, fewer builds")
    parser.add_argument("--database-url", help="of a PostgreSQL that lets us create databases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.no_slow:
        options.rounds, options.seconds = min(3, options.rounds), min(1.0, options.seconds)
    return options


def measure(options: argparse.Namespace, scratch: Path, made: database.Databases) -> Iterator[Table]:
    """Yield the tables, one after another."""
    parts: dict[str, Callable[[], Iterator[Table]]] = {
        "checks": lambda: checks.measure(make_world(scratch / "checks"), options.rounds, options.seconds),
        "downloads": lambda: downloads.measure(scratch / "downloads", options.rounds, options.seconds),
        "builds": lambda: building.measure(scratch / "builds", made.fresh(), 4 if options.no_slow else 12),
        "halts": lambda: halts.measure(scratch / "halts", made.fresh(), 5 if options.no_slow else 20),
    }
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        yield from parts[name]()


def main() -> None:
    """Parse, measure, print."""
    options = parse()
    if not shutil.which("wrk"):
        sys.exit("error: this needs wrk (apt-get install wrk)")
    with tempfile.TemporaryDirectory() as scratch, database.databases(options.database_url) as made:
        found: dict[str, object] = {}
        for table in measure(options, Path(scratch), made):
            found[table.title] = table.as_json()
            if not options.json:
                print(table.markdown(), end="\n\n", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
