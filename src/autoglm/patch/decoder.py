"""Apply a package: the base, or nothing, and a ``.wpatch`` in, a verified release out.

What it guarantees: the output appears under its name whole, verified by size and SHA-256 and durable, or not
at all; the base is never written to; memory stays bounded whatever the files' sizes, because base, package
and output are walked block by block. What it refuses to do: decode a byte whose hash has not been checked.

Large base files are not hashed beforehand, which would cost a third of the time: an output that verifies
proves them right, and when one does not, they are hashed to tell whose fault it was. Small ones are, so that
another release's base is refused at once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autoglm import files
from autoglm.errors import (
    AutoGLMError,
    BaseMismatchError,
    ConfigError,
    DiskFullError,
    IntegrityError,
    PackageError,
)
from autoglm.files import CHUNK_BYTES, storage_error
from autoglm.patch import core, package, zstd
from autoglm.patch.header import HeaderPin, read_header
from autoglm.patch.package import BaseFile, Block, Header, Mode, OutputFile, Part, Segment

Progress = Callable[[int, int], None]

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
    temporary = out.parent / f".tmp-{out.name[:100]}-{secrets.token_hex(8)}"
    job = _Application(parsed, package, sources, max(1, threads), progress)
    try:
        linked = job.run(temporary, link_unchanged)
        (files.publish_file if parsed.single else files.publish_tree)(temporary, out)
    except (PackageError, IntegrityError) as error:
        files.remove(temporary)
        _blame_base(parsed, sources, error)
        raise
    except OSError as error:
        files.remove(temporary)
        raise storage_error(error, f"making {out}") from error
    except BaseException:
        files.remove(temporary)
        raise
    kind = "patch" if parsed.base_files else "full"
    return ApplyReport(kind, len(parsed.files), linked, parsed.output_bytes, parsed.package_bytes)


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


class _Application:
    """One run of :func:`apply`: the open files and the count of what has been made."""

    def __init__(
        self, header: Header, package: Path, sources: list[Path], threads: int, progress: Progress | None
    ) -> None:
        self.header, self.package, self.sources = header, package, sources
        self.threads, self.progress = threads, progress
        self.tables = core.decoding_tables(header.tables)
        self.bases: dict[int, IO[bytes]] = {}
        self.done = 0

    def run(self, target: Path, link_unchanged: bool) -> int:
        """Make every file under ``target``; return how many are links."""
        linked = 0
        blocks = iter(zip(self.header.blocks, self.header.block_offsets(), strict=True))
        with ExitStack() as stack:
            self.data = stack.enter_context(self.package.open("rb"))
            self.pool = stack.enter_context(ThreadPoolExecutor(self.threads)) if self.threads > 1 else None
            for file in self.header.files:
                path = target if self.header.single else target / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                if link_unchanged and (base := package.unchanged_base(self.header, file)):
                    self._link(self.sources[self.header.base_files.index(base)], path, file)
                    linked += 1
                else:
                    self._make(path, file, blocks)
        if not self.header.files:
            target.mkdir()
        return linked

    def _advance(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.header.output_bytes)

    def _link(self, source: Path, path: Path, file: OutputFile) -> None:
        if files.sha256_file(source) != file.sha256:
            raise IntegrityError(f"{source} does not have its promised hash")
        files.link_file(source, path)
        self._advance(file.size)

    def _make(self, path: Path, file: OutputFile, blocks: Iterator[tuple[Block, int]]) -> None:
        read = {segment.base for _, segment, _ in package.segments_of(file)} - {-1}
        with ExitStack() as stack:
            self.bases = {index: stack.enter_context(self.sources[index].open("rb")) for index in read}
            target = stack.enter_context(path.open("x+b"))
            writer = _Writer(target, self._advance)
            decoded = self._decoded(file, blocks, writer)
            coded = memoryview(b"")
            for _, segment, _ in package.segments_of(file):
                if segment.mode is Mode.SAME:
                    self._copy(segment, writer)
                elif segment.mode is Mode.RAW:
                    writer.write(next(decoded))
                else:
                    left = segment.length
                    while left:
                        coded = coded or memoryview(next(decoded))
                        writer.write(coded[:left])
                        left, coded = left - len(coded[:left]), coded[left:]
            next(decoded, None)
        if writer.digest.hexdigest() != file.sha256:
            raise IntegrityError(f"{file.path} did not come out as promised: apply it again")

    def _copy(self, segment: Segment, writer: _Writer) -> None:
        source = self.bases[segment.base]
        source.seek(segment.base_offset)
        left = segment.length
        while left:
            if not (chunk := source.read(min(left, CHUNK_BYTES))):
                raise IntegrityError(f"{source.name} became shorter while it was read")
            writer.write(chunk)
            left -= len(chunk)

    def _decoded(
        self, file: OutputFile, blocks: Iterator[tuple[Block, int]], writer: _Writer
    ) -> Iterator[bytes | bytearray]:
        """Yield each block's output in order, decoding ahead where threads allow it."""
        offsets: deque[int] = deque()

        def table() -> Iterator[Block]:
            for block, offset in blocks:
                offsets.append(offset)
                yield block

        jobs = (
            _Job(block, offsets.popleft(), segment, parts)
            for block, segment, parts in package.schedule(file, table())
        )
        if self.pool is None:
            for job in jobs:
                yield self._decode(job, *self._gather(job, writer))
        else:
            yield from self._in_parallel(self.pool, jobs, writer)

    def _in_parallel(
        self, pool: ThreadPoolExecutor, jobs: Iterable[_Job], writer: _Writer
    ) -> Iterator[bytes | bytearray]:
        running: deque[Future[bytes | bytearray]] = deque()
        try:
            for job in jobs:
                # Scales that this block needs may still be on their way through the blocks before it.
                while running and (len(running) >= self.threads or job.scales_end > writer.written):
                    yield running.popleft().result()
                running.append(pool.submit(self._decode, job, *self._gather(job, writer)))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _gather(self, job: _Job, writer: _Writer) -> tuple[bytes, list[core.Inputs]]:
        """Read all that a block's decoding needs, on the thread that owns the files."""
        content = _read(self.data, job.offset, job.block.length)
        if job.segment is not None:
            base = self._base(job.segment, job.segment.base_offset, job.segment.dictionary)
            return content, [core.Inputs(base)]
        return content, [self._inputs(part, writer) for part in job.parts]

    def _base(self, segment: Segment, offset: int, length: int) -> bytes:
        return _read(self.bases[segment.base], offset, length) if length else b""

    def _inputs(self, part: Part, writer: _Writer) -> core.Inputs:
        segment, size = part.segment, part.plane.dtype.size
        if segment.mode is Mode.FULL:
            return core.Inputs()
        base = self._base(segment, segment.base_offset + part.start * size, part.count * size)
        if segment.mode is Mode.DIFFERENCE:
            return core.Inputs(base)
        first, past = part.rows
        width = segment.scale_dtype.size
        old = self._base(segment, segment.base_scale + first * width, (past - first) * width)
        return core.Inputs(base, old, writer.read(segment.new_scale + first * width, (past - first) * width))

    def _decode(self, job: _Job, content: bytes, inputs: list[core.Inputs]) -> bytes | bytearray:
        if hashlib.sha256(content).digest() != job.block.sha256:
            raise IntegrityError(f"a block of {self.package.name} is damaged: download it again")
        if job.segment is not None:
            return zstd.decompress(content, job.segment.length, prefix=inputs[0].base)
        return core.decode_block(self.tables, content, job.parts, inputs)


@dataclass(frozen=True, slots=True)
class _Job:
    block: Block
    offset: int
    segment: Segment | None
    parts: list[Part]

    @property
    def scales_end(self) -> int:
        """How much of the output must be there before this block can be decoded."""
        return max((part.scales_end for part in self.parts), default=0)


class _Writer:
    """Write a file from front to back, hashing it, and read back what has been written."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance
        self.written = 0
        self.digest = hashlib.sha256()

    def write(self, content: bytes | bytearray | memoryview) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.written += len(content)
        self.advance(len(content))

    def read(self, offset: int, length: int) -> bytes:
        content = _read(self.file, offset, length)
        self.file.seek(self.written)
        return content


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    if len(content := file.read(length)) != length:
        raise IntegrityError(f"{file.name} became shorter while it was read")
    return content
