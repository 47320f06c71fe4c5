"""Signed metadata as bytes and as objects: build, sign, read, verify. No disk, no network, no clock.

Every error of the TUF library ends here and goes on as one of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from autoglm.errors import MetadataError, SignatureError
from autoglm.trust.roles import (
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    PACKAGE_PATTERN,
    PATCHES,
    RELEASE_PATTERN,
    RELEASES,
    RULES,
)

Signable = TypeVar("Signable", Root, Targets, Snapshot, Timestamp)
SIGNED_AT = "signed_at"
"""A field of the timestamp: when it was signed, so that a device knows what time it is at least."""

_MAX_BYTES: dict[type, int] = {
    Root: MAX_ROOT_BYTES,
    Targets: MAX_TARGETS_BYTES,
    Snapshot: MAX_SNAPSHOT_BYTES,
    Timestamp: MAX_TIMESTAMP_BYTES,
}


def read(kind: type[Signable], content: bytes) -> Metadata[Signable]:
    """Parse metadata of one kind; its signatures are still to be verified.

    Raises:
        MetadataError: it does not parse, is of another kind, or is too large.
    """
    if len(content) > _MAX_BYTES[kind]:
        raise MetadataError(f"{kind.type} metadata of {len(content)} bytes; at most {_MAX_BYTES[kind]}")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(content)
    except (DeserializationError, RecursionError) as error:
        raise MetadataError(f"this is no {kind.type} metadata") from error
    if not isinstance(metadata.signed, kind):
        raise MetadataError(f"this is {metadata.signed.type} metadata where {kind.type} was expected")
    return metadata


def sign(signed: Signable, signers: Sequence[Signer]) -> bytes:
    """Return metadata as bytes, signed by all of ``signers``."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Signable]) -> None:
    """Check that ``metadata`` is signed as its delegator demands for ``role``.

    Raises:
        SignatureError: it is not.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        version = metadata.signed.version
        raise SignatureError(f"{role} {version} is not signed as it must be: {error}") from error


def new_root(keys: dict[str, list[Key]], expires: datetime) -> Root:
    """Return a first root.

    Args:
        keys: the keys of each top-level role.
        expires: until when it is believed.
    """
    root = Root(1, expires=expires, consistent_snapshot=True)
    for role, of_role in keys.items():
        root.roles[role] = Role([], RULES[role].threshold)
        for key in of_role:
            root.add_key(key, role)
    return root


def new_targets(releases: list[Key], patches: list[Key], expires: datetime) -> Targets:
    """Return a first top-level targets, which delegates to releases and patches."""
    targets = Targets(1, expires=expires)
    targets.delegations = Delegations({}, {})
    delegated = ((RELEASES, releases, RELEASE_PATTERN), (PATCHES, patches, PACKAGE_PATTERN))
    for role, keys, pattern in delegated:
        rule = RULES[role]
        assert targets.delegations.roles is not None
        targets.delegations.roles[role] = DelegatedRole(
            role, [], rule.threshold, terminating=True, paths=[pattern]
        )
        for key in keys:
            targets.add_key(key, role)
    return targets


def new_delegated(role: str, keys: Iterable[Key], expires: datetime, version: int = 1) -> Targets:
    """Return the metadata of releases or patches, which delegates to its bins, signed by the same keys."""
    rule, by_id = RULES[role], {key.keyid: key for key in keys}
    bins = SuccinctRoles(sorted(by_id), rule.threshold, rule.bin_bits, role)
    return Targets(version, expires=expires, delegations=Delegations(by_id, succinct_roles=bins))


def new_snapshot(version: int, versions: dict[str, int], expires: datetime) -> Snapshot:
    """Return a snapshot of the versions of all targets roles."""
    meta = {f"{role}.json": MetaFile(number) for role, number in sorted(versions.items())}
    return Snapshot(version, expires=expires, meta=meta)


def new_timestamp(version: int, snapshot: int, expires: datetime, signed_at: datetime) -> Timestamp:
    """Return a timestamp that names a snapshot's version."""
    more = {SIGNED_AT: signed_at.isoformat()}
    return Timestamp(version, expires=expires, snapshot_meta=MetaFile(snapshot), unrecognized_fields=more)


def signed_at(timestamp: Timestamp) -> datetime | None:
    """Return when a timestamp was signed, None when it does not say."""
    text = timestamp.unrecognized_fields.get(SIGNED_AT)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


def bin_of(delegated: Targets, path: str) -> str:
    """Return the name of the bin that holds the target at ``path``."""
    bins = None if delegated.delegations is None else delegated.delegations.succinct_roles
    if bins is None:
        raise MetadataError("the role has no bins")
    return bins.get_role_for_target(path)


def role_of(root: Root, targets: Targets, role: str) -> Role:
    """Return the keys and threshold of any role that has keys.

    Raises:
        MetadataError: the role is not delegated.
    """
    try:
        return (root if role in root.roles else targets).get_delegated_role(role)
    except ValueError as error:
        raise MetadataError(f"{role} is not delegated") from error


def versions_of(snapshot: Snapshot) -> dict[str, int]:
    """Return the version of each role that a snapshot names."""
    return {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
