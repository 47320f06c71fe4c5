"""The cases of the public TUF conformance suite that concern a client's verification, over our client.

The suite itself (theupdateframework/tuf-conformance) runs over ``tests/conformance/tuf_client``; these are
the same situations, built here. Where they stand when they are not in this file:

- expired root, timestamp, snapshot, targets: ``test_what_has_expired_is_not_believed``
- a wrong clock: ``test_a_clock_set_back_does_not_revive_what_has_expired``
- an initial root that is none: ``test_a_root_that_is_none_is_refused``
- rotations: ``test_devices_follow_a_rotation_of_any_role``
- recovery from a fast forward: ``test_a_fast_forward_is_recovered_from``
- delegations, and roles that their delegator no longer trusts: ``test_old_keys_sign_nothing_any_more``
- artifacts (wrong bytes, the local cache): ``tests/device/test_device_download.py``
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import Key
from tuf.api.metadata import MetaFile

from autoglm.errors import ExpiredError, MetadataError, RollbackError, SignatureError, TrustError
from autoglm.trust import documents
from autoglm.trust.client import Verified
from autoglm.trust.keys import KeyRing, make_key
from trust.signers import Clock, Device, reader

ROLES = ("root", "timestamp", "snapshot", "targets")


class Site:
    """A repository of the four roles alone, whose files the test makes as it likes."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.clock, self._ring = clock, KeyRing([directory])
        self.files: dict[str, bytes] = {}
        self.directory = directory
        until = clock.now() + timedelta(days=30)
        self.root = documents.Root(1, expires=until, consistent_snapshot=True)
        for role in ROLES:
            self.root.add_key(make_key(role, directory), role)
        self.targets = documents.Targets(1, expires=until)
        self.snapshot = documents.new_snapshot(1, {"targets": 1}, until)
        self.timestamp = documents.new_timestamp(1, 1, until, clock.now())
        self.put(*ROLES)

    def keys(self, role: str) -> list[str]:
        return self.root.roles[role].keyids

    def put(self, *roles: str, signers: list[str] | None = None) -> None:
        """Sign these roles as they stand, by their own keys or by those of the ids given."""
        for role in roles:
            signed: Any = getattr(self, role)
            by = self._ring.signers(self.keys(role) if signers is None else signers)
            name = role if role == "timestamp" else f"{signed.version}.{role}"
            self.files[f"{name}.json"] = documents.sign(signed, by)

    def advance(self, *roles: str) -> None:
        """Publish a new version of these roles, with what stands above each following it."""
        if "root" in roles:
            self.root.version += 1
            self.put("root")
        if "targets" in roles:
            self.targets.version += 1
            self.snapshot.meta["targets.json"].version = self.targets.version
        if {"targets", "snapshot"} & {*roles}:
            self.snapshot.version += 1
            self.timestamp.snapshot_meta.version = self.snapshot.version
        self.timestamp.version += 1
        self.put("targets", "snapshot", "timestamp")

    def new_key(self, role: str) -> Key:
        return make_key(role, self.directory)

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a file without signing it again."""
        value = json.loads(self.files[name])
        change(value)
        self.files[name] = json.dumps(value).encode()

    def name(self, role: str) -> str:
        return "timestamp.json" if role == "timestamp" else f"{getattr(self, role).version}.{role}.json"


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> Site:
    (tmp_path / "keys").mkdir()
    return Site(tmp_path / "keys", clock)


@pytest.fixture
def device(tmp_path: Path, site: Site, clock: Clock) -> Device:
    """Knows the first root, and has refreshed nothing yet."""
    return Device(tmp_path / "phone", reader(site.files), clock, site.files["1.root.json"])


def seen(verified: Verified) -> dict[str, int]:
    """The versions that a refresh has come to believe."""
    return {role: verified._trusted[role].version for role in ROLES}


def test_files_are_asked_for_in_the_order_of_the_specification(site: Site, device: Device) -> None:
    """New roots one by one, then timestamp, snapshot and targets; nothing twice that has not changed."""
    device.refresh()
    first = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert [name for name, _ in device.fetched] == first[1:]
    device.fetched.clear()
    device.refresh()
    assert [name for name, _ in device.fetched] == ["timestamp.json"]
    device.fetched.clear()
    site.advance("root", "targets")
    device.refresh()
    fetched = [name for name, _ in device.fetched]
    assert fetched == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]


def test_the_cache_holds_the_bytes_that_were_signed(site: Site, device: Device) -> None:
    """Not a copy written anew, whose spacing could break a hash."""
    for role in ("timestamp", "snapshot", "targets"):
        name = site.name(role)
        site.files[name] = site.files[name] + b"\n \n"
    device.refresh()
    for role in ("timestamp", "snapshot", "targets"):
        assert (device.cache / f"{role}.json").read_bytes() == site.files[site.name(role)]


@pytest.mark.parametrize("role", ROLES)
def test_what_nobody_signed_is_refused(site: Site, device: Device, role: str) -> None:
    """Each role without a signature; what came before it is kept, it itself is not."""
    before = seen(device.refresh())
    site.advance("root", "targets")
    site.edit(site.name(role), lambda value: value.update(signatures=[]))
    with pytest.raises(SignatureError):
        device.refresh()
    cached = device.cache / f"{role}.json"
    assert json.loads(cached.read_bytes())["signed"]["version"] == before[role]


@pytest.mark.parametrize("role", ROLES)
def test_what_another_roles_key_signed_is_refused(site: Site, device: Device, role: str) -> None:
    """A true key of the repository, of the wrong role."""
    device.refresh()
    site.advance("root", "targets")
    other = "timestamp" if role != "timestamp" else "snapshot"
    site.put(role, signers=site.keys(other))
    with pytest.raises(SignatureError):
        device.refresh()


def test_an_unsigned_first_root_is_refused(site: Site, device: Device) -> None:
    """Even the root that the app ships must be signed by itself."""
    value = json.loads(site.files["1.root.json"])
    value["signatures"] = []
    device.root = json.dumps(value).encode()
    with pytest.raises(SignatureError):
        device.refresh()


@pytest.mark.parametrize("role", ["root", "snapshot", "targets"])
def test_a_file_must_hold_the_version_in_its_name(site: Site, device: Device, role: str) -> None:
    """A true file of another version under the name that was asked for."""
    device.refresh()
    old = site.files[site.name(role)]
    site.advance("root", "targets")
    site.files[site.name(role)] = old
    with pytest.raises(TrustError):
        device.refresh()


def test_a_timestamp_of_the_same_version_changes_nothing(site: Site, device: Device) -> None:
    """Other content under a version that was seen before is not taken over."""
    device.refresh()
    kept = (device.cache / "timestamp.json").read_bytes()
    site.snapshot.version = site.timestamp.snapshot_meta.version = 7
    site.put("snapshot", "timestamp")
    assert seen(device.refresh())["snapshot"] == 1
    assert (device.cache / "timestamp.json").read_bytes() == kept


@pytest.mark.parametrize("role", ["snapshot", "targets"])
@pytest.mark.parametrize("what", ["hash", "length"])
def test_hashes_and_lengths_are_held_to_where_they_are_given(
    site: Site, device: Device, role: str, what: str
) -> None:
    """Our hubs give none, and a hub may: right ones pass, wrong ones do not."""
    content = site.files[site.name(role)]
    right = MetaFile.from_data(1, content, ["sha256", "sha512"])
    wrong = MetaFile(1, len(content) - 1) if what == "length" else MetaFile(1, None, {"sha256": "0" * 64})
    for meta in (right, wrong):
        if role == "snapshot":
            site.timestamp.snapshot_meta = meta
            site.timestamp.version += 1
            site.put("timestamp")
        else:
            site.snapshot.meta["targets.json"] = meta
            site.advance("snapshot")
        if meta is right:
            device.refresh()
        else:
            (device.cache / f"{role}.json").unlink()
            with pytest.raises(MetadataError):
                device.refresh()


def test_fields_of_a_later_version_are_no_reason_to_refuse(site: Site, device: Device) -> None:
    """Unknown fields everywhere, key ids with hash algorithms of old: believed, and kept."""
    for role in ROLES:
        getattr(site, role).unrecognized_fields["later"] = {"a": [1]}
    for key in site.root.keys.values():
        key.unrecognized_fields["keyid_hash_algorithms"] = ["sha256"]
    site.put(*ROLES)
    device.root = site.files["1.root.json"]
    assert seen(device.refresh()) == dict.fromkeys(ROLES, 1)
    assert json.loads((device.cache / "targets.json").read_bytes())["signed"]["later"] == {"a": [1]}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_file_that_is_not_there_is_no_reason_to_believe_another(
    site: Site, device: Device, role: str
) -> None:
    """With and without a cache the refresh fails, and what was known stays."""
    device.refresh()
    site.advance("targets")
    del site.files[site.name(role)]
    with pytest.raises(MetadataError):
        device.refresh()
    assert json.loads((device.cache / f"{role}.json").read_bytes())["signed"]["version"] == 1


@pytest.mark.parametrize("role", ROLES)
def test_metadata_of_another_kind_is_refused(site: Site, device: Device, role: str) -> None:
    """The type is in the signed part, and counts."""
    device.refresh()
    site.advance("root", "targets")
    other = "targets" if role != "targets" else "snapshot"
    site.files[site.name(role)] = site.files[site.name(other)]
    with pytest.raises(TrustError):
        device.refresh()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_threshold_counts_different_keys(site: Site, device: Device, role: str) -> None:
    """Two of two: one key is too few, the same one twice too, one listed twice too; both are enough."""
    second = site.new_key(role)
    site.root.add_key(second, role)
    site.root.roles[role].threshold = 2
    first = next(keyid for keyid in site.keys(role) if keyid != second.keyid)
    site.advance("root", "targets")
    site.put(role, signers=[first])
    with pytest.raises(SignatureError):
        device.refresh()
    site.edit(site.name(role), lambda value: value["signatures"].append(value["signatures"][0]))
    with pytest.raises(TrustError):
        device.refresh()
    site.put(role)
    assert seen(device.refresh())[role] == 2


def test_one_bad_signature_among_enough_good_ones_does_no_harm(site: Site, device: Device) -> None:
    """It counts for nothing; the others are counted."""
    second, third = site.new_key("targets"), site.new_key("targets")
    for key in (second, third):
        site.root.add_key(key, "targets")
    site.root.roles["targets"].threshold = 2
    site.advance("root", "targets")
    site.edit(site.name("targets"), lambda value: value["signatures"][0].update(sig="00" * 64))
    assert seen(device.refresh())["targets"] == 2
    site.advance("targets")
    for number in (0, 1):
        site.edit(site.name("targets"), lambda value, n=number: value["signatures"][n].update(sig="00" * 64))
    with pytest.raises(SignatureError):
        device.refresh()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_no_role_goes_back(site: Site, device: Device, role: str) -> None:
    """A lower version, truly signed, below new versions of all that stands above it."""
    for _ in range(3):
        site.advance("targets")
    device.refresh()
    if role == "timestamp":
        site.timestamp.version = 2
        site.put("timestamp")
    elif role == "snapshot":
        site.snapshot.version = 2
        site.put("snapshot")
        site.timestamp.snapshot_meta.version = 2
        site.advance()
    else:
        site.targets.version = 1
        site.advance("targets")
    with pytest.raises(RollbackError):
        device.refresh()


def test_a_role_cannot_disappear_from_the_snapshot(site: Site, device: Device) -> None:
    """A new snapshot that no longer names targets."""
    device.refresh()
    site.snapshot.meta = {"other.json": MetaFile(1)}
    site.advance("snapshot")
    with pytest.raises(TrustError):
        device.refresh()


def test_an_expired_cache_still_counts_against_a_rollback(site: Site, device: Device) -> None:
    """The old timestamp is worth nothing as a promise, and all the more as a memory."""
    site.timestamp.expires = site.clock.now() + timedelta(days=1)
    site.advance("targets")
    device.refresh()
    site.clock.advance(days=2)
    site.timestamp.expires = site.clock.now() + timedelta(days=1)
    site.timestamp.version = 1
    site.put("timestamp")
    with pytest.raises(RollbackError):
        device.refresh()
    site.timestamp.version = 3
    site.put("timestamp")
    assert seen(device.refresh())["timestamp"] == 3


def test_an_expired_root_on_the_way_to_a_fresh_one_is_followed(site: Site, device: Device) -> None:
    """A device that was off for long has an old root; only the newest one must be fresh."""
    device.refresh()
    site.clock.advance(days=40)
    until = site.clock.now() + timedelta(days=30)
    for role in ROLES[1:]:
        getattr(site, role).expires = until
    site.advance("root", "targets")
    with pytest.raises(ExpiredError):
        device.refresh()
    site.root.expires = until
    site.advance("root")
    assert seen(device.refresh())["root"] == 3


def test_a_root_is_signed_by_the_one_before_and_by_itself(site: Site, device: Device) -> None:
    """New keys alone do not do, nor do the old ones alone; both do."""
    device.refresh()
    old = site.keys("root")[0]
    new = site.new_key("root").keyid
    key = KeyRing([site.directory]).signers([new])[0].public_key
    site.root.add_key(key, "root")
    site.root.revoke_key(old, "root")
    site.root.version = 2
    for signers, good in (([new], False), ([old], False), ([old, new], True)):
        site.put("root", signers=signers)
        if good:
            assert seen(device.refresh())["root"] == 2
        else:
            with pytest.raises(SignatureError):
                device.refresh()


def test_a_root_cannot_be_skipped(site: Site, device: Device) -> None:
    """The chain ends where a number is missing: what lies behind it is not asked for."""
    site.advance("root")
    site.advance("root")
    del site.files["2.root.json"]
    assert seen(device.refresh())["root"] == 1


@pytest.mark.parametrize("field", ["keytype", "scheme"])
def test_a_key_of_an_unknown_kind_signs_nothing(site: Site, device: Device, field: str) -> None:
    """It is there, and its signature cannot be checked."""
    setattr(site.root.keys[site.keys("targets")[0]], field, "rot13")
    site.root.version = 2
    site.put("root")
    site.advance("targets")
    with pytest.raises(TrustError):
        device.refresh()
