"""A base and its fine-tune, as files and as releases, and the packages between them; made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from autoglm import patch
from patch import tensors


@dataclass(frozen=True)
class Pair:
    """Never written to by a test."""

    old: Path
    new: Path
    package: Path
    full: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two safetensors files and the packages between them."""
    directory = tmp_path_factory.mktemp("models")
    old, new = tensors.pair(directory)
    made = Pair(old, new, directory / "p.wpatch", directory / "f.wpatch")
    patch.diff(old, new, made.package)
    patch.diff(None, new, made.full)
    return made


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory, models: Pair) -> Pair:
    """Two release directories and the packages between them."""
    directory = tmp_path_factory.mktemp("releases")
    old = tensors.release(directory / "v1.2", models.old, "v1.2")
    new = tensors.release(directory / "v1.3", models.new, "v1.3")
    made = Pair(old, new, directory / "p.wpatch", directory / "f.wpatch")
    patch.diff(old, new, made.package)
    patch.diff(None, new, made.full)
    return made


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of a tree by its path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
