"""What a ``.wpatch`` package consists of: files, planes, segments, blocks, and the limits on each.

A package makes *files*. A file is a sequence of *planes* (tensors, and the bytes between them), a plane a
sequence of *segments*, each made in one :class:`Mode`. What cannot be copied from the base comes from
*blocks*, the unit that is hashed and decoded. ``docs/wpatch-format.md`` specifies all of it; the bytes are
read and written in :mod:`autoglm.patch.header`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
MAX_BLOCK_TOKENS = 512 << 10
MAX_FACTORS = 4 << 20
MAX_RAW_BYTES = 4 << 20
MIN_DICTIONARY_BYTES = 8
MAX_DICTIONARY_BYTES = 8 << 20
MAX_COLUMNS = 1 << 28
MAX_TABLES = 64
MAX_MAPS = 4096
MAX_CONTEXTS = 640
MAX_FACTOR_RANK = 64
NUM_TOKENS = 64
TABLE_BITS = 11


class Dtype(IntEnum):
    """Element types, by their number in the format; from 16 on, an element is one block of a GGUF file."""

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
    Q4_0 = 16
    Q8_0 = 17
    Q4_K = 18
    Q5_K = 19
    Q6_K = 20

    @property
    def size(self) -> int:
        """Bytes of one element."""
        if self.is_record:
            return _RECORD_BYTES[self]
        return 1 if self < 6 else 2 if self < 10 else 4 if self < 13 else 8

    @property
    def is_record(self) -> bool:
        """Whether an element holds many weights and their scales."""
        return self >= 16


class Mode(IntEnum):
    """How a segment's bytes come to be."""

    SAME = 0
    RAW = 1
    FULL = 2
    DIFFERENCE = 3
    SCALED = 4
    PREDICTED = 5
    PAIRS = 6

    @property
    def coded(self) -> bool:
        """Whether the bytes come from the entropy coder."""
        return self >= Mode.FULL


_RECORD_BYTES = {Dtype.Q4_0: 18, Dtype.Q8_0: 34, Dtype.Q4_K: 144, Dtype.Q5_K: 176, Dtype.Q6_K: 210}
# Tokens of a record in modes FULL and DIFFERENCE, and contexts of its type in DIFFERENCE.
_RECORD_TOKENS = {
    Dtype.Q4_0: (33, 17),
    Dtype.Q8_0: (33, 33),
    Dtype.Q4_K: (274, 146),
    Dtype.Q5_K: (274, 274),
    Dtype.Q6_K: (273, 273),
}
_RECORD_CONTEXTS = {Dtype.Q4_0: 444, Dtype.Q8_0: 476, Dtype.Q4_K: 444, Dtype.Q5_K: 476, Dtype.Q6_K: 476}
_FLOATS = {
    Dtype.F8_E4M3: (4, 3),
    Dtype.F8_E5M2: (5, 2),
    Dtype.F16: (5, 10),
    Dtype.BF16: (8, 7),
    Dtype.F32: (8, 23),
}
FLOAT_DTYPES = frozenset(_FLOATS)
CODED_DTYPES = frozenset((Dtype.I8, Dtype.U8, Dtype.BOOL, *_FLOATS, *_RECORD_BYTES))
SCALE_DTYPES = frozenset((Dtype.F16, Dtype.BF16, Dtype.F32))


def float_fields(dtype: Dtype) -> tuple[int, int]:
    """Return the number of exponent and of mantissa bits of a float type; (0, 0) for any other."""
    return _FLOATS.get(dtype, (0, 0))


def allowed(mode: Mode, dtype: Dtype) -> bool:
    """Tell whether elements of a type may be coded in a mode."""
    if mode is Mode.SCALED:
        return dtype is Dtype.I8
    if mode is Mode.PREDICTED:
        return dtype is Dtype.I8 or dtype in _FLOATS
    if mode is Mode.PAIRS:
        return dtype in (Dtype.I8, Dtype.U8)
    return dtype in CODED_DTYPES


def num_contexts(mode: Mode, dtype: Dtype) -> int:
    """Return how many contexts the coder tells apart for a segment."""
    if mode is Mode.FULL:
        return 5 if dtype.is_record else 1
    if mode is Mode.DIFFERENCE:
        return _RECORD_CONTEXTS.get(dtype) or (20 if dtype in _FLOATS else 9)
    if mode is Mode.PREDICTED:
        return 640 if dtype in _FLOATS else 72
    return 18 if mode is Mode.SCALED else 400


