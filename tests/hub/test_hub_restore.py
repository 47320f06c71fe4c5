"""A hub that was restored from an old backup: devices refuse it, it says so, and they follow it again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import RollbackError
from autoglm.hub import Hub, HubConfig, raise_versions
from autoglm.releases import Manifest
from autoglm.trust.client import MetadataClient
from autoglm.trust.roles import release_path
from servers import name_of

World = Any
Clock = Any


class Phone:
    """A device's view of the signed metadata, which it keeps."""

    def __init__(self, directory: Path, root: bytes, clock: Clock) -> None:
        self._directory, self._root, self._clock = directory, root, clock
        directory.mkdir()

    def sees(self, hub: Hub, manifest: Manifest) -> str:
        """Refresh from the hub, and return the identity that is signed for a release."""
        client = MetadataClient(
            self._directory / "tuf",
            self._directory / "floor.json",
            read=lambda name, _limit: hub.trust.repository.read(name),
            root=self._root,
            now=lambda: datetime.fromtimestamp(self._clock(), UTC),
        )
        path = release_path(manifest.model, manifest.variant, manifest.version)
        return client.refresh().release(path).manifest_sha256


Restore = Callable[[], None]


@pytest.fixture(params=["sqlite", "postgresql"])
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, world: World, clock: Clock
) -> tuple[HubConfig, Phone, Restore]:
    """A hub with v1.2 that was backed up, then got v1.3, which a phone has seen."""
    config = HubConfig(tmp_path / "hub")
    if request.param == "postgresql":
        config = replace(config, database_url=request.getfixturevalue("postgres_url"))
    with Hub.open(config, clock=clock) as hub:
        hub.publish(world.full["v1.2"])
        phone = Phone(tmp_path / "phone", hub.trust.repository.root, clock)
    restore = _back_up(request, config, tmp_path / "backup")
    clock.now += 3600
    with Hub.open(config, clock=clock) as hub:
        hub.publish(world.patches["v1.2", "v1.3"])
        assert phone.sees(hub, world.manifest("v1.3")) == world.manifest("v1.3").sha256
    clock.now += 3600
    return config, phone, restore


def _back_up(request: pytest.FixtureRequest, config: HubConfig, backup: Path) -> Restore:
    if config.database_url is None:
        shutil.copytree(config.directory, backup)

        def put_back() -> None:
            shutil.rmtree(config.directory)
            shutil.copytree(backup, config.directory)

        return put_back
    server, url = request.getfixturevalue("postgres"), config.database_url
    copy = server.new_database(name_of(url))

    def copy_back() -> None:
        server.drop(url)
        server.new_database(name_of(copy), name_of(url))
        server.drop(copy)

    return copy_back


def test_devices_follow_a_restored_hub_again(
    scene: tuple[HubConfig, Phone, Restore], world: World, clock: Clock
) -> None:
    """Refused after the restore; followed when versions are raised and what was lost is published again."""
    config, phone, restore = scene
    restore()
    if config.database_url is not None:  # the machine was lost as well, but for its keys
        (config.directory / "trust" / "highest.json").unlink()
    with Hub.open(config, clock=clock) as hub, pytest.raises(RollbackError, match="backup"):
        phone.sees(hub, world.manifest("v1.2"))
    assert raise_versions(config, clock) == []
    with Hub.open(config, clock=clock) as hub:
        assert [release.manifest.version for release in hub.releases()] == ["v1.2"]
        hub.publish(world.patches["v1.2", "v1.3"])
        for version in ("v1.2", "v1.3"):
            assert phone.sees(hub, world.manifest(version)) == world.manifest(version).sha256


def test_a_restored_hub_notices_by_itself(
    scene: tuple[HubConfig, Phone, Restore],
    world: World,
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A machine that has signed higher versions than its metadata says so, and raises them at once."""
    config, phone, restore = scene
    kept = config.directory / "trust" / "highest.json"
    shutil.copy(kept, tmp_path / "highest.json")
    restore()
    shutil.copy(tmp_path / "highest.json", kept)
    with caplog.at_level(logging.WARNING), Hub.open(config, clock=clock) as hub:
        assert "comes from an old backup" in caplog.text
        hub.publish(world.patches["v1.2", "v1.3"])
        assert phone.sees(hub, world.manifest("v1.3")) == world.manifest("v1.3").sha256
    caplog.clear()
    with caplog.at_level(logging.WARNING), Hub.open(config, clock=clock):
        assert "backup" not in caplog.text
