#!/usr/bin/env python3
"""The hot-update scheduler: keep a device's model up to date against the hub of config.yaml.

    python3 model_updater.py [--every 6h] [--data DIR] [--listen HOST:PORT] ...

It is ``autoglm device run`` with the settings beside this file; all arguments pass through. Started with
any Python, from any directory or through a link, it continues in the project's own environment.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"


def main() -> None:
    """Continue in the project's environment and run the device agent."""
    if Path(sys.prefix).resolve() != ENVIRONMENT:
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            sys.exit(
                f"error: the project is not set up yet: run `sh {ROOT / 'run_autoglm_server.sh'}` once first"
            )
        os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])

    from autoglm.cli import main as autoglm

    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] in ("--hub", "--config") for argument in arguments):
        arguments = ["--config", str(ROOT / "config.yaml"), *arguments]
    autoglm(["device", "run", *arguments])


if __name__ == "__main__":
    main()