def num_tokens(mode: Mode, dtype: Dtype) -> int:
    """Return how many tokens an element takes."""
    return _RECORD_TOKENS[dtype][mode is not Mode.FULL] if dtype.is_record else 1


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A file of the base that a package reads from."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Scales:
    """Where the scales of a quantised plane lie: one for every ``group`` bytes of it.

    Attributes:
        dtype: their element type.
        group: bytes of the plane that share one.
        old, new: offset of the first in the base file and in the output file.
    """

    dtype: Dtype
    group: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Curve:
    """How the product of integer factors moves the base; ``docs/wpatch-format.md`` has the arithmetic."""

    rank: int
    drop: int
    limit: int
    classes: int
    slope: int
    bend: int
    shift: int


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
        scales: of quantised elements, in SCALED always, in PREDICTED and PAIRS where they are known.
        curve: PREDICTED only.
        factor_tables: PREDICTED only: the table of each context of the factors.
        coded_bytes, slack_bytes, changed_ppm: for people: bytes in the package, how many of them lie above
            the entropy of the tokens in their contexts, elements changed per million.
    """

    mode: Mode
    length: int
    base: int = -1
    base_offset: int = 0
    dictionary: int = 0
    top: int = 0
    tables: bytes = b"\0"
    scales: Scales | None = None
    curve: Curve | None = None
    factor_tables: bytes = b""
    coded_bytes: int = 0
    slack_bytes: int = 0
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


def num_factors(plane: Plane, segment: Segment) -> int:
    """Return how many numbers the factors of a segment have; 0 when it has none."""
    return (plane.rows + plane.columns) * segment.curve.rank if segment.curve else 0


def is_inline(plane: Plane, segment: Segment) -> bool:
    """Tell whether a segment's factors lie in one block with all its elements, rather than in their own."""
    factors = num_factors(plane, segment)
    return 0 < factors <= MAX_BLOCK_TOKENS - segment.length // plane.dtype.size


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a package makes."""

    path: str
    size: int
    sha256: str
    planes: tuple[Plane, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes of the package that are hashed and decoded as one.

    Attributes:
        length: in bytes.
        elements: tokens in it, 0 for a RAW segment's.
        sha256: of its bytes.
    """

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
    def size(self) -> int:
        """In bytes."""
        return self.count * self.plane.dtype.size

    @property
    def tokens(self) -> int:
        """What the part takes of a block, its factors included when they lie in the same one."""
        inline = num_factors(self.plane, self.segment) if is_inline(self.plane, self.segment) else 0
        return inline + self.count * num_tokens(self.segment.mode, self.plane.dtype)

    @property
    def rows(self) -> tuple[int, int]:
        """The first row that the part touches and the one behind the last."""
        columns = self.plane.columns
        return self.start // columns, -(-(self.start + self.count) // columns)

    @property
    def groups(self) -> tuple[int, int]:
        """The first scale that the part needs and the one behind the last; (0, 0) without scales."""
        if self.segment.scales is None:
            return 0, 0
        group = self.segment.scales.group
        return self.start // group, -(-(self.start + self.count) // group)

    @property
    def scales_end(self) -> int:
        """Bytes of the output file that must exist before the part can be decoded; 0 without scales."""
        scales = self.segment.scales
        return scales.new + self.groups[1] * scales.dtype.size if scales else 0


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


@dataclass(frozen=True, slots=True)
class Need:
    """What a block is for: a RAW segment, the factors of a PREDICTED one, or the parts of coded segments."""

    block: Block
    segment: Segment | None = None
    plane: Plane | None = None
    parts: list[Part] = field(default_factory=list[Part])


def schedule(file: OutputFile, blocks: Iterator[Block]) -> Iterator[Need]:
    """Walk a file in output order and say what each block that it needs is for.

    Yields:
        Blocks in the order in which the first byte of each is needed, which is the order of the block table;
        the factors of a segment directly before its first block.

    Raises:
        PackageError: the block table does not fit the segments.
    """
    held: list[Need] = []
    room = 0
    for plane, segment, offset in segments_of(file):
        if segment.mode is Mode.RAW:
            held.append(Need(_take(blocks, file, 0, 0), segment))
        elif segment.mode.coded:
            if segment.curve and not is_inline(plane, segment):
                yield Need(_take_factors(blocks, file, plane, segment, room), segment, plane)
            start, total = 0, segment.length // plane.dtype.size
            while start < total:
                if not room:
                    yield from held
                    held = [Need(_take(blocks, file, 1, MAX_BLOCK_TOKENS))]
                    room = held[0].block.elements
                part = _part(file, plane, segment, start, offset, room)
                held[0].parts.append(part)
                start, room = start + part.count, room - part.tokens
        if not room:
            yield from held
            held = []
    if room:
        raise PackageError(f"{file.path}: its last block holds more elements than the file has")


def _part(file: OutputFile, plane: Plane, segment: Segment, start: int, offset: int, room: int) -> Part:
    """Return as much of a segment from an element on as there is room for."""
    total, size = segment.length // plane.dtype.size, plane.dtype.size
    if is_inline(plane, segment):
        count = total if room >= total + num_factors(plane, segment) else 0
    else:
        count = min(room // num_tokens(segment.mode, plane.dtype), total - start)
    if not count:
        raise PackageError(f"{file.path}: a block ends within what must lie in one")
    return Part(plane, segment, start, count, offset + start * size)


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


def _take(blocks: Iterator[Block], file: OutputFile, low: int, high: int) -> Block:
    block = next(blocks, None)
    if block is None:
        raise PackageError(f"{file.path}: the block table ends before the file does")
    if not low <= block.elements <= high:
        raise PackageError(f"{file.path}: the block table and the segments disagree")
    return block


def _take_factors(
    blocks: Iterator[Block], file: OutputFile, plane: Plane, segment: Segment, room: int
) -> Block:
    if room:
        raise PackageError(f"{file.path}: {plane.name} begins within a block, but has factors of its own")
    count = num_factors(plane, segment)
    return _take(blocks, file, count, count)
