"""Run a program in the environment of a client."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from clients.environment import client_python
from story.processes import DEADLINE_SECONDS

PROGRAMS = Path(__file__).resolve().parent / "programs"


def run_client(name: str, *command: str | Path, **environment: str) -> str:
    """Run a program in the environment of a client and return what it printed."""
    done = subprocess.run(
        [client_python(name), *command],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SECONDS,
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: pytest has failures to tell
    return done.stdout


def ask_client(name: str, program: str, url: str) -> dict[str, Any]:
    """Run one of the programs and return the JSON that it printed."""
    return json.loads(run_client(name, PROGRAMS / program, url))
