"""Environments of their own for clients whose pins clash with the project's.

    python tests/clients/environment.py litellm          makes it if need be, prints its interpreter

Each is ``build/clients/NAME/``, made from the full list of pins ``NAME.txt`` beside this file: installed
without a resolver, so what is tried is what stands there. A stamp over the pins and the interpreter decides
whether anything is done, and a lock keeps two test runs out of each other's way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = HERE.parents[1] / "build" / "clients"
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.txt")))


def client_python(name: str) -> Path:
    """Return the interpreter of the environment ``name``, which is made where it is missing or outdated.

    Raises:
        RuntimeError: pip could not install it; its own words are in the message.
    """
    place = PLACE / name
    python, stamp = place / "bin" / "python", place / "stamp"
    with _lock(name):
        wanted = _fingerprint(name)
        if not (stamp.is_file() and stamp.read_text() == wanted):
            shutil.rmtree(place, ignore_errors=True)
            _make(place, HERE / f"{name}.txt")
            stamp.write_text(wanted)
    return python


def _make(place: Path, pins: Path) -> None:
    venv.create(place)
    command = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet"]
    options = ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--requirement", pins]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"no environment for {pins.stem} could be made (is the package index reachable?):\n{done.stderr}"
        )


def _fingerprint(name: str) -> str:
    basis = f"{sys.version}\n{PLACE}\n{(HERE / f'{name}.txt').read_text()}"
    return hashlib.sha256(basis.encode()).hexdigest()


@contextmanager
def _lock(name: str) -> Iterator[None]:
    PLACE.mkdir(parents=True, exist_ok=True)
    handle = os.open(PLACE / f"{name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        print(client_python(wanted))
