"""A directory of signed metadata, and the picture of a repository that it holds.

Every file but ``timestamp.json`` is named after its version and never changes. Anyone may hold a copy: the
hub serves one, an operator carries one to the machine with the offline keys. Nothing here signs or judges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from autoglm.errors import MetadataError, NotFoundError
from autoglm.files import make_directory, storage_error, write_durably
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
    is_bin,
    metadata_name,
    owner_of,
    parse_name,
)


class Shelf:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def versions(self) -> dict[str, list[int]]:
        """Return the versions of every role that lie here, lowest first."""
        found: dict[str, list[int]] = {}
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if (parsed := parse_name(path.name)) is not None:
                    found.setdefault(parsed[0], []).append(parsed[1])
        return {role: sorted(versions) for role, versions in found.items()}

    def read(self, name: str) -> bytes:
        """Return one file.

        Raises:
            NotFoundError: ``name`` is no name of metadata, or there is no such file.
            StorageError: it cannot be read.
        """
        if name != TIMESTAMP_NAME and parse_name(name) is None:
            raise NotFoundError(f"{name[:80]!r} is no name of metadata")
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no metadata {name}") from error
        except OSError as error:
            raise storage_error(error, f"reading {self.directory / name}") from error

    def write(self, contents: dict[str, bytes]) -> None:
        """Keep these files, durably, in the order given.

        Raises:
            StorageError: the disk refused.
        """
        make_directory(self.directory)
        for name, content in contents.items():
            write_durably(self.directory / name, content)


@dataclass
class Picture:
    """What a repository says at one moment.

    Attributes:
        shelf: where it was read.
        versions: of every role; a bin without an entry has none.
        root, targets: the top of the tree.
        delegated: releases and patches, which delegate to their bins.
        expires: when snapshot and timestamp do, where the picture is of what devices see.
    """

    shelf: Shelf
    versions: dict[str, int]
    root: Root
    targets: Targets
    delegated: dict[str, Targets] = field(default_factory=dict[str, Targets])
    expires: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _last: tuple[str, Targets | None] | None = None

    @classmethod
    def of(cls, shelf: Shelf, versions: dict[str, int]) -> Picture:
        """Read what these versions say.

        Raises:
            NotFoundError: a file is missing.
            MetadataError: one does not parse.
        """
        for role in (ROOT, TARGETS, RELEASES, PATCHES):
            if role not in versions:
                raise NotFoundError(f"there is no {role} metadata in {shelf.directory}")

        def load(role: str) -> Targets:
            return _load_targets(shelf, role, versions[role])

        root = documents.read(Root, shelf.read(metadata_name(ROOT, versions[ROOT]))).signed
        delegated = {role: load(role) for role in (RELEASES, PATCHES)}
        return cls(shelf, dict(versions), root, load(TARGETS), delegated)

    @classmethod
    def newest(cls, shelf: Shelf) -> Picture:
        """Read the newest version of each role: what an operator works on."""
        return cls.of(shelf, {role: versions[-1] for role, versions in shelf.versions().items()})

    @classmethod
    def published(cls, shelf: Shelf) -> Picture:
        """Read what the timestamp names, and the newest root: what devices see."""
        timestamp = documents.read(Timestamp, shelf.read(TIMESTAMP_NAME)).signed
        number = timestamp.snapshot_meta.version
        snapshot = documents.read(Snapshot, shelf.read(metadata_name(SNAPSHOT, number))).signed
        roots = shelf.versions().get(ROOT, [1])
        own = {SNAPSHOT: number, TIMESTAMP: timestamp.version, ROOT: roots[-1]}
        picture = cls.of(shelf, documents.versions_of(snapshot) | own)
        picture.expires = {SNAPSHOT: snapshot.expires, TIMESTAMP: timestamp.expires}
        return picture

    def read_targets(self, role: str) -> Targets | None:
        """Return the metadata of a bin or another targets role, None for a bin without an entry.

        Raises:
            MetadataError: it does not parse, or the file is missing.
        """
        version = self.versions.get(role)
        return None if version is None else _load_targets(self.shelf, role, version)

    def find(self, owner: str, path: str) -> TargetFile | None:
        """Return what releases or patches say about a target, None when they say nothing.

        Ask in the order of :meth:`by_bin` where there is much to ask: the bin that was read last is kept.
        """
        role, last = documents.bin_of(self.delegated[owner], path), self._last
        if last is None or last[0] != role:
            self._last = last = role, self.read_targets(role)
        return None if last[1] is None else last[1].targets.get(path)

    def by_bin(self, owner: str, paths: Iterable[str]) -> list[str]:
        """Return paths ordered by the bins that they are in."""
        return sorted(paths, key=lambda path: documents.bin_of(self.delegated[owner], path))

    def bins(self, owner: str) -> list[str]:
        """Return the bins of releases or patches that have an entry."""
        return sorted(role for role in self.versions if is_bin(role) and owner_of(role) == owner)

    def expiry_of(self, role: str) -> datetime:
        """Return until when a role is believed.

        Raises:
            MetadataError: it is missing or does not parse.
        """
        if role in self.expires:
            return self.expires[role]
        if role == ROOT:
            return self.root.expires
        if (found := self.read_targets(role)) is None:
            raise MetadataError(f"there is no {role} metadata in {self.shelf.directory}")
        return found.expires

    def with_entries(self, owner: str, entries: Iterable[TargetFile], now: datetime) -> dict[str, Targets]:
        """Return the bins of ``owner`` as they are after adding ``entries``, unsigned, by name."""
        changed: dict[str, Targets] = {}
        for entry in entries:
            role = documents.bin_of(self.delegated[owner], entry.path)
            if role not in changed:
                changed[role] = self.next_bin(role, now)
            changed[role].targets[entry.path] = entry
        return changed

    def next_bin(self, role: str, now: datetime) -> Targets:
        """Return the next version of a bin, unsigned and otherwise as it is."""
        found = self.read_targets(role) or Targets(expires=now)
        return self.stamped(found, role, now)

    def stamped(self, signed: documents.Signable, role: str, now: datetime) -> documents.Signable:
        """Give metadata its next version and a new expiry."""
        signed.version = self.next_version(role, now)
        signed.expires = (now + RULES[owner_of(role)].lifetime).replace(microsecond=0)
        return signed

    def next_version(self, role: str, now: datetime) -> int:
        """Return the version to sign next.

        Below releases and patches it is at least the minute since 1970: a hub that was restored from an old
        backup then never reuses a version that devices know with other content.
        """
        following = self.versions.get(role, 0) + 1
        is_delegated = owner_of(role) in (RELEASES, PATCHES)
        return max(following, int(now.timestamp()) // 60) if is_delegated else following


def _load_targets(shelf: Shelf, role: str, version: int) -> Targets:
    try:
        return documents.read(Targets, shelf.read(metadata_name(role, version))).signed
    except NotFoundError as error:
        raise MetadataError(f"{metadata_name(role, version)} is missing in {shelf.directory}") from error
