"""A slow, plain reading of docs/wpatch-format.md: decodes a package without the native core.

It shares no code with the package but the header's dataclasses, so that the two can disagree.
"""

from __future__ import annotations

from pathlib import Path

from autoglm.patch import zstd
from autoglm.patch.header import read_header
from autoglm.patch.package import Dtype, Header, Mode, OutputFile, Part, schedule, segments_of

FLOATS = {
    Dtype.F8_E4M3: (4, 3),
    Dtype.F8_E5M2: (5, 2),
    Dtype.F16: (5, 10),
    Dtype.BF16: (8, 7),
    Dtype.F32: (8, 23),
}
TOKENS = {8: (32, 3), 16: (16, 2), 32: (4, 1)}


class BlockReader:
    """The tokens and raw bits of one block."""

    def __init__(self, tables: tuple[tuple[int, ...], ...], block: bytes) -> None:
        self.tables = tables
        self.states = [int.from_bytes(block[4 * i : 4 * i + 4], "little") for i in range(4)]
        count = int.from_bytes(block[16:20], "little")
        self.words = [int.from_bytes(block[20 + 2 * i : 22 + 2 * i], "little") for i in range(count)]
        rest = block[20 + 2 * count :]
        self.bits = int.from_bytes(rest, "little")
        self.num_bits = 8 * len(rest)
        self.index = 0

    def token(self, table: int) -> int:
        x = self.states[self.index % 4]
        slot, start, token = x % 2048, 0, 0
        while slot >= start + self.tables[table][token]:
            start += self.tables[table][token]
            token += 1
        frequency = self.tables[table][token]
        x = frequency * (x >> 11) + slot - start
        if x < 1 << 15:
            x = x << 16 | self.words.pop(0)
        self.states[self.index % 4] = x
        self.index += 1
        return token

    def raw(self, count: int) -> int:
        value = self.bits & ((1 << count) - 1)
        self.bits >>= count
        self.num_bits -= count
        return value

    def close(self) -> None:
        assert self.states == [1 << 15] * 4
        assert not self.words
        assert 0 <= self.num_bits < 8
        assert self.bits == 0


def unfold(z: int) -> int:
    return z >> 1 if z % 2 == 0 else -(z >> 1) - 1


def order(u: int, width: int) -> int:
    top = 1 << (width - 1)
    return u ^ (top - 1) if u & top else u


def scale_parts(bits: int, dtype: Dtype) -> tuple[int, int]:
    x, m = FLOATS[dtype]
    sign, exponent, mantissa = bits >> (x + m), bits >> m & ((1 << x) - 1), bits & ((1 << m) - 1)
    if sign or exponent == (1 << x) - 1:
        return 0, 0
    return (mantissa, 1) if exponent == 0 else (mantissa + (1 << m), exponent)


def ratio(old: int, new: int, dtype: Dtype) -> int:
    (a, i), (b, j) = scale_parts(old, dtype), scale_parts(new, dtype)
    if a == 0 or b == 0:
        return 1 << 20
    shift = 20 + i - j
    if shift < 0:
        return 0
    return 1 << 23 if shift > 38 else min(1 << 23, ((a << shift) + b // 2) // b)


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


def table_of(part: Part, context: int) -> int:
    tables = part.segment.tables
    return tables[0] if len(tables) == 1 else tables[context]


def difference(reader: BlockReader, part: Part, base: int) -> int:
    dtype, width = part.plane.dtype, 8 * part.plane.dtype.size
    if dtype in FLOATS:
        x, m = FLOATS[dtype]
        context = min(19, max(0, part.segment.top - (base >> m & ((1 << x) - 1))))
    else:
        magnitude = base if base < 128 else 256 - base
        context = 8 if magnitude >= 127 else magnitude.bit_length()
    change = unfold(spell(reader, table_of(part, context), width))
    change = -change if base >> (width - 1) else change
    if dtype not in FLOATS:
        return (base + change) % (1 << width)
    return order((order(base, width) + change) % (1 << width), width)


def scaled(reader: BlockReader, part: Part, base: int, r: int) -> int:
    t = (base if base < 128 else base - 256) * r
    p, f = (t + (1 << 19)) >> 20, (t >> 16) % 16
    up = f >> 3
    if p <= -127 or p >= 127:
        p = max(-127, min(127, p))
        context, turn = 8, p < 0
    else:
        context, turn = (15 - f if up else f), bool(up)
    change = unfold(spell(reader, table_of(part, context), 8))
    return (p + (-change if turn else change)) % 256


def decode_part(reader: BlockReader, part: Part, base: bytes, made: bytes) -> bytes:
    segment, dtype = part.segment, part.plane.dtype
    size = dtype.size
    out = bytearray()
    for i in range(part.start, part.start + part.count):
        b = int.from_bytes(base[segment.base_offset + i * size :][:size], "little")
        if segment.mode is Mode.DIFFERENCE:
            u = difference(reader, part, b)
        elif segment.mode is Mode.SCALED:
            width, row = segment.scale_dtype.size, i // part.plane.columns
            old = int.from_bytes(base[segment.base_scale + row * width :][:width], "little")
            new = int.from_bytes(made[segment.new_scale + row * width :][:width], "little")
            u = scaled(reader, part, b, ratio(old, new, segment.scale_dtype))
        elif dtype in FLOATS:
            u = full_float(reader, table_of(part, 0), dtype, segment.top)
        else:
            u = unfold(spell(reader, table_of(part, 0), 8)) % 256
        out += u.to_bytes(size, "little")
    return bytes(out)


def decode_file(header: Header, package: bytes, bases: list[bytes], file: OutputFile, first: int) -> bytes:
    """Return the content of ``file``, whose blocks begin with number ``first``."""
    made = bytearray(file.size)
    offsets = header.block_offsets()
    raws = iter([(s, at) for _, s, at in segments_of(file) if s.mode is Mode.RAW])
    for _, segment, at in segments_of(file):
        if segment.mode is Mode.SAME:
            start = segment.base_offset
            made[at : at + segment.length] = bases[segment.base][start : start + segment.length]
    for number, (block, segment, parts) in enumerate(schedule(file, iter(header.blocks[first:])), first):
        content = package[offsets[number] :][: block.length]
        if segment is not None:
            raw, at = next(raws)
            prefix = bases[raw.base][raw.base_offset :][: raw.dictionary] if raw.dictionary else b""
            made[at : at + raw.length] = zstd.decompress(content, raw.length, prefix=prefix)
            continue
        reader = BlockReader(header.tables, content)
        for part in parts:
            base = bases[part.segment.base] if part.segment.base >= 0 else b""
            piece = decode_part(reader, part, base, bytes(made))
            made[part.file_offset : part.file_offset + len(piece)] = piece
        reader.close()
    return bytes(made)


def decode_single(base: Path | None, package: Path) -> bytes:
    """Return what a package of a single file makes."""
    header = read_header(package)
    bases = [base.read_bytes()] if base and header.base_files else []
    return decode_file(header, package.read_bytes(), bases, header.files[0], 0)
