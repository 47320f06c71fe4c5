"""Run every benchmark and write what came out into docs/measurements.md.

    python benchmarks/run.py             all of them, some minutes on a quiet machine
    python benchmarks/run.py patch swap  only these

Each result replaces the block of its name in the page; the words around the blocks stay as they are. Run it
on a machine that does nothing else: the figures are medians, but no median survives a busy neighbour.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "measurements.md"
NAMES = ("patch", "swap", "attention", "hub")
# The slow peers take hours on all pairs; benchmarks/patch runs them when asked to.
ARGUMENTS = {"patch": ("--no-slow", "--rounds", "1"), "hub": ("--no-slow",)}


def measure(name: str) -> str:
    """Run one benchmark and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "COLUMNS": "110"}
    directory = ROOT / "benchmarks" / name
    script = directory if directory.is_dir() else directory.with_suffix(".py")
    command = [sys.executable, str(script), *ARGUMENTS.get(name, ())]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.rstrip()


def machine() -> str:
    """Describe where the figures come from."""
    load = os.getloadavg()[0]
    day = datetime.now(UTC).date().isoformat()
    cores, python = f"{os.cpu_count()} cores ({platform.machine()})", f"Python {platform.python_version()}"
    return f"{day}, {cores}, {python}, load {load:.1f} before it"


def put(page: str, name: str, result: str) -> str:
    """Return the page with the block of ``name`` replaced."""
    block = f"<!-- {name} -->\n```text\n{result}\n```\n<!-- /{name} -->"
    page, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"error: {PAGE} has {count} blocks for {name}, not one")
    return page


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=(*NAMES, []), help="which; all when none is named")
    for name in parser.parse_args().names or NAMES:
        where = machine()
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = measure(name)
        print(result)
        PAGE.write_text(put(PAGE.read_text(), name, f"{where}\n\n{result}"))


if __name__ == "__main__":
    main()
