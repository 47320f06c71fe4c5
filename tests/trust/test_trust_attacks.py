"""A hostile hub, a thief of keys, a power cut and a wrong clock: all they can do is refuse service."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoglm.errors import (
    ExpiredError,
    MetadataError,
    NetworkError,
    NoRootError,
    RollbackError,
    SignatureError,
    TrustError,
)
from autoglm.trust.floor import Floor, Mark, read_floor
from autoglm.trust.roles import MAX_TIMESTAMP_BYTES
from autoglm.trust.shelf import Picture, Shelf
from trust.signers import MODEL, package, reader, release, sha256

PATH = release("v1.2", 12).path


def test_old_metadata_is_refused(lab: Any) -> None:
    """A replay of yesterday's hub, with the cache as it was."""
    device, old = lab.device(), lab.copy()
    lab.publish(release("v1.3", 13))
    device.refresh()
    device.read = reader(old)
    with pytest.raises(RollbackError):
        device.refresh()


@pytest.mark.parametrize("lose", ["zero", "remove", "nothing of the floor"])
def test_old_metadata_is_refused_after_a_power_cut(lab: Any, lose: str) -> None:
    """The cache is zeroed or gone, as a power cut leaves files that were never synced; the floor stands."""
    device, old = lab.device(), lab.copy()
    lab.publish(release("v1.3", 13))
    device.refresh()
    device.read = reader(old)
    if lose == "zero":
        device.zero_the_cache()
    else:
        shutil.rmtree(device.cache)
    if lose == "nothing of the floor":
        (device.directory / "floor.json").unlink()
        device.refresh()  # what the library alone would do: this is what the floor is for
        return
    with pytest.raises(RollbackError, match="restored from an old backup, or someone replays"):
        device.refresh()
    device.read = lambda name, _limit: lab.repository.read(name)
    assert device.refresh().release(release("v1.3", 13).path).counter == 13


def test_a_hub_restored_from_a_backup_is_refused_until_its_keys_are_new(lab: Any) -> None:
    """The message says so; new snapshot and timestamp keys, signed by the root, are the way out."""
    device, backup = lab.device(), lab.root / "backup"
    shutil.copytree(lab.repository.directory, backup)
    for number in range(3):
        lab.publish(release(f"v1.{number + 3}", number + 13))
    device.refresh()
    shutil.rmtree(lab.repository.directory)
    shutil.copytree(backup, lab.repository.directory)
    with pytest.raises(RollbackError, match="backup"):
        device.refresh()
    online = lab.repository.directory / "online"
    for role in ("snapshot", "timestamp"):
        lab.repository.accept(lab.authority().replace_keys(role, online))
    verified = device.refresh()
    assert verified.release(PATH).counter == 12
    lab.publish(release("v1.3", 13))
    assert device.refresh().release(release("v1.3", 13).path).counter == 13


def test_a_hub_that_stands_still_is_noticed(lab: Any) -> None:
    """Freeze: metadata that was good is served for ever, until its timestamp expires."""
    device = lab.device(read=reader(lab.copy()))
    device.refresh()
    lab.clock.advance(days=1, hours=23)
    device.refresh()
    lab.clock.advance(hours=2)
    with pytest.raises(ExpiredError):
        device.refresh()


def test_parts_of_two_states_do_not_mix(lab: Any) -> None:
    """An old release bin under a new snapshot: the versions do not fit."""
    old = lab.copy()
    before = Picture.published(Shelf(lab.metadata)).versions
    lab.repository.accept(lab.authority().revoke_release(*MODEL, "v1.2"))
    files, after = lab.copy(), Picture.published(Shelf(lab.metadata)).versions
    for role, version in after.items():
        if role.startswith("releases-") and before.get(role) != version:
            files[f"{version}.{role}.json"] = old[f"{before[role]}.{role}.json"]
    verified = lab.device(read=reader(files)).refresh()
    with pytest.raises(TrustError):
        verified.release(PATH)


@pytest.mark.parametrize(
    ("replace", "error"),
    [
        (b"", MetadataError),
        (b"x" * (MAX_TIMESTAMP_BYTES + 1), MetadataError),
        (b'{"signed": {}, "signatures": []}', MetadataError),
        (b"[" * 5000, MetadataError),
        (b"\0" * 400, MetadataError),
    ],
)
def test_garbage_is_refused(lab: Any, replace: bytes, error: type[Exception]) -> None:
    """Whatever comes in place of the timestamp, and however long."""
    with pytest.raises(error):
        lab.device(read=reader(lab.copy() | {"timestamp.json": replace})).refresh()


