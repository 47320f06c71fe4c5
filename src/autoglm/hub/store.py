"""The hub's files: immutable objects by hash, release directories as links to them, and room to work in.

::

    objects/<sha256>         release files and packages, written once, read-only; with cloud storage, copies
    releases/<folder>/       hard links into objects, one directory a release
    uploads/<workspace>/     temporaries; each is locked by its owner for as long as that lives
    store.lock               held while files and rows are made to agree

What it guarantees: an object under its name is whole and durable; nothing that a living process works on
is ever swept; what a killed one left is. It does not know the database: the caller says what is in use.

    >>> with store.workspace() as work: ...      # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from autoglm import files
from autoglm.errors import NotFoundError
from autoglm.hub.storage import DirectoryStorage, Storage
from autoglm.hub.workspaces import Workspaces
from autoglm.releases import MANIFEST_NAME, Manifest

UNUSED_S = 7 * 24 * 3600.0


class Store:
    """The directories of one hub on this machine; safe for its threads and processes.

    Attributes:
        storage: where the objects lie for good.
    """

    def __init__(self, directory: Path, storage_url: str | None = None) -> None:
        """Make what is missing.

        Args:
            directory: of this machine.
            storage_url: the bucket that keeps the objects; None keeps them in the directory.

        Raises:
            ConfigError: the storage URL is wrong.
            StorageError: the directory cannot be made.
        """
        self.directory = directory.absolute()
        self.objects = self.directory / "objects"
        self.releases = self.directory / "releases"
        self._workspaces = Workspaces(self.directory)
        self.uploads = self._workspaces.uploads
        files.make_directory(self.releases)
        self.storage: Storage = DirectoryStorage(self.objects)
        if storage_url is not None:
            from autoglm.hub.bucket import BucketStorage

            self.storage = BucketStorage.open(storage_url, self.storage, self._workspaces)

    def lock(self) -> AbstractContextManager[None]:
        """Wait for, then hold, the right to make files and rows agree; the kernel frees it after a crash."""
        return self._workspaces.lock()

    def workspace(self) -> AbstractContextManager[Path]:
        """Give a fresh directory on the store's file system and remove it after the block.

        Raises:
            StorageError: the disk refused.
        """
        return self._workspaces.workspace()

    def take(self, package: Path, work: Path) -> tuple[Path, str]:
        """Bring a package into a workspace, so that nobody can change it while it is looked at.

        Returns:
            The private copy and its SHA-256.

        Raises:
            NotFoundError: there is no such file.
            StorageError: it cannot be read, or the disk refused.
        """
        if not package.is_file():
            raise NotFoundError(f"there is no file {package}")
        held = work / "package.wpatch"
        if package.resolve().is_relative_to(self.uploads.resolve()):
            files.link_file(package, held)
            return held, files.sha256_file(held)
        digest = hashlib.sha256()
        try:
            with package.open("rb") as source, held.open("xb") as copy:
                while chunk := source.read(files.CHUNK_BYTES):
                    digest.update(chunk)
                    copy.write(chunk)
        except OSError as error:
            raise files.storage_error(error, f"copying {package.name} into the hub") from error
        return held, digest.hexdigest()

    def object_path(self, sha256: str) -> Path:
        """Return a file with an object's bytes, fetched if it lies elsewhere. Call without :meth:`lock`.

        Raises:
            NotFoundError: ``sha256`` is no hash, or there is no such object.
            StorageError: it cannot be fetched.
        """
        return self.storage.path(sha256)

    def add_object(self, source: Path, sha256: str) -> Path:
        """Move a finished file under its hash; an intact one that is there stays. Call under :meth:`lock`.

        Raises:
            StorageError: the disk refused.
        """
        return self.storage.add(source, sha256)

    def send_release(self, manifest: Manifest, directory: Path) -> None:
        """Bring a verified release's files to where objects lie for good. Call without :meth:`lock`.

        Raises:
            StorageError: they were refused.
        """
        for path, sha256 in _contents(manifest).items():
            self.storage.send(directory / path, sha256)

    def release_path(self, manifest: Manifest) -> Path:
        """Return a release's directory, made of fetched objects if need be. Call without :meth:`lock`.

        Raises:
            NotFoundError, StorageError: an object cannot be fetched.
        """
        if not (target := self.releases / manifest.folder).is_dir():
            for sha256 in _contents(manifest).values():
                self.storage.path(sha256)
            with self.lock():
                self.restore_release(manifest)
        os.utime(target)  # for forget_unused
        return target

    def forget_unused(self, now: float) -> None:
        """Remove copies of what lies elsewhere that nobody used for a week. Call without :meth:`lock`.

        Raises:
            StorageError: the disk refused.
        """
        if not self.storage.is_remote:
            return
        with self.lock():
            for path in [path for path in self.releases.iterdir() if _is_unused(path, now)]:
                files.remove(path)
            for path in [path for path in self.objects.iterdir() if path.stat().st_nlink == 1]:
                if _is_unused(path, now):
                    files.remove(path)

    def add_release(self, manifest: Manifest, directory: Path, work: Path) -> Path:
        """Move a verified release's files into the objects and link its directory. Call under :meth:`lock`.

        Args:
            manifest: of the release.
            directory: its verified files on the store's file system; used up.
            work: the workspace.

        Raises:
            StorageError: the disk refused.
        """
        for path, sha256 in _contents(manifest).items():
            self.add_object(directory / path, sha256)
        return self._link(manifest, work)

    def restore_release(self, manifest: Manifest) -> None:
        """Link a release's directory anew if it is gone. Call under :meth:`lock`.

        Raises:
            StorageError: the disk refused, or an object is gone.
        """
        if (self.releases / manifest.folder).is_dir():
            return
        with tempfile.TemporaryDirectory(dir=self.uploads) as work:
            self._link(manifest, Path(work))

    def _link(self, manifest: Manifest, work: Path) -> Path:
        tree = work / "tree"
        for path, sha256 in _contents(manifest).items():
            files.make_directory((tree / path).parent)
            files.link_file(self.objects / sha256, tree / path)
        target = self.releases / manifest.folder
        files.remove(target)  # no row names it, or we would not be here: what a killed publish left
        files.publish_tree(tree, target)
        return target

    def sweep(self, folders: Collection[str], objects: Collection[str]) -> None:
        """Remove what interrupted work left: all but these, and the workspaces of the living.

        Call under :meth:`lock`.

        Raises:
            StorageError: the disk refused.
        """
        self._workspaces.sweep()
        for path in self.releases.iterdir():
            if path.name not in folders:
                files.remove(path)
        self.storage.sweep(objects)


def _is_unused(path: Path, now: float) -> bool:
    return path.stat().st_mtime < now - UNUSED_S


def _contents(manifest: Manifest) -> Mapping[str, str]:
    return {file.path: file.sha256 for file in manifest.files} | {MANIFEST_NAME: manifest.sha256}


def objects_of(manifest: Manifest) -> set[str]:
    """Return the hashes of all files of a release, its manifest among them."""
    return set(_contents(manifest).values())
