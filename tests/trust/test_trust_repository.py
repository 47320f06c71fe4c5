"""The hub's signed metadata: made, kept, extended, uploaded to; whole after a crash anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import (
    ConfigError,
    ConflictError,
    ExpiredError,
    MetadataError,
    NotFoundError,
    RollbackError,
    SignatureError,
    StorageError,
)
from autoglm.trust import documents
from autoglm.trust.authority import Authority, establish
from autoglm.trust.keys import KeyRing
from autoglm.trust.repository import KEEP_SUPERSEDED_S, Repository
from autoglm.trust.shelf import Picture, Shelf
from trust.signers import MODEL, package, release, sha256


def test_the_first_start_makes_everything_and_the_second_nothing(tmp_path: Path, clock: Any) -> None:
    """All keys for their owner only, metadata that a device believes, and a root for whoever is near."""
    Repository.open(tmp_path, clock=clock)
    keys = sorted(tmp_path.rglob("*.pem"))
    assert len(keys) == 5 + 3 + 1 + 3
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = Repository.open(tmp_path, clock=clock)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert again.holds_release_key
    assert (tmp_path / "root.json").read_bytes() == again.root


def test_a_device_reads_what_was_signed(lab: Any) -> None:
    """Release and package come out as they went in; what nobody signed is refused."""
    verified = lab.device().refresh()
    path = release("v1.2", 12).path
    assert verified.release(path) == release("v1.2", 12)
    assert verified.package(sha256("full")) == package("full", "v1.2")
    assert verified.find_release(release("v9", 9).path) is None
    with pytest.raises(SignatureError, match="nobody has signed"):
        verified.package(sha256("other"))


@pytest.mark.parametrize(
    "name", ["../online/x.pem", "..", "0.root.json", "1.root.json/..", "01.root.json", "root.json", "", "\0"]
)
def test_no_other_file_is_served(lab: Any, name: str) -> None:
    """Names that are none of metadata are not found, whatever they lead to."""
    with pytest.raises(NotFoundError):
        lab.repository.read(name)


def test_another_process_sees_what_was_signed(lab: Any, clock: Any) -> None:
    """Two repositories on one directory follow each other."""
    other = Repository.open(lab.repository.directory, clock=clock)
    lab.publish(release("v1.3", 13))
    assert other.release(*MODEL, "v1.3") == release("v1.3", 13)
    other.add_packages([package("p", "v1.3", "v1.2")])
    assert lab.device().refresh().package(sha256("p")).base_sha256 == sha256("manifest v1.2")


def test_the_hub_alone_signs_no_release(lab: Any) -> None:
    """Without the release key it can neither sign a release nor call one back."""
    assert not lab.repository.holds_release_key
    with pytest.raises(ConfigError, match="releases needs 1 of its 1 keys"):
        lab.repository.sign_release(release("v1.3", 13))
    with pytest.raises(ConfigError, match="releases"):
        lab.repository.revoke_release(*MODEL, "v1.2")


def test_a_release_is_called_back_for_good(lab: Any) -> None:
    """Revoked, it shows as such to devices and the hub, and no later upload makes it good again."""
    lab.repository.accept(lab.authority().revoke_release(*MODEL, "v1.2"))
    assert lab.repository.revoked() == {sha256("manifest v1.2")}
    assert lab.device().refresh().release(release("v1.2", 12).path).revoked
    with pytest.raises(ConflictError, match="was revoked"):
        lab.authority().sign_release(release("v1.2", 12))


def test_what_is_signed_never_changes_or_disappears(lab: Any) -> None:
    """Not even the release key gets a changed entry, or a bin without the entry, past the hub."""
    with pytest.raises(ConflictError, match="choose a new version"):
        lab.authority().sign_release(release("v1.2", 99))
    picture = Picture.published(Shelf(lab.metadata))
    role = documents.bin_of(picture.delegated["releases"], release("v1.2", 12).path)
    for entries in ({}, {release("v1.2", 99).path: release("v1.2", 99).to_target()}):
        emptied = picture.next_bin(role, lab.clock.now())
        emptied.targets = entries
        signers = KeyRing([lab.room / "keys"]).signers(picture.targets.get_delegated_role("releases").keyids)
        name = f"{emptied.version}.{role}.json"
        with pytest.raises(ConflictError, match="drops or changes"):
            lab.repository.accept({name: documents.sign(emptied, signers)})


def test_two_publishers_do_not_undo_each_other(lab: Any) -> None:
    """The second of two who signed from the same state is refused, and signs again from the new one."""
    first, second = lab.authority(), lab.authority()
    one = first.sign_release(release("v1.3", 13))
    # The same bin: a path that falls into it is found by trying.
    others = (release(f"v2.{number}", 14) for number in range(10_000))
    delegated = Picture.published(Shelf(lab.metadata)).delegated["releases"]
    bins = {path: documents.bin_of(delegated, path) for path in (release("v1.3", 13).path,)}
    wanted = bins[release("v1.3", 13).path]
    other = next(each for each in others if documents.bin_of(delegated, each.path) == wanted)
    two = second.sign_release(other)
    lab.repository.accept(one)
    with pytest.raises((RollbackError, ConflictError)):
        lab.repository.accept(two)
    lab.publish(other)
    assert lab.repository.release(*MODEL, "v1.3") is not None


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("timestamp.json", MetadataError),
        ("9.snapshot.json", MetadataError),
        ("9.patches-000.json", MetadataError),
        ("../9.root.json", MetadataError),
        ("3.root.json", RollbackError),
    ],
)
def test_only_what_is_signed_offline_may_be_uploaded(lab: Any, name: str, error: type[Exception]) -> None:
    """Online roles are the hub's own affair; a root must follow the present one."""
    with pytest.raises(error):
        lab.repository.accept({name: lab.first_root})


