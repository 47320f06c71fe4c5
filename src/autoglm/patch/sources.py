"""The files that go into a package, and those of the base that it may read from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autoglm.errors import ConfigError, IntegrityError
from autoglm.files import safe_relative_path, storage_error


@dataclass(frozen=True, slots=True)
class Source:
    """A file that goes into a package, or that a package may read from."""

    path: str
    location: Path
    size: int
    sha256: str
    modified_ns: int

    def check_unchanged(self) -> None:
        """Make sure that nobody wrote to the file since it was hashed.

        Raises:
            IntegrityError: somebody did.
            OSError: it cannot be looked at.
        """
        state = self.location.stat()
        if (state.st_size, state.st_mtime_ns) != (self.size, self.modified_ns):
            raise IntegrityError(f"{self.location} changed while it was read: run it again")


def read_sources(root: Path) -> list[Source]:
    """Describe the file, or all files of the directory, at ``root``, sorted by path.

    Raises:
        ConfigError: there is nothing there, or something that a package cannot carry.
        StorageError: a file cannot be read.
    """
    if not root.exists():
        raise ConfigError(f"there is nothing at {root}")
    try:
        locations = [root] if root.is_file() else sorted(_files_below(root))
        parent = root.parent if root.is_file() else root
        return [_source(location, location.relative_to(parent).as_posix()) for location in locations]
    except OSError as error:
        raise storage_error(error, f"reading {root}") from error


def _files_below(root: Path) -> list[Path]:
    found: list[Path] = []
    for directory, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(directory) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ConfigError(f"{path} is neither a file nor a directory: a package cannot carry it")
        found += [Path(directory) / name for name in names]
    return found


def _source(location: Path, path: str) -> Source:
    if not safe_relative_path(path):
        raise ConfigError(f"{location} has a name that not every system can keep: rename it")
    with location.open("rb") as file:
        modified_ns = os.fstat(file.fileno()).st_mtime_ns
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Source(path, location, file.tell(), digest, modified_ns)


@contextmanager
def opened(source: Source) -> Generator[IO[bytes]]:
    """Open a source for :func:`read_at`, translating what the disk refuses.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with source.location.open("rb") as file:
            yield file
    except OSError as error:
        raise storage_error(error, f"reading {source.location}") from error


def read_at(file: IO[bytes], offset: int, length: int) -> bytes:
    """Return exactly ``length`` bytes.

    Raises:
        IntegrityError: the file is shorter than it was.
    """
    file.seek(offset)
    if len(content := file.read(length)) != length:
        raise IntegrityError(f"{file.name} changed while it was read: run it again")
    return content
