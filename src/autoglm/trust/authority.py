"""What is done with the offline keys: set up, rotate, revoke, renew, sign a release, call one back.

Everything here takes a picture of the metadata and returns new, signed files by name; the caller keeps them
or uploads them. The running hub needs none of these keys.

    >>> establish(Shelf(room / "metadata"), room / "keys", room / "online", now)             # doctest: +SKIP
    >>> Authority(Picture.newest(shelf), ring, now).sign_release(SignedRelease.of(manifest)) # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from autoglm.errors import ConfigError, ConflictError, NotFoundError
from autoglm.trust import documents
from autoglm.trust.keys import KeyRing, make_key
from autoglm.trust.roles import (
    OFFLINE,
    ONLINE,
    PATCHES,
    RELEASES,
    ROOT,
    RULES,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TIMESTAMP_NAME,
    TOP_LEVEL,
    metadata_name,
    owner_of,
    release_path,
    require_role,
)
from autoglm.trust.shelf import MetadataPlace, Picture
from autoglm.trust.targets import SignedRelease

Documents = dict[str, bytes]
"""Signed metadata by file name."""


def establish(
    shelf: MetadataPlace, offline: Path, online: Path, now: datetime, passphrase: bytes | None = None
) -> Documents:
    """Make the keys of all roles and the first version of everything, and put the metadata on ``shelf``.

    Args:
        shelf: must be empty.
        offline: gets the private keys of root, targets and releases, encrypted by ``passphrase`` if given.
        online: gets those of snapshot, timestamp and patches, for the hub.

    Raises:
        ConflictError: there is metadata already.
        StorageError: the disk refused.
    """
    if shelf.versions():
        raise ConflictError(f"{shelf.name} holds metadata already: it is not made anew over it")
    keys = {
        role: [
            make_key(role, online if role in ONLINE else offline, None if role in ONLINE else passphrase)
            for _ in range(rule.num_keys)
        ]
        for role, rule in RULES.items()
    }
    ring = KeyRing([offline, online], passphrase)
    made = _first_documents(keys, ring, now)
    shelf.write(made)
    return made


def _first_documents(keys: dict[str, list[Key]], ring: KeyRing, now: datetime) -> Documents:
    def until(role: str) -> datetime:
        return (now + RULES[role].lifetime).replace(microsecond=0)

    def signers(role: str) -> list[documents.Signer]:
        return ring.signers([key.keyid for key in keys[role]])

    root = documents.new_root({role: keys[role] for role in TOP_LEVEL}, until(ROOT))
    targets = documents.new_targets(keys[RELEASES], keys[PATCHES], until(TARGETS))
    made = {
        metadata_name(ROOT, 1): documents.sign(root, signers(ROOT)),
        metadata_name(TARGETS, 1): documents.sign(targets, signers(TARGETS)),
    }
    versions = {TARGETS: 1}
    for role in (RELEASES, PATCHES):
        delegated = documents.new_delegated(role, keys[role], until(role))
        made[metadata_name(role, 1)] = documents.sign(delegated, signers(role))
        versions[role] = 1
    snapshot = documents.new_snapshot(1, versions, until(SNAPSHOT))
    made[metadata_name(SNAPSHOT, 1)] = documents.sign(snapshot, signers(SNAPSHOT))
    timestamp = documents.new_timestamp(1, 1, until(TIMESTAMP), now)
    made[TIMESTAMP_NAME] = documents.sign(timestamp, signers(TIMESTAMP))
    return made


class Authority:
    """The holder of some offline keys, for one act on one picture of the metadata.

    Args:
        picture: the metadata as it is; used up by the act.
        ring: the keys at hand.
        now: the time, for expiry.
    """

    def __init__(self, picture: Picture, ring: KeyRing, now: datetime) -> None:
        self._picture, self._ring, self._now = picture, ring, now

    # -- releases -----------------------------------------------------------------------------------

    def sign_release(self, release: SignedRelease) -> Documents:
        """Sign a release; nothing is returned when exactly this one is signed already.

        Raises:
            ConflictError: another release is signed under its names, or it was revoked.
            ConfigError: the release key is not here.
        """
        known = self._find(release.path)
        if known == release:
            return {}
        if known is not None:
            why = "was revoked" if known.revoked else "is signed already with other content"
            raise ConflictError(f"{release.version} {why}: choose a new version")
        return self._put(release)

    def revoke_release(self, model: str, variant: str, version: str) -> Documents:
        """Call a release back; nothing is returned when it was called back before.

        Raises:
            NotFoundError: no such release was signed.
            ConfigError: the release key is not here.
        """
        known = self._find(release_path(model, variant, version))
        if known is None:
            raise NotFoundError(f"no release {version} of {model} {variant} was ever signed")
        return {} if known.revoked else self._put(replace(known, revoked=True))

    def _find(self, path: str) -> SignedRelease | None:
        target = self._picture.find(RELEASES, path)
        return None if target is None else SignedRelease.from_target(target)

    def _put(self, release: SignedRelease) -> Documents:
        changed = self._picture.with_entries(RELEASES, [release.to_target()], self._now)
        signers = self._signers(RELEASES)
        return {
            metadata_name(role, each.version): documents.sign(each, signers) for role, each in changed.items()
        }

    # -- expiry -------------------------------------------------------------------------------------

    def due(self) -> list[str]:
        """Return the offline roles and bins that should be signed again by now."""
        due: list[str] = []
        for role in (*OFFLINE, *self._picture.bins(RELEASES)):
            signed = self._read(role)
            if RULES[owner_of(role)].is_due(signed.expires, self._now):
                due.append(role)
        return due

    def renew(self, roles: Iterable[str]) -> Documents:
        """Sign roles again as they are, with a new expiry.

        Raises:
            ConfigError: keys are missing.
        """
        return {name: content for role in roles for name, content in self._renewed(role)}

    def _renewed(self, role: str) -> list[tuple[str, bytes]]:
        signed, signers = self._read(role), self._signers(owner_of(role))
        if isinstance(signed, Root):
            content = documents.sign(self._picture.stamped(signed, role, self._now), signers)
        else:
            content = documents.sign(self._picture.stamped(signed, role, self._now), signers)
        return [(metadata_name(role, signed.version), content)]

    def _read(self, role: str) -> Root | Targets:
        picture = self._picture
        if role == ROOT:
            return picture.root
        found = picture.targets if role == TARGETS else picture.delegated.get(role)
        found = found or picture.read_targets(role)
        if found is None:
            raise NotFoundError(f"there is no {role} metadata")
        return found

    # -- keys ---------------------------------------------------------------------------------------

    def keyids(self, role: str) -> list[str]:
        """Return the ids of a role's keys."""
        return list(documents.role_of(self._picture.root, self._picture.targets, role).keyids)

    def role_of_key(self, text: str) -> tuple[str, str]:
        """Return the role and the full id of a key that is named by the first digits of its id.

        Raises:
            NotFoundError: no role has such a key.
            ConfigError: several do.
        """
        found = [(role, keyid) for role in RULES for keyid in self.keyids(role) if keyid.startswith(text)]
        if not found or not text:
            raise NotFoundError(f"no role has a key {text!r}; see: autoglm keys status")
        if len(found) > 1:
            raise ConfigError(f"{text!r} names {len(found)} keys: write more digits")
        return found[0]

    def replace_keys(self, role: str, place: Path, *, drop: Collection[str] | None = None) -> Documents:
        """Give a role new keys, and sign again what the old ones had signed.

        The metadata of snapshot, timestamp and patches is not signed again here: the hub does that, once it
        has the new private keys.

        Args:
            role: any role that has keys.
            place: gets the new private keys, encrypted by the ring's passphrase unless the hub needs them.
            drop: ids of the keys to replace; None replaces all.

        Raises:
            ConfigError: too few of the keys that must agree are here.
            StorageError: the disk refused.
        """
        rule, old = require_role(role), self.keyids(role)
        kept = [] if drop is None else [keyid for keyid in old if keyid not in drop]
        declarer = ROOT if role in TOP_LEVEL else TARGETS
        self._signers(declarer)  # better to find a missing key before making new ones
        passphrase = None if role in ONLINE else self._ring.passphrase
        new = [make_key(role, place, passphrase) for _ in range(max(rule.num_keys, len(old)) - len(kept))]
        self._ring = self._ring.joined(place)
        made = self._declare(role, [keyid for keyid in old if keyid not in kept], new)
        if role == TARGETS:
            made |= self.renew([TARGETS])
        if role == RELEASES:
            made |= self._sign_releases_anew()
        return made

    def _declare(self, role: str, old: list[str], new: list[Key]) -> Documents:
        """Sign the metadata that lists a role's keys, with the list changed."""
        if role not in TOP_LEVEL:
            _exchange(self._picture.targets, role, old, new)
            return self.renew([TARGETS])
        before = self._signers(ROOT)
        root = self._picture.stamped(self._picture.root, ROOT, self._now)
        _exchange(root, role, old, new)
        # A new root is signed by as many old root keys as before, and by as many of its own as it demands.
        now = {signer.public_key.keyid: signer for signer in (*before, *self._signers(ROOT))}
        return {metadata_name(ROOT, root.version): documents.sign(root, list(now.values()))}

    def _sign_releases_anew(self) -> Documents:
        picture = self._picture
        delegation = documents.role_of(picture.root, picture.targets, RELEASES)
        keys = [picture.targets.get_key(keyid) for keyid in delegation.keyids]
        picture.delegated[RELEASES] = documents.new_delegated(RELEASES, keys, self._now)
        return self.renew([RELEASES, *picture.bins(RELEASES)])

    def _signers(self, role: str) -> list[documents.Signer]:
        found = documents.role_of(self._picture.root, self._picture.targets, role)
        return self._ring.require(role, list(found.keyids), found.threshold)


def _exchange(declarer: Root | Targets, role: str, old: Iterable[str], new: Iterable[Key]) -> None:
    for keyid in old:
        declarer.revoke_key(keyid, role)
    for key in new:
        declarer.add_key(key, role)
