"""Immutable objects by their SHA-256: files of releases, and packages. What lies under a name never changes.

:class:`DirectoryStorage` keeps them on this machine's disk, through ``files.py``;
:class:`~autoglm.hub.bucket.BucketStorage` in cloud storage, with a directory of this machine as its cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from autoglm import files
from autoglm.errors import IntegrityError, NotFoundError


class Storage(Protocol):
    """Where the objects of a hub lie for good."""

    @property
    def is_remote(self) -> bool:
        """Whether they lie elsewhere, and this machine holds copies of some."""
        ...

    def send(self, source: Path, sha256: str) -> None:
        """Bring a finished file to where objects lie for good, unless it is there; without any lock.

        Raises:
            StorageError: it was refused.
        """
        ...

    def add(self, source: Path, sha256: str) -> Path:
        """Move a finished file under its hash on this machine, after :meth:`send`; under the store's lock.

        Raises:
            StorageError: the disk refused.
        """
        ...

    def path(self, sha256: str) -> Path:
        """Return a file of this machine with an object's bytes, fetched if need be; without any lock.

        Raises:
            NotFoundError: ``sha256`` is no hash, or there is no such object.
            StorageError: it cannot be read.
        """
        ...

    def require(self, hashes: Iterable[str]) -> None:
        """See that objects which were sent are there: for the moment before a row names them.

        Raises:
            StorageError: one is gone.
        """
        ...

    def link(self, sha256: str) -> str | None:
        """Return an address where anybody may fetch the object for some minutes, None when there is none."""
        ...

    def stream(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``.

        Raises:
            NotFoundError: there is no such object.
            StorageError: it cannot be read.
        """
        ...

    def sweep(self, known: Collection[str]) -> None:
        """Remove all other objects from this machine's disk; under the store's lock."""
        ...

    def strangers(self, known: Collection[str], *, now: float) -> list[str]:
        """Return objects elsewhere that nothing names and that no publication can be about to name.

        Raises:
            StorageError: they cannot be listed.
        """
        ...

    def delete(self, hashes: Collection[str]) -> None:
        """Remove objects that lie elsewhere for good.

        Raises:
            StorageError: it was refused.
        """
        ...


class DirectoryStorage:
    """A directory: ``objects/<sha256>``."""

    is_remote = False

    def __init__(self, directory: Path) -> None:
        """Make it if need be.

        Raises:
            StorageError: the directory cannot be made.
        """
        self.directory = directory
        files.make_directory(directory)

    def send(self, source: Path, sha256: str) -> None:
        """Do nothing: :meth:`add` keeps it for good."""

    def add(self, source: Path, sha256: str) -> Path:
        """Move a finished file under its hash; an intact one that is there stays."""
        target = self.directory / sha256
        try:
            files.verify_file(target, size=source.stat().st_size, sha256=sha256)
        except IntegrityError:
            source.chmod(0o444)
            files.publish_file(source, target)
        return target

    def path(self, sha256: str) -> Path:
        """Return where an object lies."""
        if not files.is_sha256(sha256) or not (path := self.directory / sha256).is_file():
            raise NotFoundError(f"the hub holds no object {sha256[:80]!r}")
        return path

    def require(self, hashes: Iterable[str]) -> None:
        """Do nothing: the lock under which they were added is still held."""

    def link(self, sha256: str) -> str | None:
        """Return None: nobody else reaches this disk."""
        return None

    def stream(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """Yield a range of the file."""
        with self.path(sha256).open("rb") as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(files.CHUNK_BYTES, end - start))):
                start += len(chunk)
                yield chunk

    def sweep(self, known: Collection[str]) -> None:
        """Remove all other objects."""
        for path in self.directory.iterdir():
            if path.name not in known:
                files.remove(path)

    def strangers(self, known: Collection[str], *, now: float) -> list[str]:
        """Return none: :meth:`sweep` does it here."""
        return []

    def delete(self, hashes: Collection[str]) -> None:
        """Do nothing: see :meth:`strangers`."""
