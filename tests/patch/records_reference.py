"""A slow, plain reading of PAIRS and Records in docs/wpatch-format.md: decodes a block of one part.

It shares no code with the core, and counts the tokens of each context, so that the two can disagree on both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

FULL, DIFFERENCE, PAIRS = 2, 3, 6
Q4_0, Q8_0, Q4_K, Q5_K, Q6_K = 16, 17, 18, 19, 20
ONE = 1 << 20
ALPHABETS = {8: (32, 3), 16: (16, 2)}
REACH = (1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 3 << 16, 1 << 18, 3 << 17)


@dataclass
class Block:
    """The tokens of a block, each decoded with the table of its context."""

    frequencies: Sequence[Sequence[int]]
    tables: Sequence[int]
    data: bytes
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        numbers = [int.from_bytes(self.data[4 * i : 4 * i + 4], "little") for i in range(33)]
        self.states, end = numbers[:32], 132 + 2 * numbers[32]
        self.words = [int.from_bytes(self.data[i : i + 2], "little") for i in range(132, end, 2)][::-1]
        self.bits, self.num_bits = int.from_bytes(self.data[end:], "little"), 8 * (len(self.data) - end)

    def token(self, context: int) -> int:
        frequencies = self.frequencies[self.tables[0 if len(self.tables) == 1 else context]]
        x = self.states.pop(0)
        slot, token = x % 2048, 0
        while slot >= frequencies[token]:
            slot -= frequencies[token]
            token += 1
        x = frequencies[token] * (x >> 11) + slot
        self.states.append(x << 16 | self.words.pop() if x < 1 << 15 else x)
        self.counts[context, token] += 1
        return token

    def raw(self, count: int) -> int:
        value = self.bits % (1 << count)
        self.bits >>= count
        self.num_bits -= count
        return value

    def number(self, context: int, width: int = 8) -> int:
        direct, fine = ALPHABETS[width]
        token = self.token(context)
        if token < direct:
            return token
        octave, place = divmod(token - direct, 1 << fine)
        extra = direct.bit_length() - 1 + octave - fine
        return ((1 << fine) + place << extra) + self.raw(extra)

    def close(self) -> None:
        assert self.states == [1 << 15] * 32
        assert not self.words
        assert 0 <= self.num_bits < 8
        assert self.bits == 0


def unfold(z: int) -> int:
    return z // 2 if z % 2 == 0 else -(z + 1) // 2


def order(u: int) -> int:
    return u ^ 0x7FFF if u & 0x8000 else u


def expectation(t: int, least: int, low: int, high: int) -> tuple[int, int, bool]:
    """Return the prediction, the class and whether it is turned."""
    p = (t + (1 << 19)) >> 20
    rest = t - (p << 20)
    if p <= low or p >= high:
        return max(least, min(high, p)), 11, p <= low
    return p, sum(abs(rest) >= reach for reach in REACH), rest < 0


# ---- F16


def half(block: Block, mode: int, full_context: int, top: int, base: int) -> int:
    if mode == FULL:
        token = block.token(full_context)
        low, sign = block.raw(8), block.raw(1)
        exponent = block.raw(5) if token >= 60 else (top - token // 4) % 32
        return sign << 15 | exponent << 10 | token % 4 << 8 | low
    change = unfold(block.number(min(19, max(0, top - (base >> 10 & 31))), 16))
    return order((order(base) + (-change if base >> 15 else change)) % 65536)


@dataclass(frozen=True)
class Scale:
    """A number as integer * 2^exponent."""

    integer: int
    exponent: int

    @property
    def usable(self) -> bool:
        return self.integer != 0 and self.exponent < 31

    def times(self, factor: int) -> Scale:
        return Scale(self.integer * factor, self.exponent)


def scale_of(bits: int) -> Scale:
    exponent = bits >> 10 & 31
    mantissa = bits % 1024 + (1024 if exponent else 0)
    return Scale(-mantissa if bits >> 15 else mantissa, exponent or 1)


def quotient(a: Scale, b: Scale, limit: int) -> int:
    exact = Fraction(abs(a.integer), abs(b.integer)) * Fraction(2) ** (20 + a.exponent - b.exponent)
    rounded = min(limit, int(exact + Fraction(1, 2)))
    return -rounded if (a.integer < 0) != (b.integer < 0) else rounded


def ratio(old: Scale, new: Scale) -> int:
    return quotient(old, new, 1 << 23) if old.usable and new.usable else ONE


# ---- pairs

SCALES = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23)}


def pairs_ratio(kind: str, old: int, new: int) -> int:
    """Return r of a group in mode PAIRS from the bits of its scales, as mode SCALED has it."""
    exponents, mantissas = [], []
    x, m = SCALES[kind]
    for bits in (old, new):
        exponent = bits >> m & ((1 << x) - 1)
        mantissa = bits % (1 << m) + (1 << m if exponent else 0)
        if bits >> (x + m) or exponent == (1 << x) - 1 or mantissa == 0:
            return ONE
        exponents.append(exponent or 1)
        mantissas.append(mantissa)
    s = 20 + exponents[0] - exponents[1]
    if s < 0 or s > 38:
        return 0 if s < 0 else 1 << 23
    return min(1 << 23, ((mantissas[0] << s) + mantissas[1] // 2) // mantissas[1])


def pair(block: Block, first: int, base: int, steps: Sequence[tuple[int, int]], low_end: int) -> int:
    """Return the byte whose low and high code move by ``steps``, each a ratio and a shift."""
    codes = (base % 16, base // 16)
    if all(step == (ONE, 0) for step in steps):
        context, guesses = first + base, [(codes[0], 0, False), (codes[1], 0, False)]
    else:
        moved = [q * r + c for q, (r, c) in zip(codes, steps, strict=True)]
        guesses = [expectation(t, 0, low_end, 15) for t in moved]
        context = first + 256 + 12 * guesses[1][1] + guesses[0][1]
    token = block.token(context)
    if token == 49:
        return block.raw(8)
    assert token < 49
    out = 0
    for place, (difference, guess) in enumerate(zip((token % 7 - 3, token // 7 - 3), guesses, strict=True)):
        out |= (guess[0] + (-difference if guess[2] else difference)) % 16 << 4 * place
    return out


def decode_pairs(block: Block, base: bytes, ratio_of: Callable[[int], int]) -> bytes:
    """Decode a part in mode PAIRS; ``ratio_of`` says r of the byte at a place."""
    out = bytearray()
    for i, b in enumerate(base):
        r = ratio_of(i)
        out.append(pair(block, 0, b, [(r, 8 * (ONE - r))] * 2, 1))
    return bytes(out)


# ---- records


@dataclass
class Record:
    """A record's numbers; absent ones are empty."""

    d: int
    dmin: int
    scales: list[int]
    minima: list[int]
    codes: list[int]


