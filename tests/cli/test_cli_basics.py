"""Help, exit statuses, errors of one line, and no heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import autoglm as package
from autoglm.cli import build_app


def commands() -> list[tuple[str, ...]]:
    """Every verb with its group."""

    def walk(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [path]
        return [found for name, each in inner.items() for found in walk(each, (*path, name))]

    return walk(typer.main.get_command(build_app()), ())


def test_the_promised_verbs_are_there() -> None:
    """Every verb of the design exists."""
    promised = {
        *[("serve",), ("publish",), ("diff",), ("patch",), ("inspect",), ("chat",), ("doctor",)],
        *[("device", verb) for verb in ("run", "check", "update", "status", "rollback")],
        *[("rollout", verb) for verb in ("create", "status", "pause", "resume", "abort")],
        *[("release", "list"), ("model", "size")],
    }
    assert promised <= set(commands())


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_verb_explains_itself(path: tuple[str, ...]) -> None:
    """The help of each verb has a sentence, an example, and a sentence for each option."""
    command = typer.main.get_command(build_app())
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    assert command.help
    assert "autoglm " + " ".join(path) in command.help, "no example"
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


def test_help_and_version_work(autoglm: Any) -> None:
    """``--help`` lists the verbs; ``--version`` prints it; nothing at all shows the help."""
    assert "publish" in autoglm("--help").output
    assert autoglm("--version").output.strip() == package.__version__
    nothing = autoglm()
    assert "publish" in nothing.output + nothing.error


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("serve", "--nonsense"), ("rollout", "create"), ("serve", "--port", "x")]
)
def test_a_wrong_command_line_is_status_2(autoglm: Any, arguments: tuple[str, ...]) -> None:
    """Usage errors say how it is used."""
    result = autoglm(*arguments)
    assert result.status == 2
    assert "Usage" in result.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--config", "none.yaml"), ["none.yaml"]),
        (("publish", "x.wpatch", "--hub", "http://127.0.0.1:1"), ["--token"]),
        (("publish", "x.wpatch", "--hub", "http://127.0.0.1:1", "--data", "d"), ["not both"]),
        (("rollout", "status", "--data", "nowhere"), ["nowhere", "autoglm serve"]),
        (("rollout", "status", "--hub", "http://127.0.0.1:1", "--token", "t"), ["not reached"]),
        (("rollout", "status", "--hub", "ftp://x", "--token", "t"), ["ftp://x"]),
        (("device", "status", "--data", "nowhere"), ["nowhere"]),
        (("device", "check", "--hub", "http://example.com", "--data", "d"), ["plain http"]),
        (("device", "run", "--listen", "nonsense", "--hub", "http://127.0.0.1:1"), ["HOST:PORT"]),
        (("chat", "hi", "--url", "http://127.0.0.1:1"), ["not reached"]),
        (("chat", "hi", "--url", "http://127.0.0.1:1", "--image", "none.png"), ["none.png"]),
        (("inspect", "none.wpatch"), ["none.wpatch"]),
    ],
)
def test_an_error_is_one_line_and_status_1(
    autoglm: Any, arguments: tuple[str, ...], words: list[str]
) -> None:
    """What goes wrong is said in one line that starts with ``error:`` and names the thing."""
    result = autoglm(*arguments)
    assert result.status == 1, result
    assert result.error.startswith("error: ")
    assert len(result.error.splitlines()) == 1
    for word in words:
        assert word in result.error


def test_a_process_ends_with_the_status(tmp_path: Path) -> None:
    """The real command gives one line and status 1; AUTOGLM_DEBUG=1 keeps the traceback."""
    command = [sys.executable, "-m", "autoglm.cli", "serve", "--config", "none.yaml"]
    for environment, words in (({}, "error: "), ({"AUTOGLM_DEBUG": "1"}, "Traceback")):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(words)


HEAVY = ("torch", "numpy", "fastapi", "sqlalchemy", "yaml", "PIL")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["device", "--help"],
        ["device", "status", "--data", "."],
        ["device", "check", "--hub", "http://127.0.0.1:1", "--data", "d"],
    ],
)
def test_a_phones_verbs_need_no_heavy_library(tmp_path: Path, arguments: list[str]) -> None:
    """Help, and the device's verbs when told everything, run where torch and FastAPI are missing."""
    program = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "from autoglm.cli import main\n"
        f"main({arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "not installed" not in done.stderr
    assert done.returncode == (1 if "check" in arguments else 0), done.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """Where FastAPI is missing, ``serve`` says which extra brings it."""
    (tmp_path / "c.yaml").write_text("port: 0\n")
    program = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "from autoglm.cli import main\n"
        "main(['serve', '--config', 'c.yaml'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "autoglm-phone[service]" in done.stderr
