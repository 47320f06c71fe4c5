"""The hub and its signed metadata: nothing unsigned is in it, nothing called back is offered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ConflictError, NotFoundError, RevokedError, SignatureError
from autoglm.files import remove, sha256_file
from autoglm.hub import Hub, HubConfig
from autoglm.hub.worker import Worker
from autoglm.releases import Manifest, UpdateRequest
from autoglm.trust.authority import Authority
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import Repository
from autoglm.trust.roles import PATCHES, package_path
from autoglm.trust.shelf import Picture, Shelf
from autoglm.trust.targets import SignedPackage, SignedRelease

MODEL = ("autoglm-phone-9b", "nano-int8")


@pytest.fixture
def elsewhere(config: HubConfig, clock: Any, tmp_path: Path) -> Path:
    """A hub's directory whose offline keys lie elsewhere: here."""
    Repository.open(config.directory / "trust", clock=clock)
    keys = tmp_path / "keys"
    (config.directory / "trust" / "keys").rename(keys)
    return keys


@pytest.fixture
def strict(elsewhere: Path, config: HubConfig, clock: Any) -> Iterator[Hub]:
    """A hub without offline keys."""
    with Hub.open(config, clock=clock) as opened:
        yield opened


def authority(hub: Hub, keys: Path, clock: Any) -> Authority:
    from datetime import UTC, datetime

    picture = Picture.published(Shelf(hub.config.directory / "trust" / "metadata"))
    return Authority(picture, KeyRing([keys]), datetime.fromtimestamp(clock(), UTC))


def sign(hub: Hub, keys: Path, clock: Any, manifest: Manifest) -> None:
    hub.trust.accept(authority(hub, keys, clock).sign_release(SignedRelease.of(manifest)))


def signed(hub: Hub, sha256: str) -> SignedPackage | None:
    picture = Picture.published(Shelf(hub.config.directory / "trust" / "metadata"))
    target = picture.find(PATCHES, package_path(sha256))
    return None if target is None else SignedPackage.from_target(target)


def check(hub: Hub, version: str | None = None) -> Any:
    return hub.check(UpdateRequest("d1", version))


def test_an_unsigned_release_is_not_taken_in(strict: Hub, world: Any) -> None:
    """A publisher's token is not enough: the release key must have signed it."""
    with pytest.raises(SignatureError, match="--keys"):
        strict.publish(world.full["v1.1"], percent=100)
    assert strict.releases() == []


def test_a_signed_release_is_published_and_offered(
    strict: Hub, world: Any, elsewhere: Path, clock: Any
) -> None:
    """Signed first, then uploaded; its package is signed online, and the answer names the signature."""
    sign(strict, elsewhere, clock, world.manifest("v1.1"))
    strict.publish(world.full["v1.1"], percent=100)
    answer = check(strict)
    assert answer.manifest == "autoglm-phone-9b/nano-int8/v1.1/manifest.json"
    found = signed(strict, answer.sha256)
    assert found is not None
    assert (found.manifest_sha256, found.base_sha256) == (world.manifest("v1.1").sha256, None)
    assert (found.header_length, found.header_sha256) == (answer.header_length, answer.header_sha256)


def test_another_release_under_signed_names_is_refused(
    strict: Hub, world: Any, elsewhere: Path, clock: Any
) -> None:
    """The signature is for one manifest, not for a version."""
    sign(strict, elsewhere, clock, world.manifest("v1.3"))
    with pytest.raises(SignatureError, match="another release"):
        strict.publish(world.other)
    assert strict.releases() == []


def test_a_built_patch_is_signed_before_it_is_offered(hub: Hub, world: Any) -> None:
    """What the worker stores is signed with base and output."""
    hub.publish(world.full["v1.2"], percent=100)
    hub.publish(world.full["v1.3"], percent=100)
    worker = Worker(hub.config, clock=hub._clock)
    while worker.run_once():
        pass
    worker.close()
    answer = check(hub, "v1.2")
    assert answer.kind == "patch"
    found = signed(hub, answer.sha256)
    assert found is not None
    assert found.base_sha256 == world.manifest("v1.2").sha256
    assert found.manifest_sha256 == world.manifest("v1.3").sha256


def test_a_revoked_release_is_offered_to_nobody(hub: Hub, world: Any) -> None:
    """Its roll-outs are over, devices go on from the one before it, and it cannot come back."""
    hub.publish(world.full["v1.2"], percent=100)
    hub.publish(world.full["v1.3"], percent=100)
    assert check(hub).target_version == "v1.3"
    assert hub.revoke_release("v1.3").revoked
    assert check(hub).target_version == "v1.2"
    assert [(r.version, r.state) for r in hub.rollouts()] == [("v1.2", "active"), ("v1.3", "aborted")]
    with pytest.raises(RevokedError):
        hub.publish(world.full["v1.3"])
    with pytest.raises(RevokedError):
        hub.create_rollout("v1.3", 100)
    assert check(hub).target_version == "v1.2"
    with pytest.raises(NotFoundError):
        hub.revoke_release("v9")


def test_another_process_stops_offering_it_too(hub: Hub, world: Any, clock: Any) -> None:
    """A second hub on the same directory follows."""
    hub.publish(world.full["v1.2"], percent=100)
    with Hub.open(hub.config, clock=clock) as other:
        assert check(other).need_update
        hub.revoke_release("v1.2")
        assert not check(other).need_update


def test_calling_back_needs_the_release_key(strict: Hub, world: Any, elsewhere: Path, clock: Any) -> None:
    """The hub alone cannot; an upload signed elsewhere can."""
    sign(strict, elsewhere, clock, world.manifest("v1.1"))
    strict.publish(world.full["v1.1"], percent=100)
    with pytest.raises(SignatureError, match="--keys"):
        strict.revoke_release("v1.1")
    assert check(strict).need_update
    strict.trust.accept(authority(strict, elsewhere, clock).revoke_release(*MODEL, "v1.1"))
    assert not check(strict).need_update
    assert strict.releases()[0].revoked


def test_a_refused_upload_leaves_the_hub_as_it_was(strict: Hub, world: Any) -> None:
    """Neither metadata nor tables change."""
    before = strict.info()
    with pytest.raises(ConflictError):
        strict.trust.accept({"1.root.json": b"{}"})
    assert strict.info() == before


def test_a_hub_from_before_signs_what_it_holds(config: HubConfig, world: Any, clock: Any) -> None:
    """Releases and packages of a version without signatures are signed at the next start."""
    with Hub.open(config, clock=clock) as hub:
        hub.publish(world.full["v1.2"], percent=100)
    remove(config.directory / "trust")
    with Hub.open(config, clock=clock) as hub:
        assert hub.trust.repository.release(*MODEL, "v1.2") is not None
        assert signed(hub, sha256_file(world.full["v1.2"])) is not None


def test_the_worker_keeps_signatures_from_expiring(hub: Hub, world: Any, clock: Any) -> None:
    """A hub that nobody asks for days has a fresh timestamp all the same."""
    hub.publish(world.full["v1.2"])
    directory = hub.config.directory / "trust" / "metadata"
    before = (directory / "timestamp.json").read_bytes()
    worker = Worker(hub.config, clock=clock)
    clock.now += 30 * 3600
    worker._upkeep.run()
    worker.close()
    assert (directory / "timestamp.json").read_bytes() != before
