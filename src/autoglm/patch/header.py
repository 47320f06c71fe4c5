"""The header of a package as bytes: written canonically, read strictly.

What it guarantees: a :class:`~autoglm.patch.package.Header` that came out of :func:`read_header` obeys every
limit of the format, covers every output file exactly once, reads only from inside its base files, and has a
block for every byte that is not copied. What it refuses to do: look into a block, or make room for a count
before it has been compared with the bytes that are left.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import xor
from pathlib import Path
from typing import IO, TypeVar

from autoglm.errors import IntegrityError, PackageError
from autoglm.files import safe_relative_path, storage_error
from autoglm.patch import package, zstd
from autoglm.patch.package import (
    BaseFile,
    Block,
    Curve,
    Dtype,
    Header,
    Mode,
    OutputFile,
    Plane,
    Scales,
    Segment,
)
from autoglm.patch.rules import check

MAGIC = b"\x89WPATCH\n"
VERSION = 2
PREAMBLE = struct.Struct("<8sHHII8s")
# How many earlier maps are looked at for one that is alike.
_LIKENESSES = 64

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HeaderPin:
    """What a signed description says of a package's header, checked before the header is parsed.

    Attributes:
        length: bytes before the first block.
        sha256: of those bytes, 64 lower-case hexadecimal digits.
    """

    length: int
    sha256: str


class _Writer:
    def __init__(self) -> None:
        self.body = bytearray()
        self.ends: dict[str, int] = {}
        self.maps: dict[bytes, int] = {}

    def numbers(self, *values: int) -> None:
        for value in values:
            while value >= 0x80:
                self.body.append(value & 0x7F | 0x80)
                value >>= 7
            self.body.append(value)

    def blob(self, content: bytes) -> None:
        self.numbers(len(content))
        self.body += content

    def signed(self, *values: int) -> None:
        self.numbers(*(2 * value if value >= 0 else -2 * value - 1 for value in values))

    def offset(self, kind: str, value: int, length: int) -> None:
        """Write an offset as the step from where the last one of its kind ended; mostly 0."""
        self.signed(value - self.ends.get(kind, 0))
        self.ends[kind] = value + length


class _Reader:
    """Take bounded values from the body; every refusal is a PackageError that names the field."""

    def __init__(self, body: bytes) -> None:
        self.body, self.at = body, 0
        self.totals: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.maps: tuple[bytes, ...] = ()

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.body) - self.at:
            raise PackageError(f"package header: {what} runs past its end")
        self.at += count
        return self.body[self.at - count : self.at]

    def peek(self) -> int:
        """Return the next byte without taking it; 0 at the end."""
        return self.body[self.at] if self.at < len(self.body) else 0

    def number(self, what: str, high: int, low: int = 0) -> int:
        value = shift = 0
        while True:
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 56:
                raise PackageError(f"package header: {what} is too long a number")
        if (byte == 0 and shift > 7) or not low <= value <= high:
            raise PackageError(f"package header: {what} must be a number from {low} to {high}")
        return value

    def signed(self, what: str, high: int) -> int:
        """Read a number from ``-high`` to ``high``."""
        value = self.number(what, 2 * high)
        return value >> 1 if value % 2 == 0 else -(value >> 1) - 1

    def offset(self, kind: str, length: int) -> int:
        """Read what :meth:`_Writer.offset` wrote."""
        value = self.ends.get(kind, 0) + self.signed(f"{kind} offset", package.MAX_BYTES)
        if not 0 <= value <= package.MAX_BYTES:
            raise PackageError(f"package header: a {kind} offset lies outside any file")
        self.ends[kind] = value + length
        return value

    def text(self, what: str, max_bytes: int) -> str:
        try:
            return self.take(self.number(f"length of {what}", max_bytes), what).decode()
        except UnicodeDecodeError as error:
            raise PackageError(f"package header: {what} is not UTF-8") from error

    def many(self, what: str, limit: int, read: Callable[[], _T]) -> tuple[_T, ...]:
        return tuple(read() for _ in range(self.number(f"number of {what}", limit)))

    def map(self, what: str) -> bytes:
        """Read the number of a map; return the map."""
        if not self.maps:
            raise PackageError("package header: there are coded segments, but no maps")
        return self.maps[self.number(what, len(self.maps) - 1)]

    def count(self, what: str, limit: int) -> int:
        """Read a number of things of which there may be so many in the whole header."""
        count = self.number(f"number of {what}", limit)
        self.totals[what] = self.totals.get(what, 0) + count
        if self.totals[what] > limit:
            raise PackageError(f"package header: more than {limit} {what}")
        return count


def write_header(header: Header) -> bytes:
    """Return the bytes that precede the first block of a package."""
    writer = _Writer()
    writer.numbers(int(header.single), len(header.base_files))
    for base in header.base_files:
        writer.blob(base.path.encode())
        writer.numbers(base.size)
        writer.body += bytes.fromhex(base.sha256)
    writer.numbers(len(header.tables))
    for table in header.tables:
        used = max(token for token, frequency in enumerate(table) if frequency) + 1
        writer.numbers(used, *table[:used])
    _write_maps(writer, header)
    writer.numbers(len(header.files))
    for file in header.files:
        _write_file(writer, file)
    writer.numbers(len(header.blocks), *(block.length for block in header.blocks))
    writer.numbers(*(block.elements for block in header.blocks))
    writer.body += b"".join(block.sha256 for block in header.blocks)
    body = bytes(writer.body)
    stored = zstd.compress(body)
    if max(len(body), len(stored)) > package.MAX_HEADER_BYTES:
        raise PackageError(f"the package's header would have {len(body)} bytes: too many tensors or files")
    return PREAMBLE.pack(MAGIC, VERSION, 0, len(stored), len(body), _check_bytes(stored)) + stored


def _write_maps(writer: _Writer, header: Header) -> None:
    """Write every distinct map once, in the order of first use, as it differs from an earlier one."""
    for file in header.files:
        for _, segment, _ in package.segments_of(file):
            if segment.mode.coded:
                writer.maps.setdefault(segment.tables, len(writer.maps))
            if segment.curve:
                writer.maps.setdefault(segment.factor_tables, len(writer.maps))
    writer.numbers(len(writer.maps))
    written: list[bytes] = []
    for entries in writer.maps:
        recent = [(back, m) for back, m in enumerate(reversed(written), 1) if len(m) == len(entries)]
        like = min(recent[:_LIKENESSES], key=lambda pair: _distance(pair[1], entries), default=(0, b""))
        writer.numbers(len(entries), like[0])
        writer.body += _xor(entries, like[1] or (b"\0" + entries)[:-1])
        written.append(entries)


def _distance(a: bytes, b: bytes) -> int:
    return len(a) - _xor(a, b).count(0)


def _xor(a: bytes, b: bytes) -> bytes:
    # as two large numbers: maps are compared often when a header is written
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def _check_bytes(stored: bytes) -> bytes:
    """Return what notices accidental damage of a header that nobody pinned."""
    return hashlib.sha256(stored).digest()[:8]


def _write_file(writer: _Writer, file: OutputFile) -> None:
    writer.blob(file.path.encode())
    writer.numbers(file.size)
    writer.body += bytes.fromhex(file.sha256)
    writer.numbers(len(file.planes))
    writer.ends = {}
    for plane in file.planes:
        writer.blob(plane.name.encode())
        writer.numbers(plane.dtype, len(plane.shape), *plane.shape, len(plane.segments))
        for number, segment in enumerate(plane.segments, 1):
            _write_segment(writer, plane, segment, last=number == len(plane.segments))


def _write_segment(writer: _Writer, plane: Plane, segment: Segment, *, last: bool) -> None:
    mode = segment.mode
    length = 0 if last else segment.length
    writer.numbers(mode, length, segment.coded_bytes, segment.slack_bytes, segment.changed_ppm)
    if mode is Mode.RAW:
        writer.numbers(segment.dictionary)
    if mode is not Mode.FULL:
        writer.numbers(segment.base + 1)
        writer.offset("base", segment.base_offset, segment.reach)
    if mode.coded:
        if mode is not Mode.PAIRS:
            writer.numbers(segment.top)
        writer.numbers(writer.maps[segment.tables])
    if mode >= Mode.SCALED:
        _write_scales(writer, plane, segment)
    if curve := segment.curve:
        writer.numbers(curve.rank, curve.drop, curve.limit, curve.classes)
        writer.signed(curve.slope, curve.bend, curve.shift)
        writer.numbers(writer.maps[segment.factor_tables])


def _write_scales(writer: _Writer, plane: Plane, segment: Segment) -> None:
    scales = segment.scales
    writer.numbers(scales.dtype if scales else 0)
    if scales:
        length = segment.length // scales.group * scales.dtype.size
        writer.numbers(scales.group)
        writer.offset("old scales", scales.old, length)
        writer.offset("new scales", scales.new, length)


def read_header(path: Path, pin: HeaderPin | None = None) -> Header:
    """Read and check the header of the package at ``path``, and the package's size.

    Args:
        path: the package.
        pin: what the header must be; without it only the format's own checks hold.

    Raises:
        IntegrityError: the header is not the pinned one.
        PackageError: it breaks the format, or the package is longer or shorter than it says.
        StorageError: the package cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = _read_pinned(file, pin) if pin else _read_announced(file)
            header = parse_header(raw)
            size = file.seek(0, 2)
    except OSError as error:
        raise storage_error(error, f"reading the package {path}") from error
    if size != header.package_bytes:
        what = "truncated: download it again" if size < header.package_bytes else "followed by foreign bytes"
        raise PackageError(
            f"{path.name} has {size} bytes, its header says {header.package_bytes}; it is {what}"
        )
    return header