BITS = {Q4_0: 4, Q8_0: 8, Q4_K: 4, Q5_K: 5, Q6_K: 6}
SIZES = {Q4_0: 18, Q8_0: 34, Q4_K: 144, Q5_K: 176, Q6_K: 210}
GROUPS = {Q4_0: 1, Q8_0: 1, Q4_K: 8, Q5_K: 8, Q6_K: 16}
ZERO = {Q4_0: 8, Q8_0: 0, Q6_K: 32}
NEAR = {Q8_0: 100, Q5_K: 12, Q6_K: 24}
STRONGEST = {Q8_0: 11, Q5_K: 13, Q6_K: 18}


def code_place(dtype: int, i: int) -> tuple[int, int]:
    """Return byte and shift of the low four bits (all bits in Q8_0) of code ``i``."""
    if dtype == Q8_0:
        return 2 + i, 0
    if dtype == Q4_0:
        return 2 + i % 16, 4 * (i // 16)
    if dtype == Q6_K:
        half, (a, b) = i // 128, divmod(i % 128, 32)
        return 64 * half + 32 * (a % 2) + b, 4 * (a // 2)
    run, rest = divmod(i, 64)
    return (16 if dtype == Q4_K else 48) + 32 * run + rest % 32, 4 * (rest // 32)


def high_place(dtype: int, i: int) -> tuple[int, int, int] | None:
    """Return byte, shift and width of a code's bits above the low four."""
    if dtype == Q5_K:
        return 16 + i % 32, i // 32, 1
    if dtype == Q6_K:
        half, (a, b) = i // 128, divmod(i % 128, 32)
        return 128 + 32 * half + b, 2 * a, 2
    return None


def six_bits(dtype: int, g: int, minimum: bool) -> list[tuple[int, int, int]]:
    """Return where a scale or minimum of Q4_K and Q5_K lies: byte, shift and width, the lowest bits first."""
    if g < 4:
        return [(4 + g + (4 if minimum else 0), 0, 6)]
    return [(4 + g + 4, 4 if minimum else 0, 4), (4 + (g if minimum else g - 4), 6, 2)]


def number_places(dtype: int) -> tuple[list, list, list]:
    """Return the places of scales, minima and codes: lists of (byte, shift, width) for each number."""
    scales: list = []
    minima: list = []
    if dtype in (Q4_K, Q5_K):
        scales = [six_bits(dtype, g, False) for g in range(8)]
        minima = [six_bits(dtype, g, True) for g in range(8)]
    if dtype == Q6_K:
        scales = [[(192 + g, 0, 8)] for g in range(16)]
    codes = []
    for i in range(32 if dtype in (Q4_0, Q8_0) else 256):
        high = high_place(dtype, i)
        codes.append([(*code_place(dtype, i), 8 if dtype == Q8_0 else 4), *([high] if high else [])])
    return scales, minima, codes


def take(record: Sequence[int], places: list) -> int:
    value = shift = 0
    for byte, at, width in places:
        value |= (record[byte] >> at) % (1 << width) << shift
        shift += width
    return value


def put(record: bytearray, places: list, value: int) -> None:
    for byte, at, width in places:
        record[byte] |= value % (1 << width) << at
        value >>= width


def half_places(dtype: int) -> tuple[int, int | None]:
    return (208 if dtype == Q6_K else 0), (2 if dtype in (Q4_K, Q5_K) else None)


def parse(dtype: int, data: bytes) -> Record:
    d_at, dmin_at = half_places(dtype)
    numbers = [[take(data, places) for places in kind] for kind in number_places(dtype)]
    dmin = 0 if dmin_at is None else int.from_bytes(data[dmin_at : dmin_at + 2], "little")
    return Record(int.from_bytes(data[d_at : d_at + 2], "little"), dmin, *numbers)


def build(dtype: int, record: Record) -> bytes:
    out = bytearray(SIZES[dtype])
    d_at, dmin_at = half_places(dtype)
    out[d_at : d_at + 2] = record.d.to_bytes(2, "little")
    if dmin_at is not None:
        out[dmin_at : dmin_at + 2] = record.dmin.to_bytes(2, "little")
    kinds = zip(number_places(dtype), (record.scales, record.minima, record.codes), strict=True)
    for all_places, values in kinds:
        for places, value in zip(all_places, values, strict=True):
            put(out, places, value)
    return bytes(out)


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def full_number(block: Block, context: int, bits: int) -> int:
    middle = 0 if bits == 8 else 1 << (bits - 1)
    return (middle + unfold(block.number(context))) % (1 << bits)


def moved_number(block: Block, context: int, guess: tuple[int, int, bool], bits: int) -> int:
    change = unfold(block.number(context))
    return (guess[0] + (-change if guess[2] else change)) % (1 << bits)


def group_scale(dtype: int, record: Record, g: int) -> Scale:
    if not record.scales:
        return scale_of(record.d)
    return scale_of(record.d).times(signed(record.scales[g], 8) if dtype == Q6_K else record.scales[g])


def code_step(dtype: int, old: Record, new: Record, g: int) -> tuple[int, int]:
    before, after = group_scale(dtype, old, g), group_scale(dtype, new, g)
    minima = [scale_of(r.dmin).times(r.minima[g]) for r in (old, new)] if old.minima else []
    if not (before.usable and after.usable) or any(m.exponent == 31 for m in minima):
        return ONE, 0
    r = quotient(before, after, 1 << 23)
    if not minima:
        return r, ZERO[dtype] * (ONE - r)
    return r, quotient(minima[1], after, 1 << 28) - quotient(minima[0], after, 1 << 28)


def strength(dtype: int, record: Record, g: int, top: int) -> int:
    scale = group_scale(dtype, record, g)
    size = abs(scale.integer)
    if size == 0:
        return 11
    n = size.bit_length()
    second = size >> (n - 2) & 1 if n > 1 else 0
    level = 2 * (scale.exponent + n) + second
    return min(11, max(0, 2 * (max(1, top) + STRONGEST[dtype]) + 1 - level))


def moved_code(block: Block, dtype: int, base: int, step: tuple[int, int], strong: int) -> int:
    bits = BITS[dtype]
    low, high = (-127, 127) if dtype == Q8_0 else (0, (1 << bits) - 1)
    u = signed(base, 8) if dtype == Q8_0 else base
    guess = expectation(u * step[0] + step[1], low, low, high)
    off = 2 * u - low - high
    side = 0 if abs(off) < NEAR[dtype] else 1 if (off < 0) != guess[2] else 2
    return moved_number(block, 44 + (guess[1] * 3 + side) * 12 + strong, guess, bits)


class Batch:
    """Up to 64 records, whose columns are decoded one after the other."""

    def __init__(self, block: Block, mode: int, dtype: int, top: int, old: list[Record]) -> None:
        self.block, self.mode, self.dtype, self.top, self.old = block, mode, dtype, top, old
        self.new = [Record(0, 0, [], [], []) for _ in old]
        self.pairs = list(zip(old, self.new, strict=True))

    def decode(self) -> list[Record]:
        for old, new in self.pairs:
            new.d = half(self.block, self.mode, 0, self.top, old.d)
        if half_places(self.dtype)[1] is not None:
            for old, new in self.pairs:
                new.dmin = half(self.block, self.mode, 1, self.top, old.dmin)
        for old, new in self.pairs:
            new.scales = self.numbers(2, 20, old.scales, scale_of(old.d), scale_of(new.d))
        for old, new in self.pairs:
            new.minima = self.numbers(3, 32, old.minima, scale_of(old.dmin), scale_of(new.dmin))
        for old, new in self.pairs:
            new.codes = self.codes(old, new)
        return self.new

    def numbers(
        self, full_context: int, first: int, old: list[int], before: Scale, after: Scale
    ) -> list[int]:
        bits = 8 if self.dtype == Q6_K else 6
        if self.mode == FULL:
            return [full_number(self.block, full_context, bits) for _ in old]
        out = []
        for u in old:
            t = (signed(u, 8) if bits == 8 else u) * ratio(before, after)
            guess = expectation(t, *((-128, -128, 127) if bits == 8 else (0, 0, 63)))
            out.append(moved_number(self.block, first + guess[1], guess, bits))
        return out

    def codes(self, old: Record, new: Record) -> list[int]:
        dtype, count = self.dtype, len(old.codes)
        if self.mode == FULL:
            return [full_number(self.block, 4, BITS[dtype]) for _ in old.codes]
        steps = [code_step(dtype, old, new, g) for g in range(GROUPS[dtype])]
        size = count // GROUPS[dtype]
        if dtype not in (Q4_0, Q4_K):
            strong = [strength(dtype, old, g, self.top) for g in range(GROUPS[dtype])]
            codes = enumerate(old.codes)
            return [moved_code(self.block, dtype, u, steps[i // size], strong[i // size]) for i, u in codes]
        out, run = [0] * count, 16 if dtype == Q4_0 else 32
        for i in range(count // 2):
            low = 2 * run * (i // run) + i % run
            high = low + run
            step = steps[low // size], steps[high // size]
            byte = pair(self.block, 44, old.codes[low] | old.codes[high] << 4, step, 0)
            out[low], out[high] = byte % 16, byte // 16
        return out


def decode_records(block: Block, mode: int, dtype: int, top: int, base: bytes) -> bytes:
    """Decode a part of records as many as ``base`` holds, which only mode DIFFERENCE looks at."""
    size = SIZES[dtype]
    old = [parse(dtype, base[i : i + size]) for i in range(0, len(base), size)]
    out = b""
    for i in range(0, len(old), 64):
        new = Batch(block, mode, dtype, top, old[i : i + 64]).decode()
        out += b"".join(build(dtype, record) for record in new)
    return out
