"""Make a package: find for every plane of every new file the cheapest way to get it from the base.

What it guarantees: the same inputs give the same bytes, whatever the number of threads; the package appears
whole or not at all; files are read in pieces, so memory does not grow with them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

from autoglm.errors import ConfigError
from autoglm.files import CHUNK_BYTES, durable_file, storage_error
from autoglm.patch import core, zstd
from autoglm.patch.choice import factor_raw_bits, inputs_of, raw_bits
from autoglm.patch.header import parse_header, write_header
from autoglm.patch.hints import read_hints
from autoglm.patch.matching import match_spans, read_layouts
from autoglm.patch.package import (
    MAX_BLOCK_TOKENS,
    BaseFile,
    Block,
    Header,
    Mode,
    Need,
    OutputFile,
    Segment,
    is_inline,
    num_factors,
    num_tokens,
    schedule,
    segments_of,
    with_segments,
)
from autoglm.patch.parallel import in_order
from autoglm.patch.planner import PlannedFile, plan_file
from autoglm.patch.sources import Source, opened, read_at, read_sources
from autoglm.patch.tables import conditional_entropy, pool

Progress = Callable[[int, int], None]

# Files up to this size get zstd's slow level for their raw parts.
_THOROUGH_BYTES = 8 << 20


@dataclass(frozen=True)
class DiffReport:
    """What :func:`diff` made.

    Attributes:
        kind: ``full`` or ``patch``.
        package_bytes: the size of the package.
        new_bytes: the size of what it makes.
        header_length, header_sha256: the pin that ``apply`` takes.
        sha256: of the whole package.
    """

    kind: str
    package_bytes: int
    new_bytes: int
    header_length: int
    header_sha256: str
    sha256: str


def diff(
    base: Path | None,
    new: Path,
    out: Path,
    *,
    hint: Path | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> DiffReport:
    """Write to ``out`` the package that makes ``new`` from ``base``, or from nothing.

    Args:
        base: a file or a directory, of the same kind as ``new``; None makes a full package.
        new: what the package shall make; symbolic links are refused.
        out: the package's name; what is there is replaced.
        hint: the factors of a merged adapter, which ``autoglm model merge`` wrote beside ``new``.
        threads: blocks coded at a time; the package does not depend on it.
        progress: called with (work done, work to do), in bytes of ``new`` looked at, twice over.

    Raises:
        ConfigError: ``base`` or ``new`` is missing, of the wrong kind, or not to be carried.
        PackageError: ``hint`` holds no factors.
        IntegrityError: a file changed while it was read.
        DiskFullError: no room.
        StorageError: the disk refused something else.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a directory: make it first")
    if base and base.exists() and base.is_dir() is not new.is_dir():
        raise ConfigError(f"{base} and {new} must both be files or both be directories")
    bases, sources = read_sources(base) if base else [], read_sources(new)
    work = _Work(2 * sum(source.size for source in sources), progress)
    single = new.is_file()
    planned: list[PlannedFile] = []
    layouts, base_layouts = read_layouts(sources), read_layouts(bases)
    known = read_hints(hint) if hint else {}
    for layout, match in zip(layouts, match_spans(layouts, base_layouts), strict=True):
        planned.append(plan_file(layout, base_layouts, match, known, threads, work.advance))
    tables, coded = _share_tables(planned)
    with _spool(out) as spool:
        coder = _Coder(bases, tables, spool)
        made: list[OutputFile] = []
        for plan, file in zip(planned, coded, strict=True):
            made.append(coder.encode(plan, file, threads, work))
        for source in (*sources, *bases):
            source.check_unchanged()
        base_files, made = _used_bases(bases, made)
        head = write_header(Header(single, base_files, tables, tuple(made), tuple(coder.blocks)))
        header = parse_header(head)
        digest = _store(out, head, spool)
    kind = "patch" if base_files else "full"
    new_bytes = header.output_bytes
    return DiffReport(kind, header.package_bytes, new_bytes, header.length, header.sha256, digest)


