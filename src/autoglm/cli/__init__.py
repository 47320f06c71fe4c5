"""The command line: ``autoglm VERB``; one file a verb, each parses, calls and prints.

What it guarantees: an error is one line on stderr and exit status 1 (130 after Ctrl-C, 2 for a wrong
command line), never a traceback unless ``AUTOGLM_DEBUG=1``; a verb imports what it needs when it runs, so
``autoglm --help`` is fast and the device's verbs work without torch and FastAPI.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from autoglm.errors import AutoGLMError

# What an extra brings, for the sentence that names it when it is missing.
_EXTRAS = {
    "typer": "cli",
    "rich": "cli",
    "torch": "engine",
    "numpy": "engine",
    "safetensors": "engine",
    "tokenizers": "engine",
    "PIL": "engine",
    "soundfile": "engine",
    "fastapi": "service",
    "uvicorn": "service",
    "sqlalchemy": "service",
    "cryptography": "service",
    "alembic": "service",
    "pydantic": "cli",
    "yaml": "service",
    "matplotlib": "train",
    "psycopg": "scale",
    "procrastinate": "scale",
    "obstore": "scale",
}
_COMMANDS = ("serve", "worker", "publish", "diff", "patch", "inspect", "chat", "doctor")
_GROUPS = ("release", "rollout", "engine", "fleet", "device", "token", "audit", "keys", "model")


def build_app() -> Any:
    """Return the typer application with every verb that is installed."""
    import typer

    app = typer.Typer(
        name="autoglm",
        help="AutoGLM-Phone: serve a model, publish new releases of it, and update devices over the air.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_version_option)
    for verb in _COMMANDS:
        if find_spec(f"autoglm.cli.{verb}") is not None:
            app.command(verb)(importlib.import_module(f"autoglm.cli.{verb}").command)
    for group in _GROUPS:
        if find_spec(f"autoglm.cli.{group}") is not None:
            app.add_typer(importlib.import_module(f"autoglm.cli.{group}").app, name=group)
    return app


def _version_option() -> None:
    """AutoGLM-Phone: serve a model, publish new releases of it, and update devices over the air."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process.

    Args:
        arguments: what to run; the process's own arguments when None.
    """
    debug = os.environ.get("AUTOGLM_DEBUG") == "1"
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given == ["--version"]:
            import autoglm

            print(autoglm.__version__)
            return
        build_app()(given, prog_name="autoglm")
    except AutoGLMError as error:
        if debug:
            raise
        _end(str(error), 1)
    except ModuleNotFoundError as error:
        if debug:
            raise
        _end(_missing(error), 1)
    except KeyboardInterrupt:
        if debug:
            raise
        _end("interrupted", 130)
    except OSError as error:
        if debug:
            raise
        _end(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 1)


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _missing(error: ModuleNotFoundError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        return f"the Python module {error.name!r} is missing: install the package again"
    return f"this needs {error.name!r}, which is not installed: pip install 'autoglm-phone[{extra}]'"
