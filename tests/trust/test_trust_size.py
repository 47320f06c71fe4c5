"""A check stays small, however many releases there are: 10,000 of them, with four packages each."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.trust import documents
from autoglm.trust.authority import establish
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import Repository
from autoglm.trust.roles import metadata_name
from autoglm.trust.shelf import Picture, Shelf
from trust.signers import Clock, Lab, package, release

NUM_RELEASES = 10_000
MAX_MOVED_BYTES = 50_000


@pytest.fixture(scope="module")
def crowded() -> Iterator[Lab]:
    """A hub with all of them, in memory where the system has such a place."""
    memory, clock = Path("/dev/shm"), Clock()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:
        room, hub = Path(root) / "room", Path(root) / "hub"
        hub.mkdir()
        establish(Shelf(hub / "metadata"), room / "keys", hub / "online", clock.now())
        lab = Lab(Path(root), clock, Repository.open(hub, clock=clock))
        picture = Picture.published(Shelf(lab.metadata))
        entries = (release(f"v{n}", n + 1).to_target() for n in range(NUM_RELEASES))
        signers = KeyRing([room / "keys"]).signers(picture.targets.get_delegated_role("releases").keyids)
        bins = picture.with_entries("releases", entries, clock.now())
        signed = {metadata_name(r, b.version): documents.sign(b, signers) for r, b in bins.items()}
        lab.repository.accept(signed)
        pairs = [
            (n, base)
            for n in range(4, NUM_RELEASES)
            for base in (None, f"v{n - 1}", f"v{n - 2}", f"v{n - 3}")
        ]
        lab.repository.add_packages([package(f"{base}-{n}", f"v{n}", base) for n, base in pairs])
        yield lab


@pytest.fixture
def moved(crowded: Lab) -> Any:
    """What crosses the wire: each file packed as the service sends it."""
    sizes: list[int] = []

    def read(name: str, _limit: int) -> bytes:
        content = crowded.repository.read(name)
        sizes.append(len(gzip.compress(content, 6)))
        return content

    return sizes, read


def test_a_check_after_one_publication_moves_little(crowded: Lab, moved: Any) -> None:
    """Timestamp, snapshot, and the bins of one release and two packages: below 50 KB packed."""
    sizes, read = moved
    device = crowded.device(read=read)
    last = release(f"v{NUM_RELEASES - 1}", NUM_RELEASES)
    device.refresh().release(last.path)
    sizes.clear()
    crowded.publish(release("v-next", NUM_RELEASES + 1))
    crowded.repository.add_packages(
        [package("new-full", "v-next"), package("new-patch", "v-next", f"v{NUM_RELEASES - 1}")]
    )
    verified = device.refresh()
    verified.release(last.path)  # whether the one that runs was called back
    verified.release(release("v-next", 1).path)
    for name in ("new-full", "new-patch"):
        verified.package(package(name, "v-next").sha256)
    print(f"{len(sizes)} files, {sum(sizes):,} bytes: {sizes}")
    assert sum(sizes) <= MAX_MOVED_BYTES


def test_a_first_check_moves_little_too(crowded: Lab, moved: Any) -> None:
    """A new device fetches no more than the same few bins."""
    sizes, read = moved
    verified = crowded.device("new", read).refresh()
    verified.release(release("v77", 78).path)
    verified.package(package("None-77", "v77").sha256)
    assert sum(sizes) <= MAX_MOVED_BYTES


def test_an_idle_check_moves_next_to_nothing(crowded: Lab, moved: Any) -> None:
    """Nothing is new: the timestamp alone."""
    sizes, read = moved
    device = crowded.device("idle", read)
    device.refresh()
    sizes.clear()
    device.refresh()
    assert (len(sizes), sum(sizes) < 1000) == (1, True)
