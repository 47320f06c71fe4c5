"""Make the files of a package: walk base, package and output block by block, front to back.

What it guarantees: a block is hashed before it is decoded, and a file that does not come out with its
promised hash is an error. Memory holds a few blocks, and the factors of one tensor.

Work that was interrupted is not done twice: what lies under the target from an earlier run with the same
header is read again for the hash instead of decoded, as far as it goes. Should a power cut have left anything
else there than was written, that hash tells.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autoglm import files
from autoglm.errors import IntegrityError
from autoglm.files import CHUNK_BYTES
from autoglm.patch import core, package, zstd
from autoglm.patch.package import Block, Header, Mode, Need, OutputFile, Part, Segment, is_inline

Progress = Callable[[int, int], None]
_Made = bytes | bytearray | None

# So much is written before the disk is asked to begin with it.
_WRITE_BACK_BYTES = 8 << 20
# How much of an interrupted application a power cut can undo, roughly.
_SYNC_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Job:
    """A block to decode; ``end`` is where the last byte that comes out of it lies in the file."""

    block: Block
    offset: int
    segment: Segment | None
    parts: list[Part]
    end: int
    factors: Callable[[], core.Factors | None]

    @property
    def scales_end(self) -> int:
        """How much of the output must be there before this block can be decoded."""
        return max((part.scales_end for part in self.parts), default=0)


class Application:
    """One run of :func:`autoglm.patch.apply`: the open files and the count of what has been made.

    Args:
        header: of the package.
        package: the package.
        sources: the base files that the header names.
        threads: blocks decoded at a time.
        progress: called with (bytes made, bytes to make).
        keep: sync what has been made from time to time, because it will be continued when interrupted.
    """

    def __init__(
        self,
        header: Header,
        package: Path,
        sources: list[Path],
        threads: int,
        progress: Progress | None,
        keep: bool = False,
    ) -> None:
        self.header, self.package, self.sources = header, package, sources
        self.threads, self.progress, self.keep = threads, progress, keep
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
            target.mkdir(exist_ok=True)
        return linked

    def _advance(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.header.output_bytes)

    def _link(self, source: Path, path: Path, file: OutputFile) -> None:
        if files.sha256_file(source) != file.sha256:
            raise IntegrityError(f"{source} does not have its promised hash")
        files.remove(path)
        files.link_file(source, path)
        self._advance(file.size)

    def _make(self, path: Path, file: OutputFile, blocks: Iterator[tuple[Block, int]]) -> None:
        read = {segment.base for _, segment, _ in package.segments_of(file)} - {-1}
        with ExitStack() as stack:
            self.bases = {index: stack.enter_context(self.sources[index].open("rb")) for index in read}
            target = stack.enter_context(_open_output(path))
            writer = _Writer(target, self._advance, self.keep)
            decoded = self._decoded(file, blocks, writer)
            coded: _Piece = _Piece(0, b"")
            for _, segment, _ in package.segments_of(file):
                if segment.mode is Mode.SAME:
                    self._copy(segment, writer)
                elif segment.mode is Mode.RAW:
                    writer.put(segment.length, next(decoded).content)
                else:
                    left = segment.length
                    while left:
                        coded = coded if coded.length else next(decoded)
                        left -= coded.move(writer, left)
            next(decoded, None)
            target.truncate(file.size)
        if writer.digest.hexdigest() != file.sha256:
            raise IntegrityError(f"{file.path} did not come out as promised: apply it again")

    def _copy(self, segment: Segment, writer: _Writer) -> None:
        if writer.holds(segment.length):
            writer.put(segment.length, None)
            return
        source = self.bases[segment.base]
        source.seek(segment.base_offset)
        left = segment.length
        while left:
            if not (chunk := source.read(min(left, CHUNK_BYTES))):
                raise IntegrityError(f"{source.name} became shorter while it was read")
            writer.put(len(chunk), chunk)
            left -= len(chunk)

    def _decoded(
        self, file: OutputFile, blocks: Iterator[tuple[Block, int]], writer: _Writer
    ) -> Iterator[_Piece]:
        """Yield what each block makes, in order, decoding ahead where threads allow it."""
        offsets: deque[int] = deque()

        def table() -> Iterator[Block]:
            for block, offset in blocks:
                offsets.append(offset)
                yield block

        needs = ((need, offsets.popleft()) for need in package.schedule(file, table()))
        jobs = self._jobs(file, needs)
        if self.pool is None:
            for job in jobs:
                yield self._piece(job, writer)
        else:
            yield from self._in_parallel(self.pool, jobs, writer)

    def _jobs(self, file: OutputFile, needs: Iterable[tuple[Need, int]]) -> Iterator[_Job]:
        """Hand each tensor's factors, decoded when they are first asked for, to the blocks behind them."""
        raw = iter([at + s.length for _, s, at in package.segments_of(file) if s.mode is Mode.RAW])
        factors: Callable[[], core.Factors | None] = _no_factors
        for need, offset in needs:
            if need.plane:
                factors = _Late(lambda need=need, offset=offset: self._factors(need, offset))
            elif need.segment:
                yield _Job(need.block, offset, need.segment, [], next(raw), _no_factors)
            else:
                last = need.parts[-1]
                yield _Job(need.block, offset, None, need.parts, last.file_offset + last.size, factors)

    def _factors(self, need: Need, offset: int) -> core.Factors:
        assert need.plane and need.segment and need.segment.curve
        content = self._checked(need.block, _read(self.data, offset, need.block.length))
        shape, rank = (need.plane.rows, need.plane.columns), need.segment.curve.rank
        return core.decode_factors(self.tables, content, need.segment.factor_tables, shape, rank)

    def _piece(self, job: _Job, writer: _Writer) -> _Piece:
        length = job.segment.length if job.segment else sum(part.size for part in job.parts)
        if job.end <= writer.present:
            return _Piece(length, None)
        return _Piece(length, self._decode(job, *self._gather(job, writer)))

    def _in_parallel(
        self, pool: ThreadPoolExecutor, jobs: Iterable[_Job], writer: _Writer
    ) -> Iterator[_Piece]:
        running: deque[Future[_Piece]] = deque()
        try:
            for job in jobs:
                # Scales that this block needs may still be on their way through the blocks before it.
                while running and (len(running) >= self.threads or job.scales_end > writer.written):
                    yield running.popleft().result()
                running.append(self._submit(pool, job, writer))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _submit(self, pool: ThreadPoolExecutor, job: _Job, writer: _Writer) -> Future[_Piece]:
        length = job.segment.length if job.segment else sum(part.size for part in job.parts)
        if job.end <= writer.present:
            return pool.submit(_Piece, length, None)
        given = self._gather(job, writer)
        return pool.submit(lambda: _Piece(length, self._decode(job, *given)))

    def _gather(self, job: _Job, writer: _Writer) -> tuple[bytes, list[core.Inputs]]:
        """Read all that a block's decoding needs, on the thread that owns the files."""
        content = _read(self.data, job.offset, job.block.length)
        if job.segment is not None:
            base = self._base(job.segment, job.segment.base_offset, job.segment.dictionary)
            return content, [core.Inputs(base)]
        return content, [self._inputs(part, writer, job.factors) for part in job.parts]

    def _base(self, segment: Segment, offset: int, length: int) -> bytes:
        return _read(self.bases[segment.base], offset, length) if length else b""

    def _inputs(self, part: Part, writer: _Writer, factors: Callable[[], core.Factors | None]) -> core.Inputs:
        segment, size = part.segment, part.plane.dtype.size
        if segment.mode is Mode.FULL:
            return core.Inputs()
        base = self._base(segment, segment.base_offset + part.start * size, part.size)
        found = factors() if segment.curve else None
        if segment.curve and is_inline(part.plane, segment):
            found = core.new_factors(part.plane.rows, part.plane.columns, segment.curve.rank)
        if segment.scales is None:
            return core.Inputs(base, factors=found)
        first, past = part.groups
        width = segment.scales.dtype.size
        old = self._base(segment, segment.scales.old + first * width, (past - first) * width)
        new = writer.read(segment.scales.new + first * width, (past - first) * width)
        return core.Inputs(base, old, new, found)

    def _checked(self, block: Block, content: bytes) -> bytes:
        if hashlib.sha256(content).digest() != block.sha256:
            raise IntegrityError(f"a block of {self.package.name} is damaged: download it again")
        return content

    def _decode(self, job: _Job, content: bytes, inputs: list[core.Inputs]) -> bytes | bytearray:
        content = self._checked(job.block, content)
        if job.segment is not None:
            return zstd.decompress(content, job.segment.length, prefix=inputs[0].base)
        return core.decode_block(self.tables, content, job.parts, inputs)


