"""Tiny real releases and the packages between them, made once with the codec, and a hub to put them in."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autoglm import patch
from autoglm.hub import Hub, HubConfig
from autoglm.releases import HealthCheck, Manifest

NUM_WEIGHTS = 4096


@dataclass
class World:
    """Releases v1.1 to v1.3 (counters 11 to 13) as directories, and packages as files.

    Attributes:
        releases: by version.
        full: full packages by version.
        patches: by (from, to).
        other: a full package that also calls itself v1.3, with other weights.
    """

    releases: dict[str, Path] = field(default_factory=dict[str, Path])
    full: dict[str, Path] = field(default_factory=dict[str, Path])
    patches: dict[tuple[str, str], Path] = field(default_factory=dict[tuple[str, str], Path])
    other: Path = Path()

    def manifest(self, version: str) -> Manifest:
        return Manifest.read(self.releases[version])


def write_release(
    directory: Path,
    version: str,
    counter: int,
    seed: int,
    *,
    ancestor: int = 0,
    health: bytes | None = None,
    **names: str,
) -> Path:
    """Write a release of one INT8 matrix; seeds differ in a tenth of the weights, ancestors in all."""
    directory.mkdir(parents=True)
    weights, change = bytearray(random.Random(ancestor).randbytes(NUM_WEIGHTS)), random.Random(seed)
    for _ in range(NUM_WEIGHTS // 10):
        place = change.randrange(NUM_WEIGHTS)
        weights[place] = (weights[place] + change.choice((1, 255))) % 256
    tensor = {"dtype": "I8", "shape": [NUM_WEIGHTS // 64, 64], "data_offsets": [0, NUM_WEIGHTS]}
    header = json.dumps({"w": tensor}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    (directory / "config.json").write_text("{}")
    (directory / "health.json").write_bytes(HealthCheck().to_bytes() if health is None else health)
    named = {"model": "autoglm-phone-9b", "variant": "nano-int8", "name": "nano"} | names
    manifest = Manifest.of_directory(directory, version=version, counter=counter, **named)
    (directory / "manifest.json").write_bytes(manifest.to_bytes())
    return directory


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World()
    for counter in (11, 12, 13):
        version = f"v1.{counter - 10}"
        made.releases[version] = write_release(root / version, version, counter, counter)
        made.full[version] = root / f"{version}.wpatch"
        patch.diff(None, made.releases[version], made.full[version])
    for pair in (("v1.1", "v1.2"), ("v1.2", "v1.3")):
        made.patches[pair] = root / f"{pair[0]}-{pair[1]}.wpatch"
        patch.diff(made.releases[pair[0]], made.releases[pair[1]], made.patches[pair])
    made.other = root / "other.wpatch"
    patch.diff(None, write_release(root / "other", "v1.3", 13, 99), made.other)
    return made


@pytest.fixture
def package_of(tmp_path: Path) -> Callable[..., Path]:
    """Make a full package of a new release: ``package_of(version, counter, **names)``."""

    def make(version: str, counter: int, *, seed: int = 5, **more: Any) -> Path:
        directory = tmp_path / f"new-{version}-{counter}-{seed}"
        out = directory.with_suffix(".wpatch")
        patch.diff(None, write_release(directory, version, counter, seed, **more), out)
        return out

    return make


@pytest.fixture
def make_release() -> Callable[..., Path]:
    """The writer of releases: ``make_release(directory, version, counter, seed)``."""
    return write_release


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str | None:
    """The hub's ``database_url``: SQLite unless the test asks for :data:`both_databases`."""
    kind = getattr(request, "param", "sqlite")
    return request.getfixturevalue("postgres_url") if kind == "postgresql" else None


@pytest.fixture
def config(tmp_path: Path, backend: str | None) -> HubConfig:
    return HubConfig(tmp_path / "hub", database_url=backend)


@pytest.fixture
def hub(config: HubConfig, clock: Clock) -> Iterator[Hub]:
    with Hub.open(config, clock=clock) as opened:
        yield opened
