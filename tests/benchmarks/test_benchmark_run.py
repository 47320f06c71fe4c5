"""The one program that runs all benchmarks: it knows them all, and how to run each in short."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# These measure releases or trained weights that must be given or made first; they say how by themselves.
BY_HAND = {"adapters", "local_adapters"}


def load_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = load_run()


def programs() -> dict[str, Path]:
    """Every program under benchmarks/, by the name of its file or directory."""
    folder = ROOT / "benchmarks"
    found = {path.parent.name: path for path in folder.glob("*/__main__.py")}
    found |= {path.stem: path for path in folder.glob("*.py") if "ArgumentParser(" in path.read_text()}
    return {name: path for name, path in found.items() if name != "run"}


def options(path: Path) -> set[str]:
    """The options that a program declares."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call.args for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    return {arg.value for args in named for arg in args if isinstance(arg, ast.Constant)}


def test_every_benchmark_is_listed() -> None:
    """What lies in benchmarks/ is run by run.py, in full and in short, or stands by itself for a reason."""
    assert set(RUN.FULL) == set(RUN.SHORT) == programs().keys() - BY_HAND


@pytest.mark.parametrize("name", sorted(RUN.FULL))
def test_the_arguments_are_options_of_the_program(name: str) -> None:
    """Neither form names an option that the program does not have."""
    known = options(programs()[name])
    for argument in (*RUN.FULL[name], *RUN.SHORT[name]):
        assert not argument.startswith("--") or argument in known, f"{name} has no {argument}"


def test_the_commands_can_be_listed() -> None:
    """--list prints what each is run by, and runs nothing."""
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--short", "--list", "swap", "serving"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "python benchmarks/swap.py --streams 4 --repeats 1",
        "python benchmarks/serving --rate 1 --duration 5",
    ]


def test_a_page_without_a_block_stays_as_it_is() -> None:
    """A result has its place in the page where the page has one; two places are an error."""
    page = "a\n<!-- swap -->\nold\n<!-- /swap -->\nb"
    assert RUN.put(page, "engine", "new") == page
    assert "new" in RUN.put(page, "swap", "new") and "old" not in RUN.put(page, "swap", "new")
    with pytest.raises(SystemExit, match="2 blocks"):
        RUN.put(page + page, "swap", "new")