def test_an_upload_is_taken_whole_or_not_at_all(lab: Any) -> None:
    """A good release beside a forged one leaves no trace."""
    made = lab.authority().sign_release(release("v1.3", 13))
    forged = Authority(Picture.published(Shelf(lab.metadata)), _strangers(lab), lab.clock.now())
    bad = {"2.targets.json": next(iter(forged.renew(["targets"]).values()))}
    before = lab.copy()
    with pytest.raises(SignatureError):
        lab.repository.accept(made | bad)
    assert lab.copy() == before


def _strangers(lab: Any) -> KeyRing:
    """Keys that sign as if they were the hub's: all of another ceremony, under the names of this one."""
    other = lab.root / "other"
    establish(Shelf(other / "metadata"), other / "keys", other / "online", lab.clock.now())
    ring = KeyRing([other / "keys"])
    theirs = Picture.published(Shelf(other / "metadata"))

    class Strangers(KeyRing):
        def require(self, role: str, keyids: Any, threshold: int) -> Any:
            return ring.require(role, documents.role_of(theirs.root, theirs.targets, role).keyids, threshold)

    return Strangers([])


def test_an_expired_upload_is_refused(lab: Any) -> None:
    """Signed long ago and never sent: it would stop every device."""
    made = lab.authority().sign_release(release("v1.3", 13))
    lab.clock.advance(days=91)
    with pytest.raises(ExpiredError):
        lab.repository.accept(made)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"signed": {"_type": "root"}}'])
def test_an_upload_that_is_no_metadata_is_refused(lab: Any, content: bytes) -> None:
    """Whatever the bytes are."""
    with pytest.raises(MetadataError):
        lab.repository.accept({"2.root.json": content})


def test_online_roles_are_signed_again_before_they_expire(lab: Any) -> None:
    """A hub that is asked now and then never lets its timestamp or snapshot expire."""
    device = lab.device()
    for _ in range(40):
        lab.clock.advance(hours=20)
        device.refresh()
    assert not lab.repository.expiring()


def test_an_offline_role_that_expires_soon_is_named(lab: Any) -> None:
    """The hub cannot sign it, and says which and until when."""
    lab.clock.advance(days=70)
    lab.repository.refresh()
    named = dict(lab.repository.expiring())
    assert {role.partition("-")[0] for role in named} == {"releases"}
    due = lab.authority()
    lab.repository.accept(due.renew(due.due()))
    assert not lab.repository.expiring()
    assert lab.device().refresh().release(release("v1.2", 12).path) == release("v1.2", 12)


def test_a_hub_with_all_keys_renews_all(tmp_path: Path, clock: Any) -> None:
    """An installation on one machine goes on for years by itself."""
    repository = Repository.open(tmp_path, clock=clock)
    repository.sign_release(release("v1.2", 12))
    for _ in range(60):
        clock.advance(days=25)
        repository.refresh()
    assert not repository.expiring()
    picture = Picture.published(Shelf(tmp_path / "metadata"))
    assert picture.expiry_of("root") > clock.now()


def test_replaced_files_stay_for_a_while_and_then_go(lab: Any) -> None:
    """A device in the middle of a check still finds them; they do not pile up for ever."""
    old = Picture.published(Shelf(lab.metadata)).versions["snapshot"]
    lab.publish(release("v1.3", 13))
    assert lab.repository.read(f"{old}.snapshot.json")
    os.utime(lab.metadata / f"{old + 1}.snapshot.json", (0, 0))
    lab.clock.advance(seconds=KEEP_SUPERSEDED_S)
    lab.publish(release("v1.4", 14))
    with pytest.raises(NotFoundError):
        lab.repository.read(f"{old}.snapshot.json")


def test_a_refused_write_changes_nothing_and_the_next_start_goes_on(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at every durable step of taking in a rotation: devices see the old state or the new one."""
    made = lab.authority().replace_keys("targets", lab.room / "keys")
    real, point, met = os.fsync, 0, True
    while met:
        point, met = point + 1, False
        count = 0

        def full(fd: int, point: int = point) -> None:
            nonlocal count, met
            count += 1
            if count == point:
                met = True
                raise OSError(28, "No space left on device")
            real(fd)

        monkeypatch.setattr(os, "fsync", full)
        try:
            lab.repository.accept(made)
        except StorageError:
            assert met
        monkeypatch.setattr(os, "fsync", real)
        lab.repository = Repository.open(lab.repository.directory, clock=lab.clock)
        verified = lab.device(f"phone{point}").refresh()
        assert verified.release(release("v1.2", 12).path) == release("v1.2", 12)
    assert point > 5
    assert Picture.published(Shelf(lab.metadata)).versions["root"] == 2


def test_lost_metadata_is_not_made_anew_over_devices_that_know_it(lab: Any, clock: Any) -> None:
    """New keys would lock every device out: the operator is told to restore instead."""
    lab.repository.refresh()
    (lab.metadata / "timestamp.json").unlink()
    with pytest.raises(StorageError, match="backup"):
        Repository.open(lab.repository.directory, clock=clock)
