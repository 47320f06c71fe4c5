"""Durable files: the only place that renames, links or syncs.

What it guarantees: after :func:`write_durably`, :func:`publish_file` or :func:`publish_tree` returns, the
new content survives a power cut; at any moment before, the old content (or nothing) is there, never a
mixture. It follows the rule of every careful program on POSIX: write a temporary file in the same
directory, fsync it, rename it over the name, fsync the directory.

    >>> write_durably(Path("state.json"), b"{}")        # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, NoReturn

from autoglm.errors import DiskFullError, IntegrityError, LockedError, StorageError

CHUNK_BYTES = 1 << 20
_TEMPORARY = ".tmp-"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def storage_error(error: OSError, doing: str) -> StorageError:
    """Translate an operating-system error into ours, saying what was being done."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"no space left while {doing}: free some and run it again; nothing was lost")
    return StorageError(f"{error.strerror or error} while {doing}")


def _refuse(error: OSError, doing: str) -> NoReturn:
    raise storage_error(error, doing) from error


def sync_directory(directory: Path) -> None:
    """Make renames, links and removals inside ``directory`` durable.

    Raises:
        StorageError: the disk refused.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        _refuse(error, f"syncing the directory {directory}")


def make_directory(directory: Path) -> None:
    """Create ``directory`` and its missing parents, durably.

    Raises:
        StorageError: it cannot be created.
    """
    missing: list[Path] = []
    current = directory
    while not current.exists():
        missing.append(current)
        current = current.parent
    try:
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            sync_directory(new.parent)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(directory))
    except OSError as error:
        _refuse(error, f"making the directory {directory}")


@contextlib.contextmanager
def durable_file(path: Path, *, mode: int = 0o644) -> Generator[IO[bytes]]:
    """Open a new file that appears under ``path`` when the block ends well, whole and durable.

    An exception inside the block leaves ``path`` as it was and no temporary file behind.

    Raises:
        DiskFullError: no room.
        StorageError: any other refusal of the disk.
    """
    try:
        fd, temporary = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}-", dir=path.parent)
    except OSError as error:
        _refuse(error, f"writing {path}")
    try:
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
            sync_directory(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        _refuse(error, f"writing {path}")


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``content``: after a crash it holds the old bytes or the new ones, whole.

    Raises:
        DiskFullError: no room; the old content is untouched.
        StorageError: any other refusal of the disk.
    """
    with durable_file(path, mode=mode) as file:
        file.write(content)


def sync_file(path: Path) -> None:
    """Flush a file that was written in place to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_sync(file: IO[bytes], offset: int, length: int) -> None:
    """Ask the system to start writing a range to the disk, so that syncing the file later waits less.

    A hint, which promises nothing: where the system has none, nothing happens.
    """
    file.flush()
    if hasattr(os, "posix_fadvise"):
        # Linux starts writing dirty pages back before it drops clean ones.
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def sync_tree(directory: Path) -> None:
    """Make all that lies in ``directory``, at any depth, durable.

    Raises:
        StorageError: the disk refused.
    """
    try:
        for parent, _, names in os.walk(directory):
            for name in names:
                sync_file(Path(parent) / name)
            sync_directory(Path(parent))
    except OSError as error:
        _refuse(error, f"syncing {directory}")


def append_durably(file: IO[bytes], content: bytes | bytearray) -> None:
    """Write ``content`` where ``file`` stands; the bytes (not a longer size's metadata) survive a power cut.

    Raises:
        OSError: the disk refused; the caller says what was being done, with :func:`storage_error`.
    """
    file.write(content)
    file.flush()
    getattr(os, "fdatasync", os.fsync)(file.fileno())


def publish_file(source: Path, target: Path) -> None:
    """Move a finished file to ``target`` on the same file system, durably, replacing what is there.

    Raises:
        StorageError: the disk refused.
    """
    try:
        sync_file(source)
        source.replace(target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)
    except OSError as error:
        _refuse(error, f"moving {source.name} to {target}")


def publish_tree(source: Path, target: Path) -> None:
    """Move a finished directory to the free name ``target``, with all that is in it, durably.

    Raises:
        StorageError: ``target`` exists and is not empty, or the disk refused.
    """
    try:
        sync_tree(source)
        source.rename(target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)
    except OSError as error:
        _refuse(error, f"moving {source.name} to {target}")


def link_file(existing: Path, name: Path) -> None:
    """Give ``existing`` the further name ``name``; where the file system has no hard links, copy it.

    The new name is durable after the next :func:`sync_directory` of its directory.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.link(existing, name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP):
            _refuse(error, f"linking {name}")
        with existing.open("rb") as source, durable_file(name) as copy:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)


def replace_by_link(existing: Path, name: Path) -> None:
    """Let ``name``, which may be taken, be a further name of ``existing``, durably.

    Raises:
        StorageError: the disk refused.
    """
    temporary = name.with_name(f"{_TEMPORARY}{name.name}-link")
    remove(temporary)
    link_file(existing, temporary)
    try:
        temporary.replace(name)
    except OSError as error:
        _refuse(error, f"replacing {name}")
    sync_directory(name.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it is there, durably."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        _refuse(error, f"removing {path}")


def remove_temporaries(directory: Path) -> None:
    """Remove what interrupted :func:`durable_file` blocks left in ``directory``."""
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        remove(leftover)


def sha256_file(path: Path, pace: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits; ``pace`` is called after each MiB."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
            pace()
    return digest.hexdigest()


def is_sha256(text: object) -> bool:
    """Tell whether ``text`` is 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def verify_file(path: Path, *, size: int, sha256: str, pace: Callable[[], None] = lambda: None) -> None:
    """Check a file against its promised size and hash; ``pace`` is called between two pieces of reading.

    Raises:
        IntegrityError: it is missing or differs.
    """
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error
    if found != size:
        raise IntegrityError(f"{path} has {found} bytes where {size} were promised")
    if (digest := sha256_file(path, pace)) != sha256:
        raise IntegrityError(f"{path} has sha256 {digest} where {sha256} was promised")


def safe_relative_path(text: str) -> bool:
    """Tell whether ``text`` is a plain relative path that stays inside its directory on every system."""
    if not text or len(text) > 255 or any(character in text for character in "\\\0:"):
        return False
    if any("\ud800" <= character <= "\udfff" for character in text):
        return False  # half of a pair, as JSON can hold it: no file system takes it
    return all(part not in ("", ".", "..") and not part.startswith(_TEMPORARY) for part in text.split("/"))


@contextlib.contextmanager
def directory_lock(directory: Path) -> Generator[None]:
    """Hold ``directory/lock`` for the length of the block; the kernel frees it whatever happens.

    Raises:
        LockedError: another process holds it.
    """
    make_directory(directory)
    try:
        file = (directory / "lock").open("a+b")
    except OSError as error:
        _refuse(error, f"opening {directory / 'lock'}")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(f"{directory} is in use by another process: stop that one first") from error
        yield
