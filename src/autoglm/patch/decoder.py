"""Apply a package: the base, or nothing, and a ``.wpatch`` in, a verified release out.

What it guarantees: the output appears under its name whole, verified by size and SHA-256 and durable, or not
at all; the base is never written to; memory stays bounded whatever the files' sizes, because base, package
and output are walked block by block. What it refuses to do: decode a byte whose hash has not been checked.

Large base files are not hashed beforehand, which would cost a third of the time: an output that verifies
proves them right, and when one does not, they are hashed to tell whose fault it was. Small ones are, so that
another release's base is refused at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from autoglm import files
from autoglm.errors import (
    AutoGLMError,
    BaseMismatchError,
    ConfigError,
    DiskFullError,
    IntegrityError,
    PackageError,
)
from autoglm.files import storage_error
from autoglm.patch import package
from autoglm.patch.application import Application, Progress
from autoglm.patch.header import HeaderPin, read_header
from autoglm.patch.package import BaseFile, Header

# Base files up to this size are hashed before anything is made.
_CHECKED_FIRST_BYTES = 1 << 20


@dataclass(frozen=True)
class ApplyReport:
    """What :func:`apply` did.

    Attributes:
        kind: ``full`` or ``patch``.
        files: how many were made.
        linked: how many of them are hard links to the base's.
        output_bytes: their size together.
        package_bytes: the size of the package.
    """

    kind: str
    files: int
    linked: int
    output_bytes: int
    package_bytes: int


def apply(
    base: Path | None,
    package: Path,
    out: Path,
    *,
    header: HeaderPin | None = None,
    partial: Path | None = None,
    link_unchanged: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> ApplyReport:
    """Make ``out`` from ``base`` and ``package``.

    Args:
        base: the file or directory that the package was made against; ignored by a full package.
        package: the ``.wpatch`` file.
        out: the file or directory to make; it must not exist, its parent must.
        header: what the package's header must be, from a signed description; checked before it is parsed.
        partial: a directory on the same disk as ``out`` in which unfinished work is kept: after a kill, a
            cancellation or a full disk, the next application of the same package with the same ``partial``
            continues at the block where this one ended. Removed when done.
        link_unchanged: make files that equal the base's hard links to them. For trees that are never
            written to, such as a device's releases.
        threads: blocks decoded at a time.
        progress: called with (bytes made, bytes to make).

    Raises:
        ConfigError: ``out`` exists or its directory does not, or ``base`` is of the wrong kind.
        IntegrityError: the header, a block or an output file does not have its promised hash.
        PackageError: the package breaks its format.
        BaseMismatchError: ``base`` is missing or is not what the package was made against.
        DiskFullError: no room.
        StorageError: the disk refused something else.
    """
    _check_place(out)
    parsed = read_header(package, header)
    sources = _base_paths(parsed, base)
    _check_room(parsed, out, link_unchanged)
    run = _Run(parsed, package, sources, out, threads, progress, link_unchanged)
    linked = run.resumable(partial) if partial else run.once()
    kind = "patch" if parsed.base_files else "full"
    return ApplyReport(kind, len(parsed.files), linked, parsed.output_bytes, parsed.package_bytes)


@dataclass(frozen=True)
class _Run:
    """An application into a temporary place, and from there under its name."""

    header: Header
    package: Path
    sources: list[Path]
    out: Path
    threads: int
    progress: Progress | None
    link_unchanged: bool

    def once(self) -> int:
        """Make the output or leave nothing; return how many files are links."""
        temporary = self.out.parent / f".tmp-{self.out.name[:100]}-{secrets.token_hex(8)}"
        try:
            return self._make(temporary)
        except BaseException:
            files.remove(temporary)
            raise

    def resumable(self, partial: Path) -> int:
        """Continue in ``partial``, or begin there; leave nothing there but what can be continued."""
        files.make_directory(partial)
        work = partial / self.header.sha256[:32]
        for other in partial.iterdir():
            if other != work or other.is_symlink():
                files.remove(other)
        continued = work.exists()
        try:
            linked = self._make(work, keep=True)
        except (PackageError, IntegrityError):
            files.remove(partial)
            if not continued:
                raise
            # what lay there was not what had been written: a power cut, or a visitor
            return self.resumable(partial)
        files.remove(partial)
        return linked

    def _make(self, temporary: Path, *, keep: bool = False) -> int:
        job = Application(self.header, self.package, self.sources, max(1, self.threads), self.progress, keep)
        try:
            linked = job.run(temporary, self.link_unchanged)
            (files.publish_file if self.header.single else files.publish_tree)(temporary, self.out)
        except (PackageError, IntegrityError) as error:
            _blame_base(self.header, self.sources, error)
            raise
        except OSError as error:
            raise storage_error(error, f"making {self.out}") from error
        return linked


def _check_place(out: Path) -> None:
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists: choose another name or remove it first")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a directory: make it first")


def _base_paths(header: Header, base: Path | None) -> list[Path]:
    """Find the base files that the package reads, and compare their sizes."""
    if not header.base_files:
        return []
    if base is None:
        raise BaseMismatchError("the package is a patch: it needs the base that it was made against")
    if not base.exists():
        raise BaseMismatchError(f"there is no base at {base}")
    if base.is_dir() is header.single:
        kinds = ("file", "directory") if header.single else ("directory", "file")
        raise ConfigError(f"the package was made against a {kinds[0]}, {base} is a {kinds[1]}")
    paths = [base if header.single else base / file.path for file in header.base_files]
    for path, file in zip(paths, header.base_files, strict=True):
        small = file.size <= _CHECKED_FIRST_BYTES
        if not path.is_file() or path.stat().st_size != file.size or (small and not _is(path, file)):
            raise _mismatch(path)
    return paths


def _is(path: Path, file: BaseFile) -> bool:
    """Tell whether the file at ``path`` has the content that the package was made against."""
    try:
        return files.sha256_file(path) == file.sha256
    except OSError:
        return False


def _mismatch(path: Path) -> BaseMismatchError:
    return BaseMismatchError(
        f"{path} is not what the package was made against: fetch the patch for this base, or the full package"
    )


def _check_room(header: Header, out: Path, link_unchanged: bool) -> None:
    linked = (file.size for file in header.files if link_unchanged and package.unchanged_base(header, file))
    needed = header.output_bytes - sum(linked)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise DiskFullError(
            f"{out.parent} has {free} bytes free, the package makes {needed}: free some first",
            needed_bytes=needed,
            free_bytes=free,
        )


def _blame_base(header: Header, sources: list[Path], error: AutoGLMError) -> None:
    """Raise BaseMismatchError when ``error`` comes from a wrong base rather than from the package."""
    for path, file in zip(sources, header.base_files, strict=True):
        if not _is(path, file):
            raise _mismatch(path) from error
