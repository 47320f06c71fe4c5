"""What a ``.wpatch`` package consists of: files, planes, segments, blocks, and the limits on each.

A package makes *files*. A file is a sequence of *planes* (tensors, and the bytes between them), a plane a
sequence of *segments*, each made in one :class:`Mode`. What cannot be copied from the base comes from
*blocks*, the unit that is hashed and decoded. ``docs/wpatch-format.md`` specifies all of it; the bytes are
read and written in :mod:`autoglm.patch.header`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate, islice

from autoglm.errors import PackageError

MAX_HEADER_BYTES = 1 << 22
MAX_FILES = 10_000
MAX_PLANES = 50_000
MAX_SEGMENTS = 100_000
MAX_BLOCKS = 100_000
MAX_RANK = 8
MAX_NAME_BYTES = 512
MAX_BYTES = 1 << 44
MAX_BLOCK_BYTES = 8 << 20
MAX_BLOCK_ELEMENTS = 512 << 10
MAX_RAW_BYTES = 4 << 20
MIN_DICTIONARY_BYTES = 8
MAX_DICTIONARY_BYTES = 8 << 20
MAX_COLUMNS = 1 << 28
MAX_TABLES = 64
NUM_TOKENS = 64
TABLE_BITS = 11


class Dtype(IntEnum):
    """Element types, by their number in the format."""

    BYTES = 0
    I8 = 1
    U8 = 2
    BOOL = 3
    F8_E4M3 = 4
    F8_E5M2 = 5
    I16 = 6
    U16 = 7
    F16 = 8
    BF16 = 9
    I32 = 10
    U32 = 11
    F32 = 12
    I64 = 13
    U64 = 14
    F64 = 15

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return 1 if self < 6 else 2 if self < 10 else 4 if self < 13 else 8


class Mode(IntEnum):
    """How a segment's bytes come to be."""

    SAME = 0
    RAW = 1
    FULL = 2
    DIFFERENCE = 3
    SCALED = 4

    @property
    def coded(self) -> bool:
        """Whether the bytes come from the entropy coder."""
        return self >= Mode.FULL


CODED_DTYPES = frozenset(
    (Dtype.I8, Dtype.U8, Dtype.BOOL, Dtype.F8_E4M3, Dtype.F8_E5M2, Dtype.F16, Dtype.BF16, Dtype.F32)
)
SCALE_DTYPES = frozenset((Dtype.F16, Dtype.BF16, Dtype.F32))
_FLOATS = {
    Dtype.F8_E4M3: (4, 3),
    Dtype.F8_E5M2: (5, 2),
    Dtype.F16: (5, 10),
    Dtype.BF16: (8, 7),
    Dtype.F32: (8, 23),
}


def float_fields(dtype: Dtype) -> tuple[int, int]:
    """Return the number of exponent and of mantissa bits of a float type; (0, 0) for any other."""
    return _FLOATS.get(dtype, (0, 0))


