"""The hub's files: immutable objects by hash, release directories as links to them, and room to work in.

::

    objects/<sha256>         release files and packages, written once, read-only
    releases/<folder>/       hard links into objects, one directory a release
    uploads/<workspace>/     temporaries; each is locked by its owner for as long as that lives
    store.lock               held while files and rows are made to agree

What it guarantees: an object under its name is whole and durable; nothing that a living process works on
is ever swept; what a killed one left is. It does not know the database: the caller says what is in use.

    >>> with store.workspace() as work: ...      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Collection, Generator, Mapping
from pathlib import Path

from autoglm import files
from autoglm.errors import IntegrityError, NotFoundError
from autoglm.releases import MANIFEST_NAME, Manifest


class Store:
    """The directories of one hub; safe for threads and processes of one machine."""

    def __init__(self, directory: Path) -> None:
        """Make what is missing.

        Raises:
            StorageError: the directory cannot be made.
        """
        self.directory = directory.absolute()
        self.objects = self.directory / "objects"
        self.releases = self.directory / "releases"
        self.uploads = self.directory / "uploads"
        for part in (self.objects, self.releases, self.uploads):
            files.make_directory(part)

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Wait for, then hold, the right to make files and rows agree; the kernel frees it after a crash."""
        with (self.directory / "store.lock").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def workspace(self) -> Generator[Path]:
        """Give a fresh directory on the store's file system and remove it after the block.

        Raises:
            StorageError: the disk refused.
        """
        with contextlib.ExitStack() as stack:
            with self.lock():  # no sweep may see it before its own lock is held
                try:
                    path = Path(tempfile.mkdtemp(dir=self.uploads))
                except OSError as error:
                    raise files.storage_error(error, f"making a directory in {self.uploads}") from error
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX)
            stack.callback(files.remove, path)
            yield path

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
        """Return where an object lies.

        Raises:
            NotFoundError: ``sha256`` is no hash, or there is no such object.
        """
        if not files.is_sha256(sha256) or not (path := self.objects / sha256).is_file():
            raise NotFoundError(f"the hub holds no object {sha256[:80]!r}")
        return path

    def add_object(self, source: Path, sha256: str) -> Path:
        """Move a finished file under its hash; an intact one that is there stays. Call under :meth:`lock`.

        Raises:
            StorageError: the disk refused.
        """
        target = self.objects / sha256
        try:
            files.verify_file(target, size=source.stat().st_size, sha256=sha256)
        except IntegrityError:
            source.chmod(0o444)
            files.publish_file(source, target)
        return target

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
        for work in self.uploads.iterdir():
            if not _is_held(work):
                files.remove(work)
        for directory, known in ((self.releases, folders), (self.objects, objects)):
            for path in directory.iterdir():
                if path.name not in known:
                    files.remove(path)


def _contents(manifest: Manifest) -> Mapping[str, str]:
    return {file.path: file.sha256 for file in manifest.files} | {MANIFEST_NAME: manifest.sha256}


def objects_of(manifest: Manifest) -> set[str]:
    """Return the hashes of all files of a release, its manifest among them."""
    return set(_contents(manifest).values())


def _is_held(work: Path) -> bool:
    try:
        held = os.open(work, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False