def test_any_changed_byte_is_refused(lab: Any) -> None:
    """A hundred random changes to random files: an error of ours, or nothing that matters changed."""
    chance, files = random.Random(7), lab.copy()
    honest = release("v1.2", 12)
    for number in range(100):
        name = chance.choice(sorted(set(files) - {"1.root.json"}))
        content = bytearray(files[name])
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        device = lab.device(f"phone{number}", reader(files | {name: bytes(content)}))
        try:
            assert device.refresh().release(PATH) == honest
        except TrustError:
            continue


def test_a_missing_file_is_named(lab: Any) -> None:
    """A hub that forgot a file is no reason to believe something else."""
    files = lab.copy()
    del files["timestamp.json"]
    with pytest.raises(MetadataError, match=r"lacks.*timestamp\.json"):
        lab.device(read=reader(files)).refresh()


def test_a_network_that_fails_is_no_question_of_trust(lab: Any) -> None:
    """The error of the transport comes through as it is."""

    def broken(_name: str, _limit: int) -> bytes:
        raise NetworkError("the hub was not reached")

    with pytest.raises(NetworkError):
        lab.device(read=broken).refresh()


# Stolen keys


def test_a_stolen_timestamp_key_signs_no_snapshot(lab: Any, thief: Callable[..., Any]) -> None:
    """It can only freeze."""
    robber = thief("timestamp")
    with pytest.raises(SignatureError):
        robber.forge({}, 99, 99)
        lab.device(read=robber.read).refresh()


def test_all_stolen_online_keys_sign_no_release(lab: Any, thief: Callable[..., Any]) -> None:
    """With snapshot, timestamp and patches in hand: no new release, and no old one called good again."""
    lab.publish(release("v1.3", 13))
    robber = thief("snapshot", "timestamp", "patches")
    before = Picture.published(Shelf(lab.metadata))
    lab.repository.accept(lab.authority().revoke_release(*MODEL, "v1.2"))
    device = lab.device()
    assert device.refresh().release(PATH).revoked

    # He drops the revocation by naming the old bin again: the device has seen a newer one.
    versions = {
        role: v for role, v in before.versions.items() if role not in ("root", "snapshot", "timestamp")
    }
    robber.forge(versions, 500, 500)
    device.read = robber.read
    with pytest.raises(RollbackError):
        device.refresh()


def test_a_stolen_patches_key_only_refuses_service(lab: Any, thief: Callable[..., Any]) -> None:
    """He signs a package of his own; it names no output but a release that the release key has signed."""
    robber = thief("patches", "snapshot", "timestamp")
    own = package("evil", "v1.2")
    picture = Picture.published(Shelf(lab.metadata))
    changed = picture.with_entries("patches", [own.to_target()], lab.clock.now())
    from autoglm.trust import documents

    for role, signed in changed.items():
        content = documents.sign(signed, robber.signers("patches"))
        robber.files[f"{signed.version}.{role}.json"] = content
        picture.versions[role] = signed.version
    versions = {
        role: version
        for role, version in picture.versions.items()
        if role not in ("root", "snapshot", "timestamp")
    }
    robber.forge(versions, 500, 500)
    verified = lab.device(read=robber.read).refresh()
    assert verified.package(sha256("evil")).manifest_sha256 == verified.release(PATH).manifest_sha256


def test_a_fast_forward_is_recovered_from(lab: Any, thief: Callable[..., Any]) -> None:
    """The thief signs enormous versions and a date far ahead; new keys free every device of them."""
    robber = thief("snapshot", "timestamp")
    versions = Picture.published(Shelf(lab.metadata)).versions
    below = {role: v for role, v in versions.items() if role not in ("root", "snapshot", "timestamp")}
    robber.forge(below, 2_000_000_000, 2_000_000_000)
    device = lab.device(read=robber.read)
    device.refresh()
    device.read = lambda name, _limit: lab.repository.read(name)
    with pytest.raises(RollbackError):
        device.refresh()
    online = lab.repository.directory / "online"
    for role in ("snapshot", "timestamp"):
        lab.repository.accept(lab.authority().replace_keys(role, online))
    assert device.refresh().release(PATH).counter == 12
    device.read = robber.read
    with pytest.raises(TrustError):
        device.refresh()


