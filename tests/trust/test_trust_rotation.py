"""Keys come and go, and devices follow: rotation of every role, revocation of one key, expiry."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ConfigError, ConflictError, ExpiredError, NotFoundError, SignatureError
from autoglm.trust.authority import Authority
from autoglm.trust.keys import KeyRing, key_file_name, make_key
from autoglm.trust.roles import ONLINE, RULES
from autoglm.trust.shelf import Picture, Shelf
from trust.signers import MODEL, package, release, sha256


def rotate(lab: Any, role: str, **more: Any) -> None:
    """Rotate a role's keys as an operator does: new online keys go to the hub first."""
    place = lab.repository.directory / "online" if role in ONLINE else lab.room / "keys"
    lab.repository.accept(lab.authority().replace_keys(role, place, **more))


@pytest.mark.parametrize("role", RULES)
def test_devices_follow_a_rotation_of_any_role(lab: Any, role: str) -> None:
    """A device that knew the old keys, and one that only has the first root, both go on."""
    old = lab.device("old")
    old.refresh()
    before = set(lab.authority().keyids(role))
    rotate(lab, role)
    assert not before & set(lab.authority().keyids(role))
    lab.publish(release("v1.3", 13))
    lab.repository.add_packages([package("patch", "v1.3", "v1.2")])
    for device in (old, lab.device("new")):
        verified = device.refresh()
        assert verified.release(release("v1.3", 13).path).counter == 13
        assert verified.release(release("v1.2", 12).path).counter == 12
        assert verified.package(sha256("full")) == package("full", "v1.2")
        assert verified.package(sha256("patch")).base_sha256 == sha256("manifest v1.2")


@pytest.mark.parametrize("role", ["root", "targets", "releases"])
def test_old_keys_sign_nothing_any_more(lab: Any, role: str) -> None:
    """After a rotation, what the old keys sign is refused by the hub."""
    stale = lab.root / "stale"
    shutil.copytree(lab.room / "keys", stale)
    rotate(lab, role)
    picture = Picture.published(Shelf(lab.metadata))
    made = Authority(picture, _pretending(stale, role), lab.clock.now())
    forged = made.sign_release(release("v6", 66)) if role == "releases" else made.renew([role])
    with pytest.raises(SignatureError):
        lab.repository.accept(forged)


def _pretending(stale: Path, role: str) -> KeyRing:
    """A ring that signs with the old keys of a role, whatever keys it is asked for."""

    class Stale(KeyRing):
        def require(self, role_asked: str, keyids: Any, threshold: int) -> Any:
            if role_asked != role:
                return super().require(role_asked, keyids, threshold)
            from autoglm.trust.keys import _read_key  # pyright: ignore[reportPrivateUsage]

            return [_read_key(path, None) for path in sorted(stale.glob(f"{role}-*.pem"))]

    return Stale([stale])


def test_one_stolen_root_key_is_replaced(lab: Any) -> None:
    """The four others stay; three of them agree, and the stolen one counts for nothing."""
    stolen = lab.authority().keyids("root")[0]
    (lab.room / "keys" / key_file_name("root", stolen)).unlink()
    device = lab.device()
    device.refresh()
    rotate(lab, "root", drop=[stolen])
    keys = lab.authority().keyids("root")
    assert len(keys) == 5
    assert stolen not in keys
    device.refresh()
    assert device.client().floor.marks["root"].version == 2


def test_too_few_keys_sign_nothing(lab: Any) -> None:
    """Two of five root keys change nothing, and the message says which are missing; none is made."""
    keys = sorted((lab.room / "keys").glob("root-*.pem"))
    for path in keys[:3]:
        path.unlink()
    with pytest.raises(ConfigError, match="root needs 3 of its 5 keys, 2 are here.*" + keys[0].stem[:9]):
        lab.authority().replace_keys("timestamp", lab.room / "keys")
    assert len(list((lab.room / "keys").glob("*.pem"))) == 2 + 3 + 1


