"""Run benchmarks, one after the other, and write what came out into docs/measurements.md.

    python benchmarks/run.py --list       what there is, and how each is run by itself
    python benchmarks/run.py --short      all, a minute or so each, to see that they run; writes nothing
    python benchmarks/run.py patch swap   only these, in full
    python benchmarks/run.py              all of them in full, which takes hours

Each result of a full run replaces the block of its name in the page, where the page has one; the words around
the blocks stay as they are. Run it on a machine that does nothing else: the figures are medians, but no
median survives a busy neighbour. The first run of ``decode`` compiles llama.cpp, which takes minutes.
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
# The slow peers of patches take hours on all pairs: benchmarks/patch runs them when asked to.
FULL: dict[str, tuple[str, ...]] = {
    "patch": ("--no-slow", "--rounds", "1"),
    "hub": ("--no-slow",),
    "rollouts": (),
    "swap": (),
    "swap_stream": (),
    "swap_memory": (),
    "swap_torture": (),
    "engine": (),
    "serving": (),
    "model": ("latency", "estimate"),
    "attention": (),
    "decode": (),
    "gateway": (),
}
SHORT: dict[str, tuple[str, ...]] = {
    "patch": ("--pairs", "release", "--no-slow", "--rounds", "1"),
    "hub": ("--only", "checks", "--no-slow"),
    "rollouts": ("--rollouts", "200"),
    "swap": ("--streams", "4", "--repeats", "1"),
    "swap_stream": ("--clients", "4", "--rounds", "1"),
    "swap_memory": ("--changed", "1"),
    "swap_torture": ("--swaps", "2", "--requests", "60", "--clients", "4"),
    "engine": ("--cancelled", "300"),
    "serving": ("--rate", "1", "--duration", "5"),
    "model": ("latency", "estimate", "--requests", "5"),
    "attention": ("--sizes", "nano", "--contexts", "2048", "4096", "--repeats", "3"),
    "decode": ("--shapes", "nano", "--threads", "1", "--rounds", "1", "--no-transformers"),
    "gateway": ("--rounds", "5", "--updates", "1"),
}


def script(name: str) -> Path:
    """Return the program of a benchmark: a file, or a directory with a ``__main__.py``."""
    directory = ROOT / "benchmarks" / name
    return directory if directory.is_dir() else directory.with_suffix(".py")


def measure(name: str, arguments: tuple[str, ...]) -> str:
    """Run one benchmark and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "COLUMNS": "110"}
    command = [sys.executable, str(script(name)), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.rstrip()


def machine() -> str:
    """Describe where the figures come from."""
    load = os.getloadavg()[0]
    day = datetime.now(UTC).date().isoformat()
    cores, python = f"{os.cpu_count()} cores ({platform.machine()})", f"Python {platform.python_version()}"
    return f"{day}, {cores}, {python}, load {load:.1f} before it"


def put(page: str, name: str, result: str) -> str:
    """Return the page with the block of ``name`` replaced, where it has one."""
    block = f"<!-- {name} -->\n```text\n{result}\n```\n<!-- /{name} -->"
    page, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, page, flags=re.DOTALL)
    if count > 1:
        sys.exit(f"error: {PAGE} has {count} blocks for {name}, not one")
    return page


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=(*FULL, []), help="which; all when none is named")
    parser.add_argument("--short", action="store_true", help="a minute or so each; writes nothing")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    asked = parser.parse_args()
    for name in asked.names or FULL:
        arguments = (SHORT if asked.short else FULL)[name]
        if asked.list:
            print("python", script(name).relative_to(ROOT), *arguments)
            continue
        where = machine()
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = measure(name, arguments)
        print(result)
        if not asked.short:
            PAGE.write_text(put(PAGE.read_text(), name, f"{where}\n\n{result}"))


if __name__ == "__main__":
    main()