def _read_pinned(file: IO[bytes], pin: HeaderPin) -> bytes:
    if not PREAMBLE.size <= pin.length <= PREAMBLE.size + package.MAX_HEADER_BYTES:
        raise IntegrityError(f"no package header has {pin.length} bytes")
    raw = file.read(pin.length)
    if len(raw) != pin.length or hashlib.sha256(raw).hexdigest() != pin.sha256:
        raise IntegrityError("the package's header is not the one that was promised: nothing of it was read")
    return raw


def _read_announced(file: IO[bytes]) -> bytes:
    preamble = file.read(PREAMBLE.size)
    stored, _ = _sizes(preamble)
    return preamble + file.read(stored)


def _sizes(preamble: bytes) -> tuple[int, int]:
    if len(preamble) < PREAMBLE.size or not preamble.startswith(MAGIC):
        raise PackageError("not a .wpatch package: it does not begin with the magic number")
    _, version, reserved, stored, length, _ = PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise PackageError(f"package format {version} is unknown here: update this program")
    if reserved or max(stored, length) > package.MAX_HEADER_BYTES:
        raise PackageError("package header: reserved bits are set, or it is too long")
    return stored, length


def parse_header(raw: bytes) -> Header:
    """Parse and check the bytes that precede the first block.

    Raises:
        PackageError: a rule of the format is broken; the message names the field.
    """
    stored, length = _sizes(raw[: PREAMBLE.size])
    if len(raw) != PREAMBLE.size + stored:
        raise PackageError("package header: its length is not the announced one")
    if _check_bytes(raw[PREAMBLE.size :]) != raw[PREAMBLE.size - 8 : PREAMBLE.size]:
        raise PackageError("the package's header is damaged: download it again")
    reader = _Reader(zstd.decompress(raw[PREAMBLE.size :], length))
    single = bool(reader.number("kind", 1))
    base_files = reader.many("base files", package.MAX_FILES, lambda: _read_base(reader))
    tables = reader.many("tables", package.MAX_TABLES, lambda: _read_table(reader))
    for _ in range(reader.number("number of maps", package.MAX_MAPS)):
        reader.maps += (_read_map(reader, len(tables)),)
    files = reader.many("files", package.MAX_FILES, lambda: _read_file(reader))
    blocks = _read_blocks(reader)
    if reader.at != len(reader.body):
        raise PackageError("package header: bytes are left over behind the block table")
    header = Header(single, base_files, tables, files, blocks, len(raw), hashlib.sha256(raw).hexdigest())
    check(header)
    return header


