"""The walls of the house: who may import whom, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOUNDATION = {"errors", "releases", "files", "memory"}

# Each part, and the parts that it may import besides itself and the foundation.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "memory": set(),
    "releases": {"errors", "files"},
    "patch": set(),
    "trust": {"patch"},
    "hub": {"patch", "trust"},
    "device": {"patch", "trust"},
    "model": set(),
    "training": {"model", "patch"},
    "engine": {"model"},
    "service": {"patch", "trust", "hub", "device", "model", "engine"},
    "simulation": {"patch", "hub", "service"},
    "cli": {"patch", "trust", "hub", "device", "model", "training", "engine", "service", "simulation"},
}

# Heavy libraries, and the only parts that may import them. None else may even name them.
RESERVED = {
    "torch": {"model", "training", "engine"},
    "fastapi": {"service"},
    "sqlalchemy": {"hub"},
    "typer": {"cli"},
}

# Besides these and the standard library, nothing reaches a phone.
ON_DEVICE = {"urllib3", "backports", "compression", "tuf", "securesystemslib", "autoglm"}

# The verifying side of trust; the other modules sign, and stay off the phone.
VERIFYING = {"client", "documents", "floor", "roles", "targets"}


def part_of(path: Path, package: Path) -> str:
    relative = path.relative_to(package)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide what is imported"
            yield node.lineno, node.module or ""
            if node.module == "autoglm":
                for alias in node.names:
                    yield node.lineno, f"autoglm.{alias.name}"


@pytest.fixture(scope="module")
def sources(project_root: Path) -> list[tuple[str, Path, list[tuple[int, str]]]]:
    package = project_root / "src" / "autoglm"
    return [
        (part_of(path, package), path, list(imports(path)))
        for path in sorted(package.rglob("*.py"))
        if path.parent != package or path.name != "__init__.py"
    ]


def test_imports_point_down(sources: list[tuple[str, Path, list[tuple[int, str]]]]) -> None:
    """No part imports one that lies above it or beside it."""
    for part, path, found in sources:
        assert part in ALLOWED, f"{path}: a new part needs its place in the drawing"
        below = ALLOWED[part] | {part} | (FOUNDATION if part not in FOUNDATION else set())
        for line, name in found:
            if name.startswith("autoglm.") and name != "autoglm.__version__":
                assert name.split(".")[1] in below, f"{path}:{line}: {part} must not import {name}"


def test_heavy_libraries_stay_in_their_parts(sources: list[tuple[str, Path, list[tuple[int, str]]]]) -> None:
    """torch, FastAPI, SQLAlchemy and typer are imported only where they belong."""
    for part, path, found in sources:
        for line, name in found:
            allowed = RESERVED.get(name.split(".")[0])
            assert allowed is None or part in allowed, f"{path}:{line}: {part} must not import {name}"


def test_what_reaches_a_phone_needs_no_more_than_a_phone_has(
    sources: list[tuple[str, Path, list[tuple[int, str]]]],
) -> None:
    """The device SDK, and all it imports, use the standard library, tuf, urllib3 and zstd alone."""
    for part, path, _ in sources:
        if part not in {"device", "trust", *FOUNDATION} or (part == "trust" and path.stem not in VERIFYING):
            continue
        for line, name in imports(path):
            root = name.split(".")[0]
            signing = name.startswith("autoglm.trust.") and name.split(".")[2] not in VERIFYING
            assert not signing, f"{path}:{line}: {name} signs: it has no place on a phone"
            assert root in ON_DEVICE or root in sys.stdlib_module_names, f"{path}:{line}: {name}"


def test_importing_the_device_sdk_loads_nothing_heavy() -> None:
    """`import autoglm.device` leaves torch, numpy, FastAPI, SQLAlchemy and cryptography alone."""
    program = (
        "import sys, autoglm.device, autoglm.patch; "
        "heavy = ('torch', 'numpy', 'fastapi', 'sqlalchemy', 'pydantic', 'typer', 'tuf', 'cryptography'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_only_files_py_renames(sources: list[tuple[str, Path, list[tuple[int, str]]]]) -> None:
    """Renames and replaces, which need syncing around them, live in files.py alone."""
    for part, path, _ in sources:
        if part == "files":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"rename", "replace", "renames"}
                and (node.func.attr != "replace" or len(node.args) == 1)
                and ast.unparse(node.func.value) not in {"dataclasses", "copy"}
            ):
                # `dataclasses.replace(x, ...)`-like calls have the value as an argument, str.replace has two.
                assert node.keywords or not node.args, (
                    f"{path}:{node.lineno}: rename through autoglm.files, which makes it durable"
                )
