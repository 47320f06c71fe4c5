"""Whether metadata that was signed elsewhere may follow what is trusted now.

What it guarantees: a candidate is verified whole, as a device will see it, before any of it is kept: every
signature, every version, and that no signed release changes or disappears. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from autoglm.errors import (
    ConflictError,
    ExpiredError,
    MetadataError,
    NotFoundError,
    RollbackError,
    SignatureError,
)
from autoglm.trust import documents
from autoglm.trust.roles import (
    PATCHES,
    RELEASES,
    ROOT,
    RULES,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TIMESTAMP_NAME,
    metadata_name,
    owner_of,
    parse_name,
)
from autoglm.trust.shelf import Picture, Readable
from autoglm.trust.targets import SignedRelease

MAX_UPLOADED = 1024


class Overlay:
    """Metadata as it will be, with files that are not kept yet."""

    def __init__(self, under: Readable, contents: Mapping[str, bytes]) -> None:
        self._under, self._contents = under, contents

    @property
    def name(self) -> str:
        """Where what is kept lies."""
        return self._under.name

    def versions(self) -> dict[str, list[int]]:
        """Return the versions that are kept."""
        return self._under.versions()

    def read(self, name: str) -> bytes:
        """Return one file, a new one where there is one; see :meth:`Readable.read`."""
        return self._contents[name] if name in self._contents else self._under.read(name)


@dataclass(frozen=True)
class Candidate:
    """Verified metadata that may follow.

    Attributes:
        picture: the repository as it will be.
        new: the files that are not here yet, by name.
        has_new_patches_key: what the old patches key has signed must be signed anew.
    """

    picture: Picture
    new: dict[str, bytes]
    has_new_patches_key: bool


def admit(picture: Picture, uploaded: Mapping[str, bytes], now: datetime) -> Candidate:
    """Verify uploaded metadata against the present state.

    Raises:
        MetadataError: a name or a content that is none, or that only the hub itself may sign.
        SignatureError: not signed by enough of the keys that must sign it.
        RollbackError: a version that is not above the present one.
        ExpiredError: it has expired already.
        ConflictError: a signed release would change or disappear.
    """
    new = _unknown(picture.shelf, uploaded)
    roots = _new_roots(picture, new, now)
    versions = picture.versions | _new_versions(picture, new)
    after = Picture.of(Overlay(picture.shelf, new), versions)
    _verify_delegations(after, roots)
    changed_key = _keys(picture, PATCHES) != _keys(after, PATCHES)
    if not changed_key:
        _verify(after, after.targets, PATCHES)
    for role in after.bins(RELEASES):
        if metadata_name(role, after.versions[role]) in new:
            _require_growth(picture, after, role)
    for name in new:
        _require_fresh(after, name, now)
    return Candidate(after, new, changed_key)


def _unknown(shelf: Readable, uploaded: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what is not on the shelf yet."""
    if len(uploaded) > MAX_UPLOADED:
        raise MetadataError(f"{len(uploaded)} files at once; at most {MAX_UPLOADED} are taken")
    new: dict[str, bytes] = {}
    for name, content in uploaded.items():
        role = (parse_name(name) or ("", 0))[0]
        if owner_of(role) not in (ROOT, TARGETS, RELEASES):
            raise MetadataError(f"{name[:80]!r} is nothing that is signed offline and uploaded")
        try:
            if shelf.read(name) != content:
                raise ConflictError(f"{name} is here already with other content")
        except NotFoundError:
            new[name] = content
    return new


def _new_roots(picture: Picture, new: Mapping[str, bytes], now: datetime) -> Root:
    """Follow the chain of uploaded roots from the present one to the last."""
    root, left = picture.root, {name for name in new if (parse_name(name) or ("",))[0] == ROOT}
    while (name := metadata_name(ROOT, root.version + 1)) in left:
        left.remove(name)
        metadata = documents.read(Root, new[name])
        if metadata.signed.version != root.version + 1:
            raise MetadataError(f"{name} says that it is version {metadata.signed.version}")
        documents.verify(root, ROOT, metadata)
        documents.verify(metadata.signed, ROOT, metadata)
        root = metadata.signed
    if left:
        raise RollbackError(f"{min(left)} does not follow root {root.version}")
    return root