def _read_path(reader: _Reader) -> str:
    path = reader.text("a path", 255 * 4)
    if not safe_relative_path(path) or any(ord(letter) < 32 for letter in path):
        raise PackageError(f"package header: {path!r} is not a plain relative path")
    return path


def _read_base(reader: _Reader) -> BaseFile:
    path = _read_path(reader)
    return BaseFile(path, reader.number("a size", package.MAX_BYTES), reader.take(32, "a hash").hex())


def _read_table(reader: _Reader) -> tuple[int, ...]:
    total = 1 << package.TABLE_BITS
    used = reader.many("frequencies", package.NUM_TOKENS, lambda: reader.number("a frequency", total))
    if not used or not used[-1] or sum(used) != total:
        raise PackageError(f"package header: a table's frequencies must sum to {total}")
    return used + (0,) * (package.NUM_TOKENS - len(used))


def _read_map(reader: _Reader, num_tables: int) -> bytes:
    count = reader.number("contexts", package.MAX_CONTEXTS, 1)
    back = reader.number("likeness", len(reader.maps))
    written = reader.take(count, "contexts")
    if back:
        like = reader.maps[-back]
        if len(like) != count:
            raise PackageError("package header: a map is likened to one of another length")
        entries = _xor(written, like)
    else:
        entries = bytes(accumulate(written, xor))
    if max(entries) >= num_tables:
        raise PackageError("package header: a map names a table that is not there")
    return entries