def _open_output(path: Path) -> IO[bytes]:
    """Open what an earlier run left, or a new file; never a link, which would lead to another file."""
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        files.remove(path)
    return path.open("r+b" if path.exists() else "x+b")


def _no_factors() -> core.Factors | None:
    return None


class _Late:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], core.Factors]) -> None:
        self._make = make
        self._value: core.Factors | None = None

    def __call__(self) -> core.Factors | None:
        self._value = self._value or self._make()
        return self._value


class _Piece:
    """What a block makes: ``length`` bytes, which lie in the file already when there is no content."""

    def __init__(self, length: int, content: _Made) -> None:
        self.length = length
        self.content = memoryview(content) if content is not None else None

    def move(self, writer: _Writer, limit: int) -> int:
        """Give the writer as much as there is, at most ``limit`` bytes; return how much."""
        count = min(self.length, limit)
        writer.put(count, self.content[:count] if self.content is not None else None)
        self.length -= count
        self.content = self.content[count:] if self.content is not None else None
        return count


class _Writer:
    """Write a file from front to back, hashing it, and read back what has been written.

    Attributes:
        written: bytes that are as they shall be.
        present: bytes of an earlier run that lie in the file.
    """

    def __init__(self, file: IO[bytes], advance: Callable[[int], None], keep: bool) -> None:
        self.file, self.advance, self.keep = file, advance, keep
        self.present = file.seek(0, os.SEEK_END)
        self.written = self.synced = self.started = 0
        self.digest = hashlib.sha256()
        file.seek(0)

    def holds(self, length: int) -> bool:
        """Tell whether the next bytes lie in the file from an earlier run."""
        return self.written + length <= self.present

    def put(self, length: int, content: bytes | memoryview | None) -> None:
        """Write the next bytes; without content, hash those that lie there."""
        if content is None:
            self._hash_present(length)
        else:
            self.file.write(content)
            self._count(content)
        if self.written - self.started > _WRITE_BACK_BYTES:
            files.begin_sync(self.file, self.started, self.written - self.started)
            self.started = self.written
        if self.keep and self.written - self.synced > _SYNC_BYTES:
            self.file.flush()
            os.fdatasync(self.file.fileno())
            self.synced = self.written

    def _hash_present(self, length: int) -> None:
        while length:
            self._count(chunk := _read(self.file, self.written, min(length, CHUNK_BYTES)))
            length -= len(chunk)

    def _count(self, content: bytes | memoryview) -> None:
        self.digest.update(content)
        self.written += len(content)
        self.advance(len(content))

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes that have been written."""
        content = _read(self.file, offset, length)
        self.file.seek(self.written)
        return content


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    if len(content := file.read(length)) != length:
        raise IntegrityError(f"{file.name} became shorter while it was read")
    return content