def test_many_rotations_are_followed_in_one_refresh(lab: Any) -> None:
    """A device that was off for years walks the chain of roots."""
    device = lab.device()
    device.refresh()
    for _ in range(20):
        rotate(lab, "root")
        lab.clock.advance(days=60)
        lab.authority().due()
        made = lab.authority()
        lab.repository.accept(made.renew([role for role in made.due() if role != "root"]))
    device.refresh()
    assert device.client().floor.marks["root"].version == 21


def test_the_hub_must_have_a_new_online_key_first(lab: Any) -> None:
    """A root that names a key which the hub lacks would stop every device: it is not taken."""
    made = lab.authority().replace_keys("timestamp", lab.room / "online")
    before = lab.copy()
    with pytest.raises(ConflictError, match="private key of timestamp"):
        lab.repository.accept(made)
    assert lab.copy() == before
    shutil.copytree(lab.room / "online", lab.repository.directory / "online", dirs_exist_ok=True)
    assert lab.repository.accept(made) == ["2.root.json"]
    assert lab.repository.accept(made) == []
    lab.device().refresh()


def test_a_root_that_is_shipped_later_is_believed_too(lab: Any) -> None:
    """A new device that is given the newest root begins there; an older one given again changes nothing."""
    rotate(lab, "root")
    device = lab.device()
    device.root = lab.repository.root
    device.refresh()
    device.root = lab.first_root
    device.refresh()
    device.root = None
    device.refresh()
    assert not [name for name, _ in device.fetched if name == "2.root.json"]


@pytest.mark.parametrize(("days", "role"), [(3, "timestamp"), (92, "releases"), (366, "root")])
def test_what_has_expired_is_not_believed(lab: Any, days: int, role: str) -> None:
    """A hub that stands still: nothing is installed, and the message names the role and the clock."""
    device = lab.device(read=_frozen(lab))
    device.refresh()
    lab.clock.advance(days=days)
    if role == "releases":
        device.read = lambda name, _limit: lab.repository.read(name)
        verified = device.refresh()
        with pytest.raises(ExpiredError, match="releases"):
            verified.release(release("v1.2", 12).path)
        return
    with pytest.raises(ExpiredError, match=rf"{role}.*By this device's clock it is"):
        device.refresh()


def _frozen(lab: Any) -> Any:
    from trust.signers import reader

    return reader(lab.copy())


def test_the_right_key_is_found_by_a_few_digits(lab: Any) -> None:
    """Its role and full id; no digits, unknown ones and ambiguous ones are refused."""
    keyid = lab.authority().keyids("targets")[1]
    assert lab.authority().role_of_key(keyid[:12]) == ("targets", keyid)
    for text in ("", "zz"):
        with pytest.raises(NotFoundError):
            lab.authority().role_of_key(text)


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    """Encrypted at rest; without or with a wrong passphrase one line says so."""
    key = make_key("root", tmp_path, b"correct horse")
    path = tmp_path / key_file_name("root", key.keyid)
    assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert len(KeyRing([tmp_path], b"correct horse").signers([key.keyid])) == 1
    for passphrase, message in ((None, "is locked"), (b"wrong", "passphrase is wrong")):
        with pytest.raises(ConfigError, match=message):
            KeyRing([tmp_path], passphrase).signers([key.keyid])


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    """So is one that holds another key than its name says."""
    key, other = make_key("root", tmp_path), make_key("root", tmp_path / "other")
    path = tmp_path / key_file_name("root", key.keyid)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no private key"):
        KeyRing([tmp_path]).signers([key.keyid])
    path.write_bytes((tmp_path / "other" / key_file_name("root", other.keyid)).read_bytes())
    with pytest.raises(ConfigError, match="another key"):
        KeyRing([path]).signers([key.keyid])


def test_revoking_and_renewing_touch_only_what_they_must(lab: Any) -> None:
    """Calling a release back signs one bin again, renewing targets one file."""
    assert len(lab.authority().revoke_release(*MODEL, "v1.2")) == 1
    assert list(lab.authority().renew(["targets"])) == ["2.targets.json"]
    with pytest.raises(NotFoundError):
        lab.authority().revoke_release(*MODEL, "v7")
