"""A directory of signed metadata, and the picture of a repository that such a place holds.

Every file but ``timestamp.json`` is named after its version and never changes. Anyone may hold a copy: the
hub serves one, an operator carries one to the machine with the offline keys. Nothing here signs or judges.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Collection, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from autoglm.errors import MetadataError, NotFoundError
from autoglm.files import make_directory, remove, remove_temporaries, storage_error, write_durably
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


class Readable(Protocol):
    """Signed metadata that can be read."""

    @property
    def name(self) -> str:
        """Where it lies, for messages."""
        ...

    def versions(self) -> dict[str, list[int]]:
        """Return the versions of every role that are here, lowest first."""
        ...

    def read(self, name: str) -> bytes:
        """Return one file.

        Raises:
            NotFoundError: ``name`` is no name of metadata, or there is no such file.
            StorageError: it cannot be read.
        """
        ...


class MetadataPlace(Readable, Protocol):
    """Where a repository keeps its metadata: a directory of one machine, or what several hubs share."""

    def write(self, contents: dict[str, bytes]) -> None:
        """Keep these files, durably, in the order given; under :meth:`lock`."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove these files, if they are here; under :meth:`lock`."""
        ...

    def written_at(self, names: Collection[str]) -> dict[str, float]:
        """Return when these files came, seconds since 1970."""
        ...

    def mark(self) -> object | None:
        """Return what differs from the last time if the timestamp was replaced; None without one."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the right to change the metadata, among all who may."""
        ...

    def tidy(self) -> None:
        """Remove what interrupted writes left; under :meth:`lock`."""
        ...


class Shelf:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def name(self) -> str:
        """Where it lies, for messages."""
        return str(self.directory)

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

    def remove(self, names: Iterable[str]) -> None:
        """Remove these files, if they are here.

        Raises:
            StorageError: the disk refused.
        """
        for name in names:
            remove(self.directory / name)

    def written_at(self, names: Collection[str]) -> dict[str, float]:
        """Return when these files were written, seconds since 1970."""
        return {name: (self.directory / name).stat().st_mtime for name in names}

    def mark(self) -> object | None:
        """Return what tells one timestamp file from another, None without one.

        Raises:
            StorageError: the disk refused.
        """
        try:
            status = (self.directory / TIMESTAMP_NAME).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, f"reading {self.directory / TIMESTAMP_NAME}") from error
        return status.st_ino, status.st_mtime_ns

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the right to change the metadata, among threads and processes of this machine."""
        with (self.directory.parent / "lock").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def tidy(self) -> None:
        """Remove what interrupted writes left."""
        remove_temporaries(self.directory)


@dataclass
class Picture:
    """What a repository says at one moment.

    Attributes:
        shelf: where it was read.
        versions: of every role; a bin without an entry has none.
        root, targets: the top of the tree.
        delegated: releases and patches, which delegate to their bins.
        expires: when snapshot and timestamp do, where the picture is of what devices see.
        ahead_minutes: added to the versions that follow, to leave behind what devices may have seen.
    """

    shelf: Readable
    versions: dict[str, int]
    root: Root
    targets: Targets
    delegated: dict[str, Targets] = field(default_factory=dict[str, Targets])
    expires: dict[str, datetime] = field(default_factory=dict[str, datetime])
    ahead_minutes: int = 0
    _last: tuple[str, Targets | None] | None = None

    @classmethod
    def of(cls, shelf: Readable, versions: dict[str, int]) -> Picture:
        """Read what these versions say.

        Raises:
            NotFoundError: a file is missing.
            MetadataError: one does not parse.
        """
        for role in (ROOT, TARGETS, RELEASES, PATCHES):
            if role not in versions:
                raise NotFoundError(f"there is no {role} metadata in {shelf.name}")

        def load(role: str) -> Targets:
            return _load_targets(shelf, role, versions[role])

        root = documents.read(Root, shelf.read(metadata_name(ROOT, versions[ROOT]))).signed
        delegated = {role: load(role) for role in (RELEASES, PATCHES)}
        return cls(shelf, dict(versions), root, load(TARGETS), delegated)

    @classmethod
    def newest(cls, shelf: Readable) -> Picture:
        """Read the newest version of each role: what an operator works on."""
        return cls.of(shelf, {role: versions[-1] for role, versions in shelf.versions().items()})

    @classmethod
    def published(cls, shelf: Readable) -> Picture:
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
            raise MetadataError(f"there is no {role} metadata in {self.shelf.name}")
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

        But for root and targets, it is at least the minute since 1970: a hub that was restored from an old
        backup then never reuses a version that devices know with other content, and they follow it again
        as soon as it signs.
        """
        following = self.versions.get(role, 0) + 1
        is_timed = owner_of(role) in (RELEASES, PATCHES, SNAPSHOT, TIMESTAMP)
        return max(following, int(now.timestamp()) // 60 + self.ahead_minutes) if is_timed else following


def _load_targets(shelf: Readable, role: str, version: int) -> Targets:
    try:
        return documents.read(Targets, shelf.read(metadata_name(role, version))).signed
    except NotFoundError as error:
        raise MetadataError(f"{metadata_name(role, version)} is missing in {shelf.name}") from error