class _Work:
    """The count behind a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def advance(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


@contextmanager
def _spool(out: Path) -> Generator[IO[bytes]]:
    """Keep the blocks beside ``out`` until the header, which comes first, is known."""
    try:
        with tempfile.TemporaryFile(dir=out.parent) as spool:
            yield spool
    except OSError as error:
        raise storage_error(error, f"writing {out}") from error


def _store(out: Path, head: bytes, spool: IO[bytes]) -> str:
    digest = hashlib.sha256(head)
    with durable_file(out) as target:
        target.write(head)
        spool.seek(0)
        while chunk := spool.read(CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _share_tables(planned: list[PlannedFile]) -> tuple[tuple[tuple[int, ...], ...], list[OutputFile]]:
    """Find the package's tables and tell every coded segment which of them are its own."""
    histograms = [
        counts
        for plan in planned
        for choice in plan.choices
        for counts in (choice.counts, choice.factor_counts)
        if counts is not None
    ]
    found = pool(histograms)
    shares = iter(zip(found.maps, found.costs, strict=True))

    def finish(plan: PlannedFile) -> Iterator[Segment]:
        for (plane, segment, _), choice in zip(segments_of(plan.file), plan.choices, strict=True):
            if choice.counts is None:
                yield segment
                continue
            tables, bits = next(shares)
            slack = bits - conditional_entropy(choice.counts)
            bits += raw_bits(choice.counts, segment.mode, plane.dtype)
            factor_tables = b""
            if choice.factor_counts is not None:
                factor_tables, more = next(shares)
                slack += more - conditional_entropy(choice.factor_counts)
                bits += more + factor_raw_bits(choice.factor_counts)
            sizes = {"coded_bytes": -(-bits // 8), "slack_bytes": max(0, int(slack)) // 8}
            yield replace(segment, tables=tables, factor_tables=factor_tables, **sizes)

    return found.tables, [with_segments(plan.file, finish(plan)) for plan in planned]


def _used_bases(bases: list[Source], made: list[OutputFile]) -> tuple[tuple[BaseFile, ...], list[OutputFile]]:
    """Name only the base files that are read."""
    used = sorted({segment.base for file in made for _, segment, _ in segments_of(file)} - {-1})

    def renumbered(file: OutputFile) -> Iterator[Segment]:
        for _, segment, _ in segments_of(file):
            yield replace(segment, base=used.index(segment.base) if segment.base >= 0 else -1)

    files = [with_segments(file, renumbered(file)) for file in made]
    return tuple(BaseFile(bases[i].path, bases[i].size, bases[i].sha256) for i in used), files


class _Coder:
    """Turn planned files into blocks, appended to a spool file."""

    def __init__(self, bases: list[Source], tables: tuple[tuple[int, ...], ...], spool: IO[bytes]) -> None:
        self.bases, self.tables, self.spool = bases, tables, spool
        self.blocks: list[Block] = []

    def encode(self, plan: PlannedFile, file: OutputFile, threads: int, work: _Work) -> OutputFile:
        """Append the blocks of one file; return it with the sizes of its raw segments noted."""
        bases = {segment.base for _, segment, _ in segments_of(file)} - {-1}
        raw: deque[int] = deque()
        held = deque(_bytes_made(file))
        work.advance(file.size - sum(held))
        with ExitStack() as stack:
            new = stack.enter_context(opened(plan.source))
            readers = {index: stack.enter_context(opened(self.bases[index])) for index in bases}
            cuts = cut(file)
            jobs = self._jobs(plan, file, new, readers, cuts)
            for block, content in zip(cuts, in_order(jobs, threads), strict=True):
                self.spool.write(content)
                self.blocks.append(
                    replace(block, length=len(content), sha256=hashlib.sha256(content).digest())
                )
                work.advance(held.popleft())
                if not block.elements:
                    raw.append(len(content))
        sized = (
            replace(segment, coded_bytes=raw.popleft()) if segment.mode is Mode.RAW else segment
            for _, segment, _ in segments_of(file)
        )
        return with_segments(file, sized)

    def _jobs(
        self,
        plan: PlannedFile,
        file: OutputFile,
        new: IO[bytes],
        bases: dict[int, IO[bytes]],
        cuts: list[Block],
    ) -> Iterator[Callable[[], bytes]]:
        """Read what each block holds, and yield the work on it."""
        level = zstd.LEVEL if plan.source.size <= _THOROUGH_BYTES else zstd.FAST_LEVEL
        offsets = iter([offset for _, s, offset in segments_of(file) if s.mode is Mode.RAW])
        segments = (segment for _, segment, _ in segments_of(file))
        factors = {id(s): choice.factors for s, choice in zip(segments, plan.choices, strict=True)}
        for need in schedule(file, iter(cuts)):
            if need.plane and need.segment:
                found = factors[id(need.segment)]
                assert found
                yield partial(core.encode_factors, self.tables, need.segment.factor_tables, found)
            elif need.segment:
                prefix = b""
                if need.segment.dictionary:
                    prefix = read_at(
                        bases[need.segment.base], need.segment.base_offset, need.segment.dictionary
                    )
                content = read_at(new, next(offsets), need.segment.length)
                yield partial(zstd.compress, content, prefix=prefix, level=level)
            else:
                parts = need.parts
                inputs = [
                    inputs_of(part, new, bases.get(part.segment.base, new), factors[id(part.segment)])
                    for part in parts
                ]
                pieces = [read_at(new, part.file_offset, part.size) for part in parts]
                yield partial(core.encode_block, self.tables, parts, inputs, pieces)


def _bytes_made(file: OutputFile) -> Iterator[int]:
    """Yield how much of the file each block makes; the rest is copied."""
    for need in schedule(file, iter(cut(file))):
        yield _made_by(need)


def _made_by(need: Need) -> int:
    if need.plane:
        return 0
    return need.segment.length if need.segment else sum(part.size for part in need.parts)


def cut(file: OutputFile) -> list[Block]:
    """Divide a file's coded elements into blocks, in the order of the format; lengths are still open."""
    blocks: list[Block] = []
    current, first = -1, 0
    for plane, segment, offset in segments_of(file):
        if segment.mode is Mode.RAW:
            blocks.append(Block(1, 0, b""))
        if not segment.mode.coded:
            continue
        factors, inline = num_factors(plane, segment), is_inline(plane, segment)
        if factors and not inline:
            blocks.append(Block(1, factors, b""))
            current = -1
        scales = segment.scales
        if scales and scales.new + segment.length // scales.group * scales.dtype.size > first:
            current = -1  # its scales come out of the block that is open
        weight = num_tokens(segment.mode, plane.dtype)
        start, total = 0, segment.length // plane.dtype.size
        least = total + factors if inline else weight
        while start < total:
            if current < 0 or blocks[current].elements + least > MAX_BLOCK_TOKENS:
                blocks.append(Block(1, 0, b""))
                current, first = len(blocks) - 1, offset + start * plane.dtype.size
            if inline:
                blocks[current] = _filled(blocks[current], factors)
            count = min((MAX_BLOCK_TOKENS - blocks[current].elements) // weight, total - start)
            blocks[current] = _filled(blocks[current], count * weight)
            start += count
    return blocks


def _filled(block: Block, tokens: int) -> Block:
    return replace(block, elements=block.elements + tokens)
