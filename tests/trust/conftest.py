"""A hub's repository, an operator with keys of his own, and a thief."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autoglm.trust.authority import establish
from autoglm.trust.repository import Repository
from autoglm.trust.shelf import Shelf
from trust.signers import Clock, Lab, Thief, package, release


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lab(tmp_path: Path, clock: Clock) -> Lab:
    """Offline keys in ``room/keys``, online keys and metadata at the hub, v1.2 and its package published."""
    room, hub = tmp_path / "room", tmp_path / "hub"
    hub.mkdir()
    establish(Shelf(hub / "metadata"), room / "keys", hub / "online", clock.now())
    lab = Lab(tmp_path, clock, Repository.open(hub, clock=clock))
    lab.publish(release("v1.2", 12))
    lab.repository.add_packages([package("full", "v1.2")])
    return lab


@pytest.fixture
def thief(lab: Lab) -> Callable[..., Thief]:
    """Steal the online keys of these roles: ``thief("snapshot", "timestamp")``."""
    return lambda *roles: Thief(lab, *roles)