# Clocks


def test_a_clock_set_back_does_not_revive_what_has_expired(lab: Any) -> None:
    """After a flat battery it is 1970 here: the hub's fresh timestamp says how late it is at least."""
    device = lab.device()
    device.clock = type(lab.clock)(datetime(1970, 1, 2, tzinfo=UTC))
    assert device.refresh().release(PATH).counter == 12
    lab.clock.advance(days=92)
    verified = device.refresh()
    with pytest.raises(ExpiredError, match="releases"):
        verified.release(PATH)


def test_a_clock_far_ahead_is_named(lab: Any) -> None:
    """Everything looks expired; the message says what this device takes the date to be."""
    device = lab.device()
    device.refresh()
    device.clock = type(lab.clock)(lab.clock.time + timedelta(days=3650))
    with pytest.raises(ExpiredError, match="By this device's clock it is 2036"):
        device.refresh()
    device.clock = lab.clock
    device.refresh()


def test_a_hub_whose_clock_was_ahead_signs_again(lab: Any) -> None:
    """Dates of next year do no lasting harm: with the clock set right the hub corrects them."""
    device = lab.device()
    device.clock = type(lab.clock)(lab.clock.time)
    lab.clock.advance(days=300)
    lab.repository.refresh()
    with pytest.raises(ExpiredError):
        device.refresh().release(PATH)
    lab.clock.advance(days=-300)
    lab.repository.read("timestamp.json")
    assert device.refresh().release(PATH).counter == 12


# Where trust begins


def test_nothing_is_believed_without_a_root(lab: Any) -> None:
    """No root given, none kept: a typed error, and nothing is fetched."""
    device = lab.device()
    device.root = None
    with pytest.raises(NoRootError, match="--root"):
        device.refresh()
    assert not device.fetched


@pytest.mark.parametrize("root", [b"", b"{}", b"\0" * 100])
def test_a_root_that_is_none_is_refused(lab: Any, root: bytes) -> None:
    """A damaged file given as the root."""
    device = lab.device()
    device.root = root
    with pytest.raises(MetadataError):
        device.refresh()


def test_another_hubs_root_does_not_open_this_one(lab: Any, clock: Any) -> None:
    """The signatures do not fit."""
    from autoglm.trust.repository import Repository

    device = lab.device()
    device.root = Repository.open(lab.root / "elsewhere", clock=clock).root
    with pytest.raises(SignatureError):
        device.refresh()


# The floor itself


def test_the_floor_says_what_it_holds(lab: Any) -> None:
    """Bytes and back, and a damaged file begins anew rather than stopping a device for ever."""
    floor = Floor({"root": Mark(3)}, 13, 12, (sha256("a"),))
    assert Floor.from_bytes(floor.to_bytes()) == floor
    path = lab.root / "floor.json"
    for content in (b"", b"[]", b'{"marks": 1}', b"[" * 10_000, floor.to_bytes()[:-5]):
        path.write_bytes(content)
        assert read_floor(path) == Floor()


def test_the_floor_is_never_lowered(lab: Any) -> None:
    """Revocations and the lowest counter only accumulate."""
    floor = Floor().with_release(min_counter=12, revoked=[sha256("a")])
    floor = floor.with_release(min_counter=3, revoked=[sha256("b")])
    assert (floor.min_counter, floor.revoked) == (12, (sha256("a"), sha256("b")))
    assert len(floor.with_release(revoked=[sha256(str(n)) for n in range(100)]).revoked) == 64


def test_bins_that_are_not_needed_leave_the_cache(lab: Any) -> None:
    """A device keeps the bins of the few releases it asked about."""
    for number in range(30):
        lab.repository.add_packages([package(f"p{number}", "v1.2", f"v0.{number}")])
    device = lab.device()
    verified = device.refresh()
    for number in range(30):
        verified.package(sha256(f"p{number}"))
    many = len(list(device.cache.glob("patches-*.json")))
    verified = device.refresh()
    verified.package(sha256("p3"))
    verified.prune()
    assert len(list(device.cache.glob("patches-*.json"))) == 1 < many
    assert device.refresh().package(sha256("p5")) == package("p5", "v1.2", "v0.5")