def _read_file(reader: _Reader) -> OutputFile:
    path = _read_path(reader)
    size, digest = reader.number("a size", package.MAX_BYTES), reader.take(32, "a hash").hex()
    reader.ends = {}
    planes = tuple(_read_plane(reader) for _ in range(reader.count("planes", package.MAX_PLANES)))
    if sum(plane.length for plane in planes) != size:
        raise PackageError(f"package header: the planes of {path} do not add up to its size")
    return OutputFile(path, size, digest, planes)


def _read_enum(reader: _Reader, kind: type[_T], what: str) -> _T:
    value = reader.number(what, 255)
    try:
        return kind(value)  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        raise PackageError(f"package header: {what} {value} is unknown here: update this program") from error


def _read_plane(reader: _Reader) -> Plane:
    name = reader.text("a name", package.MAX_NAME_BYTES)
    dtype = _read_enum(reader, Dtype, "element type")
    shape = reader.many(
        "dimensions", package.MAX_RANK, lambda: reader.number("a dimension", package.MAX_BYTES)
    )
    if math.prod(shape) * dtype.size > package.MAX_BYTES:
        raise PackageError(f"package header: {name} is too large")
    plane = Plane(name, dtype, shape, ())
    left = plane.length
    segments: list[Segment] = []
    for more in reversed(range(reader.count("segments", package.MAX_SEGMENTS))):
        segments.append(_read_segment(reader, plane, left, last=not more))
        left -= segments[-1].length
    if left:
        raise PackageError(f"package header: the segments of {name} do not add up to its size")
    return replace(plane, segments=tuple(segments))


def _read_segment(reader: _Reader, plane: Plane, left: int, *, last: bool) -> Segment:
    mode = _read_enum(reader, Mode, "mode")
    length = reader.number("a segment's length", 0 if last else package.MAX_BYTES, 0 if last else 1)
    if left < 1 or length > left:
        raise PackageError(f"package header: the segments of {plane.name} do not add up to its size")
    coded_bytes, slack = (reader.number(what, package.MAX_BYTES) for what in ("coded bytes", "slack"))
    changed = reader.number("changed share", 10**6)
    segment = Segment(mode, length or left, coded_bytes=coded_bytes, slack_bytes=slack, changed_ppm=changed)
    if mode is Mode.RAW:
        segment = replace(segment, dictionary=reader.number("dictionary", package.MAX_DICTIONARY_BYTES))
    if mode is not Mode.FULL:
        base = reader.number("base file", package.MAX_FILES) - 1
        segment = replace(segment, base=base, base_offset=reader.offset("base", segment.reach))
    if mode.coded:
        top = 0 if mode is Mode.PAIRS else reader.number("top exponent", 255)
        segment = replace(segment, top=top, tables=reader.map("map"))
    if mode >= Mode.SCALED:
        segment = replace(segment, scales=_read_scales(reader, segment))
    if mode is Mode.PREDICTED:
        segment = replace(segment, curve=_read_curve(reader), factor_tables=reader.map("factor map"))
    return segment


def _read_scales(reader: _Reader, segment: Segment) -> Scales | None:
    if segment.mode is not Mode.SCALED and not reader.peek():
        reader.take(1, "scale type")
        return None
    dtype = _read_enum(reader, Dtype, "scale type")
    group = reader.number("a group", package.MAX_COLUMNS, 1)
    length = segment.length // group * dtype.size
    old, new = (reader.offset(f"{age} scales", length) for age in ("old", "new"))
    return Scales(dtype, group, old, new)


def _read_curve(reader: _Reader) -> Curve:
    rank, drop = reader.number("rank", package.MAX_FACTOR_RANK, 1), reader.number("drop", 31)
    limit, classes = reader.number("limit", 32767, 1), reader.number("classes", 65535)
    slope, bend = (reader.signed(what, 65535) for what in ("slope", "bend"))
    if abs(slope) + abs(bend) > 65535:
        raise PackageError("package header: slope and bend are too large together")
    return Curve(rank, drop, limit, classes, slope, bend, reader.signed("shift", 31))


def _read_blocks(reader: _Reader) -> tuple[Block, ...]:
    count = reader.number("number of blocks", package.MAX_BLOCKS)
    if count * 34 > len(reader.body) - reader.at:
        raise PackageError("package header: the block table runs past its end")
    lengths = [reader.number("a block's length", package.MAX_BLOCK_BYTES, 1) for _ in range(count)]
    elements = [reader.number("a block's elements", package.MAX_FACTORS) for _ in range(count)]
    return tuple(Block(*pair, reader.take(32, "a hash")) for pair in zip(lengths, elements, strict=True))