def num_contexts(mode: Mode, dtype: Dtype) -> int:
    """Return how many contexts the coder tells apart for a segment."""
    if mode is Mode.FULL:
        return 1
    return 20 if dtype in _FLOATS else 9


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A file of the base that a package reads from."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an output file that is made in one way.

    Attributes:
        mode: how.
        length: in bytes.
        base: index of the base file, -1 for none.
        base_offset: first byte in the base file.
        dictionary: length of the base range that a RAW segment's compressor saw.
        top: largest exponent of a float segment's base (of itself in FULL mode).
        tables: the table of each context; one entry stands for all.
        scale_dtype, base_scale, new_scale: SCALED only: the element type of the row scales, their offset in
            the base file and in this output file.
        coded_bytes, changed_ppm: for people: bytes in the package, elements changed per million.
    """

    mode: Mode
    length: int
    base: int = -1
    base_offset: int = 0
    dictionary: int = 0
    top: int = 0
    tables: bytes = b"\0"
    scale_dtype: Dtype = Dtype.F16
    base_scale: int = 0
    new_scale: int = 0
    coded_bytes: int = 0
    changed_ppm: int = 0

    @property
    def reach(self) -> int:
        """Bytes of the base file that the segment reads, from its base offset on."""
        return {Mode.RAW: self.dictionary, Mode.FULL: 0}.get(self.mode, self.length)


@dataclass(frozen=True, slots=True)
class Plane:
    """A run of equal elements in a file: a tensor, or the bytes between tensors."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Bytes of the plane."""
        return self.dtype.size * math.prod(self.shape)

    @property
    def rows(self) -> int:
        """The first dimension, 0 where there is none."""
        return self.shape[0] if self.shape else 0

    @property
    def columns(self) -> int:
        """Elements of one row: all but the first dimension."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a package makes."""

    path: str
    size: int
    sha256: str
    planes: tuple[Plane, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes of the package that are hashed and decoded as one; ``elements`` is 0 for a RAW segment's."""

    length: int
    elements: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """The piece of a coded segment that lies in one block; offsets and counts in elements."""

    plane: Plane
    segment: Segment
    start: int
    count: int
    file_offset: int

    @property
    def rows(self) -> tuple[int, int]:
        """The first row that the part touches and the one behind the last."""
        columns = self.plane.columns
        return self.start // columns, -(-(self.start + self.count) // columns)

    @property
    def scales_end(self) -> int:
        """Bytes of the output file that must exist before a SCALED part can be decoded, else 0."""
        if self.segment.mode is not Mode.SCALED:
            return 0
        return self.segment.new_scale + self.rows[1] * self.segment.scale_dtype.size


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a package says of itself.

    Attributes:
        single: the package makes one file, not a directory.
        base_files: what it reads from, empty for a full package.
        tables: frequencies of the 64 tokens, each table summing to 2048.
        files: what it makes.
        blocks: in the order in which they lie in the package and are needed.
        length: bytes before the first block.
        sha256: of those bytes.
    """

    single: bool
    base_files: tuple[BaseFile, ...]
    tables: tuple[tuple[int, ...], ...]
    files: tuple[OutputFile, ...]
    blocks: tuple[Block, ...]
    length: int = 0
    sha256: str = ""

    @property
    def package_bytes(self) -> int:
        """The size of the whole package."""
        return self.length + sum(block.length for block in self.blocks)

    @property
    def output_bytes(self) -> int:
        """The size of all that the package makes."""
        return sum(file.size for file in self.files)

    def block_offsets(self) -> list[int]:
        """Return where each block begins in the package."""
        return list(accumulate((block.length for block in self.blocks), initial=self.length))[:-1]


def unchanged_base(header: Header, file: OutputFile) -> BaseFile | None:
    """Return the base file whose content ``file`` has, when the package copies it as a whole."""
    segments = [segment for plane in file.planes for segment in plane.segments]
    if len(segments) != 1 or segments[0].mode is not Mode.SAME:
        return None
    base = header.base_files[segments[0].base]
    return base if (base.size, base.sha256) == (file.size, file.sha256) else None


Need = tuple[Block, Segment | None, list[Part]]


def schedule(file: OutputFile, blocks: Iterator[Block]) -> Iterator[Need]:
    """Walk a file in output order and say what each block that it needs is for.

    Yields:
        A block with the RAW segment it holds, or with the parts of coded segments it holds; in the order
        in which the first byte of each is needed, which is the order of the block table.

    Raises:
        PackageError: the block table does not fit the segments.
    """
    held: list[Need] = []
    room = 0
    for plane, segment, offset in segments_of(file):
        if segment.mode is Mode.RAW:
            held.append((_take(blocks, file, coded=False), segment, []))
        elif segment.mode.coded:
            start, total = 0, segment.length // plane.dtype.size
            while start < total:
                if not room:
                    yield from held
                    block = _take(blocks, file, coded=True)
                    room, held = block.elements, list[Need]([(block, None, [])])
                count = min(room, total - start)
                held[0][2].append(Part(plane, segment, start, count, offset + start * plane.dtype.size))
                start, room = start + count, room - count
        if not room:
            yield from held
            held = []
    if room:
        raise PackageError(f"{file.path}: its last block holds more elements than the file has")


def segments_of(file: OutputFile) -> Iterator[tuple[Plane, Segment, int]]:
    """Yield every segment of a file with its plane and its offset in the file, in order."""
    offset = 0
    for plane in file.planes:
        for segment in plane.segments:
            yield plane, segment, offset
            offset += segment.length


def with_segments(file: OutputFile, segments: Iterator[Segment]) -> OutputFile:
    """Return the file with its segments replaced, one for one, in order."""
    planes = (replace(p, segments=tuple(islice(segments, len(p.segments)))) for p in file.planes)
    return replace(file, planes=tuple(planes))


def _take(blocks: Iterator[Block], file: OutputFile, *, coded: bool) -> Block:
    block = next(blocks, None)
    if block is None:
        raise PackageError(f"{file.path}: the block table ends before the file does")
    if coded != bool(block.elements):
        raise PackageError(f"{file.path}: the block table and the segments disagree")
    return block