def _new_versions(picture: Picture, new: Mapping[str, bytes]) -> dict[str, int]:
    versions: dict[str, int] = {}
    for name in new:
        role, version = parse_name(name) or ("", 0)
        if role != ROOT and (role in versions or version <= picture.versions.get(role, 0)):
            raise RollbackError(
                f"{name} does not follow {role} {picture.versions.get(role, 0)}: it was made from old "
                "metadata; fetch the newest and sign again"
            )
        versions[role] = max(version, versions.get(role, 0))
    return versions


def verify_offline(picture: Picture) -> None:
    """Check what the offline keys have signed, from the root down: targets, releases and all of its bins.

    Raises:
        SignatureError, MetadataError: something is not what it must be.
    """
    _verify_delegations(picture, picture.root)


def _verify_delegations(after: Picture, root: Root) -> None:
    """Verify targets, releases and all of its bins from the root down."""
    _verify(after, root, TARGETS)
    _verify(after, after.targets, RELEASES)
    releases = after.delegated[RELEASES]
    bins = None if releases.delegations is None else releases.delegations.succinct_roles
    if bins is None or (bins.bit_length, bins.name_prefix) != (RULES[RELEASES].bin_bits, RELEASES):
        raise MetadataError("releases does not delegate to the bins that hubs and devices agree on")
    for role in after.bins(RELEASES):
        if not bins.is_delegated_role(role):
            raise MetadataError(f"releases has no bin {role}")
        _verify(after, releases, role)


def _verify(picture: Picture, delegator: Root | Targets, role: str) -> None:
    name = metadata_name(role, picture.versions[role])
    metadata = documents.read(Targets, picture.shelf.read(name))
    if metadata.signed.version != picture.versions[role]:
        raise MetadataError(f"{name} says that it is version {metadata.signed.version}")
    documents.verify(delegator, role, metadata)


def is_sound(picture: Picture) -> bool:
    """Tell whether the top of a published state is signed by the keys that its newest root names."""
    try:
        _verify(picture, picture.root, TARGETS)
        name = metadata_name(SNAPSHOT, picture.versions[SNAPSHOT])
        snapshot = documents.read(Snapshot, picture.shelf.read(name))
        documents.verify(picture.root, SNAPSHOT, snapshot)
        timestamp = documents.read(Timestamp, picture.shelf.read(TIMESTAMP_NAME))
        documents.verify(picture.root, TIMESTAMP, timestamp)
    except SignatureError:
        return False
    return True


def _keys(picture: Picture, role: str) -> tuple[frozenset[str], int]:
    found = documents.role_of(picture.root, picture.targets, role)
    return frozenset(found.keyids), found.threshold


def _require_growth(before: Picture, after: Picture, role: str) -> None:
    """Refuse a bin in which a release was dropped or changed other than by being called back.

    Raises:
        ConflictError: one was.
        MetadataError: an entry is no release, or belongs into another bin.
    """
    old, new = before.read_targets(role), after.read_targets(role)
    entries = {} if new is None else {p: SignedRelease.from_target(t) for p, t in new.targets.items()}
    for path in entries:
        if documents.bin_of(after.delegated[RELEASES], path) != role:
            raise MetadataError(f"{path} does not belong into {role}")
    for path, target in ({} if old is None else old.targets).items():
        was, now = SignedRelease.from_target(target), entries.get(path)
        if now is None or not _may_become(was, now):
            raise ConflictError(
                f"{role} drops or changes {path}, which is signed already: fetch the newest and sign again"
            )


def _may_become(was: SignedRelease, now: SignedRelease) -> bool:
    if now.revoked < was.revoked or now.min_counter < was.min_counter:
        return False
    return replace(was, revoked=now.revoked, min_counter=now.min_counter) == now


def _require_fresh(after: Picture, name: str, now: datetime) -> None:
    role, version = parse_name(name) or ("", 0)
    if version == after.versions[role] and after.expiry_of(role) <= now:
        raise ExpiredError(f"{name} has expired: sign it again")
