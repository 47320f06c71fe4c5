"""A slow, plain reading of docs/wpatch-format.md: decodes a package without the native core.

It shares no code with the package but the header's dataclasses, so that the two can disagree. What the
document says of single elements is in ``prediction_reference.py`` and ``records_reference.py``.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from autoglm.patch import zstd
from autoglm.patch.header import read_header
from autoglm.patch.package import (
    Dtype,
    Header,
    Mode,
    OutputFile,
    Part,
    Plane,
    Segment,
    is_inline,
    schedule,
    segments_of,
)
from patch import prediction_reference as element
from patch import records_reference as records

FLOATS = {Dtype(number): fields for number, fields in element.FLOATS.items()}
TOKENS = {8: (32, 3), 16: (16, 2), 32: (4, 1)}
STATES = 32


class BlockReader:
    """The tokens and raw bits of one block."""

    def __init__(self, tables: tuple[tuple[int, ...], ...], block: bytes) -> None:
        self.tables = tables
        self.states = [int.from_bytes(block[4 * i : 4 * i + 4], "little") for i in range(STATES)]
        start = 4 * STATES + 4
        count = int.from_bytes(block[start - 4 : start], "little")
        words = block[start : start + 2 * count]
        self.words = [int.from_bytes(words[i : i + 2], "little") for i in range(0, len(words), 2)][::-1]
        rest = block[start + 2 * count :]
        self.bits = int.from_bytes(rest, "little")
        self.num_bits = 8 * len(rest)
        self.index = 0

    def token(self, table: int) -> int:
        x = self.states[self.index % STATES]
        slot, start, token = x % 2048, 0, 0
        while slot >= start + self.tables[table][token]:
            start += self.tables[table][token]
            token += 1
        frequency = self.tables[table][token]
        x = frequency * (x >> 11) + slot - start
        if x < 1 << 15:
            x = x << 16 | self.words.pop()
        self.states[self.index % STATES] = x
        self.index += 1
        return token

    def raw(self, count: int) -> int:
        value = self.bits & ((1 << count) - 1)
        self.bits >>= count
        self.num_bits -= count
        return value

    def close(self) -> None:
        assert self.states == [1 << 15] * STATES
        assert not self.words
        assert 0 <= self.num_bits < 8
        assert self.bits == 0


@dataclass(frozen=True)
class View:
    """A block as ``records_reference`` reads it: by contexts of one part."""

    reader: BlockReader
    tables: bytes

    def token(self, context: int) -> int:
        return self.reader.token(table_of(self.tables, context))

    def raw(self, count: int) -> int:
        return self.reader.raw(count)

    def number(self, context: int, width: int = 8) -> int:
        return spell(self.reader, table_of(self.tables, context), width)


@dataclass(frozen=True)
class Factors:
    """P by rows, Q by columns."""

    left: list[list[int]]
    right: list[list[int]]


def unfold(z: int) -> int:
    return z >> 1 if z % 2 == 0 else -(z >> 1) - 1


def spell(reader: BlockReader, table: int, width: int) -> int:
    direct, fine = TOKENS[width]
    token = reader.token(table)
    if token < direct:
        return token
    place = token - direct
    bits = direct.bit_length() - 1 + (place >> fine) - fine
    return ((1 << fine) + place % (1 << fine) << bits) + reader.raw(bits)


def full_float(reader: BlockReader, table: int, dtype: Dtype, top: int) -> int:
    x, m = FLOATS[dtype]
    token = reader.token(table)
    low, sign = reader.raw(m - 2), reader.raw(1)
    exponent = reader.raw(x) if token >= 60 else top - token // 4
    return sign << (x + m) | (exponent & ((1 << x) - 1)) << m | token % 4 << (m - 2) | low


def table_of(tables: bytes, context: int) -> int:
    return tables[0] if len(tables) == 1 else tables[context]


def difference_context(dtype: Dtype, top: int, base: int) -> int:
    if dtype not in FLOATS:
        return element.magnitude_class(base)
    x, m = FLOATS[dtype]
    return min(19, max(0, top - (base >> m & ((1 << x) - 1))))


def guess(part: Part, base: int, ratio: int, product: int) -> element.Guess:
    """Return what the mode predicts for an element."""
    segment, dtype = part.segment, part.plane.dtype
    if segment.mode is Mode.SCALED:
        return element.scaled(base, ratio)
    if segment.curve is None:
        context = difference_context(dtype, segment.top, base)
        return element.Guess(base, context, bool(base >> (8 * dtype.size - 1)))
    c = segment.curve
    curve = element.Curve(c.rank, c.drop, c.limit, c.slope, c.bend, c.shift, c.classes)
    if dtype is Dtype.I8:
        return element.predicted_code(base, ratio, product, curve)
    return element.predicted_float(base, dtype, segment.top, product, curve)


def coded(reader: BlockReader, part: Part, base: int, ratio: int, product: int) -> int:
    dtype, width = part.plane.dtype, 8 * part.plane.dtype.size
    prediction, context, turned = astuple(guess(part, base, ratio, product))
    change = unfold(spell(reader, table_of(part.segment.tables, context), width))
    change = -change if turned else change
    if dtype not in FLOATS:
        return (prediction + change) % (1 << width)
    return element.order((element.order(prediction, width) + change) % (1 << width), width)


def ratio_at(segment: Segment, i: int, base: bytes, made: bytes) -> int:
    """Return how the scale of element ``i`` moved."""
    scales = segment.scales
    if scales is None:
        return element.ONE
    width, group = scales.dtype.size, i // scales.group
    old = int.from_bytes(base[scales.old + group * width :][:width], "little")
    new = int.from_bytes(made[scales.new + group * width :][:width], "little")
    return element.ratio(old, new, scales.dtype)


def decode_part(
    reader: BlockReader, part: Part, base: bytes, made: bytes, factors: Factors | None = None
) -> bytes:
    segment, dtype, columns = part.segment, part.plane.dtype, max(1, part.plane.columns)
    size = dtype.size
    view: Any = View(reader, segment.tables)
    piece = base[segment.base_offset + part.start * size :][: part.size]
    if dtype.is_record:
        piece = piece or bytes(part.size)
        return records.decode_records(view, segment.mode, dtype, segment.top, piece)
    if segment.mode is Mode.PAIRS:
        ratios = (ratio_at(segment, part.start + i, base, made) for i in range(part.count))
        return records.decode_pairs(view, piece, lambda _: next(ratios))
    if is_inline(part.plane, segment):
        factors = decode_factors(reader, part.plane, segment)
    out = bytearray()
    for i in range(part.start, part.start + part.count):
        b = int.from_bytes(base[segment.base_offset + i * size :][:size], "little")
        if segment.mode is Mode.FULL:
            table = table_of(segment.tables, 0)
            if dtype in FLOATS:
                u = full_float(reader, table, dtype, segment.top)
            else:
                u = unfold(spell(reader, table, 8)) % 256
        else:
            product = 0
            if factors:
                product = element.product(factors.left[i // columns], factors.right[i % columns])
            u = coded(reader, part, b, ratio_at(segment, i, base, made), product)
        out += u.to_bytes(size, "little")
    return bytes(out)


def decode_factors(reader: BlockReader, plane: Plane, segment: Segment) -> Factors:
    assert segment.curve
    rows, columns, rank = plane.rows, plane.columns, segment.curve.rank
    left, right = [[0] * rank for _ in range(rows)], [[0] * rank for _ in range(columns)]
    for k in range(rank):
        table = table_of(segment.factor_tables, k)
        for line in (*left, *right):
            line[k] = unfold(spell(reader, table, 16))
            assert abs(line[k]) <= 2047
    return Factors(left, right)


def decode_file(header: Header, package: bytes, bases: list[bytes], file: OutputFile, first: int) -> bytes:
    """Return the content of ``file``, whose blocks begin with number ``first``."""
    made = bytearray(file.size)
    offsets = header.block_offsets()
    raws = iter([(s, at) for _, s, at in segments_of(file) if s.mode is Mode.RAW])
    for _, segment, at in segments_of(file):
        if segment.mode is Mode.SAME:
            start = segment.base_offset
            made[at : at + segment.length] = bases[segment.base][start : start + segment.length]
    factors: Factors | None = None
    for number, need in enumerate(schedule(file, iter(header.blocks[first:])), first):
        content = package[offsets[number] :][: need.block.length]
        if need.plane and need.segment:
            reader = BlockReader(header.tables, content)
            factors = decode_factors(reader, need.plane, need.segment)
            reader.close()
            continue
        if need.segment:
            raw, at = next(raws)
            prefix = bases[raw.base][raw.base_offset :][: raw.dictionary] if raw.dictionary else b""
            made[at : at + raw.length] = zstd.decompress(content, raw.length, prefix=prefix)
            continue
        reader = BlockReader(header.tables, content)
        for part in need.parts:
            base = bases[part.segment.base] if part.segment.base >= 0 else b""
            given = factors if part.segment.curve else None
            piece = decode_part(reader, part, base, bytes(made), given)
            made[part.file_offset : part.file_offset + len(piece)] = piece
        reader.close()
    return bytes(made)


def decode_single(base: Path | None, package: Path) -> bytes:
    """Return what a package of a single file makes."""
    header = read_header(package)
    bases = [base.read_bytes()] if base and header.base_files else []
    return decode_file(header, package.read_bytes(), bases, header.files[0], 0)
