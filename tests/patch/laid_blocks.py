"""Blocks of every mode and element type, laid out as files for programs that have only the C core."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoglm.patch import core
from autoglm.patch.package import (
    FLOAT_DTYPES,
    Curve,
    Dtype,
    Mode,
    Part,
    Plane,
    Scales,
    Segment,
    allowed,
    is_inline,
    num_contexts,
)
from autoglm.patch.tables import pool

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "apply_block"))

from lay_out import LaidPart, block_bytes, lay_out  # noqa: E402  # an example, not a package

__all__ = ["KINDS", "Laid", "lay_out", "write_every_kind"]

KINDS = [(mode, dtype) for mode in Mode if mode.coded for dtype in Dtype if allowed(mode, dtype)]
_TALL = (1030, 520)  # its factors do not fit in a block with its elements


@dataclass(frozen=True)
class Laid:
    """A base, what was made of it, and the blocks that do so."""

    base: Path
    new: Path
    blocks: list[Path]


@dataclass
class _Files:
    """Base and new file, which grow by planes and scales."""

    rng: np.random.Generator
    base: bytearray
    new: bytearray

    def append(self, old: bytes, new: bytes) -> int:
        """Add bytes to both files; return where."""
        at = len(self.base)
        self.base += old
        self.new += new
        return at

    def elements(self, dtype: Dtype, count: int) -> int:
        """Add elements and what became of them: mostly small changes, some large ones."""
        size = count * dtype.size
        old = bytearray(self.rng.bytes(size))
        if dtype in (Dtype.BF16, Dtype.F16, Dtype.F32):
            # exponents as of weights, all other values now and then
            top = np.frombuffer(old, np.uint8).reshape(-1, dtype.size).copy()
            usual = self.rng.random(count) < 0.95
            top[usual, -1] = 0x3C | (top[usual, -1] & 0x81)
            old = bytearray(top.tobytes())
        new = np.frombuffer(old, np.uint8).copy()
        changed = self.rng.random(size) < 0.02
        new[changed] ^= self.rng.integers(0, 256, int(changed.sum()), np.uint8)
        new[:: dtype.size] += (self.rng.random(count) < 0.5).astype(np.uint8)
        return self.append(bytes(old), new.tobytes())

    def scales(self, dtype: Dtype, count: int) -> int:
        """Add scales of which some are kept, most move a little, and some are not even positive."""
        old = (self.rng.random(count) * 0.01 + 0.001).astype(np.float32)
        new = old * np.where(self.rng.random(count) < 0.3, 1, 1 + self.rng.normal(0, 0.05, count))
        old[:: max(7, count)] = -1
        return self.append(_stored(old, dtype), _stored(new.astype(np.float32), dtype))


def _stored(values: np.ndarray, dtype: Dtype) -> bytes:
    if dtype is Dtype.F16:
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")
    return (bits if dtype is Dtype.F32 else (bits >> 16).astype("<u2")).tobytes()


def _curve(rng: np.random.Generator, rank: int) -> Curve:
    slope = int(rng.integers(-3000, 3000))
    return Curve(
        rank,
        drop=4,
        limit=30_000,
        classes=9000,
        slope=slope,
        bend=slope // 3,
        shift=int(rng.integers(-9, 6)),
    )


def _factors(rng: np.random.Generator, plane: Plane, curve: Curve) -> core.Factors:
    factors = core.new_factors(plane.rows, plane.columns, curve.rank)
    left = np.frombuffer(factors.left, np.int16).reshape(plane.rows, -1)
    right = np.frombuffer(factors.right, np.int16).reshape(-1, plane.columns, 2)
    for k in range(curve.rank):
        left[:, k] = rng.integers(-2047, 2048, plane.rows)
        right[k // 2, :, k % 2] = rng.integers(-60, 61, plane.columns)
    return factors


def _part(files: _Files, mode: Mode, dtype: Dtype, shape: tuple[int, int], window: tuple[int, int]) -> Part:
    """Add a plane to the files; return a window (start, count) of it, with a table still to be chosen."""
    rows, columns = shape
    at = files.elements(dtype, rows * columns)
    scales, curve = None, None
    if mode in (Mode.SCALED, Mode.PAIRS) or (mode, dtype) == (Mode.PREDICTED, Dtype.I8):
        kind = (Dtype.F16, Dtype.BF16, Dtype.F32)[int(files.rng.integers(3))]
        group = 20 if mode is Mode.PAIRS else columns
        place = files.scales(kind, rows * columns // group)
        scales = Scales(kind, group, place, place)
    if mode is Mode.PREDICTED:
        curve = _curve(files.rng, rank=3)
    start, count = window
    content = bytes((files.new if mode is Mode.FULL else files.base)[at:][: rows * columns * dtype.size])
    segment = Segment(mode, rows * columns * dtype.size, 0, at, scales=scales, curve=curve, tables=b"")
    if dtype in FLOAT_DTYPES or dtype.is_record:
        segment = replace(segment, top=core.top_exponent(dtype, content))
    plane = Plane(f"{mode.name} {dtype.name}", dtype, shape, (segment,))
    return Part(plane, segment, start, count, at + start * dtype.size)


def _inputs(files: _Files, part: Part, factors: core.Factors | None) -> core.Inputs:
    segment, size = part.segment, part.plane.dtype.size
    base = b"" if segment.mode is Mode.FULL else bytes(files.base[part.file_offset :][: part.size])
    if segment.scales is None:
        return core.Inputs(base, factors=factors)
    first, past = part.groups
    cut = slice(segment.scales.old + first * segment.scales.dtype.size, None)
    width = (past - first) * segment.scales.dtype.size
    assert size == 1
    return core.Inputs(base, bytes(files.base[cut][:width]), bytes(files.new[cut][:width]), factors)


def _laid(files: _Files, part: Part, *, single: bool) -> bytes:
    """Count, choose tables, encode; return the block file's content."""
    segment, plane = part.segment, part.plane
    elements = bytes(files.new[part.file_offset :][: part.size])
    factors = _factors(files.rng, plane, segment.curve) if segment.curve else None
    inputs = _inputs(files, part, factors)
    contexts = num_contexts(segment.mode, plane.dtype)
    histogram = core.new_histogram(contexts)
    core.count_tokens(_with_maps(part, b"\0", b"\0"), inputs, elements, histogram)
    counts = [np.array(histogram, np.int64).reshape(contexts, 64)]
    if factors:
        counts.append(np.array(core.count_factors(factors), np.int64).reshape(64, 64))
    if single:
        counts = [count.sum(axis=0, keepdims=True) for count in counts]
    found = pool(counts)
    part = _with_maps(part, *found.maps)
    block = core.encode_block(found.tables, [part], [inputs], [elements])
    apart = factors and not is_inline(plane, segment)
    factor_block = core.encode_factors(found.tables, found.maps[1], factors) if factors and apart else b""
    return block_bytes(found.tables, [LaidPart(part, factor_block)], block)


def _with_maps(part: Part, tables: bytes, factor_tables: bytes = b"") -> Part:
    segment = replace(part.segment, tables=tables, factor_tables=factor_tables if part.segment.curve else b"")
    return replace(part, segment=segment, plane=replace(part.plane, segments=(segment,)))


def write_every_kind(directory: Path, seed: int = 5) -> Laid:
    """Write a base, a new file and two blocks of every mode and element type, one of a single table."""
    files = _Files(np.random.default_rng(seed), bytearray(), bytearray())
    blocks: list[Path] = []
    add: Callable[..., None] = lambda *given, single: blocks.append(  # noqa: E731
        _written(directory / f"{len(blocks):04}.block", files, _part(files, *given), single)
    )
    for mode, dtype in KINDS:
        shape = (9, 10) if dtype.is_record else (60, 80)
        count = shape[0] * shape[1]
        for single in (False, True):
            start = 0 if mode is Mode.PREDICTED else 13
            add(mode, dtype, shape, (start, count - start), single=single)
    for dtype in (Dtype.BF16, Dtype.I8):
        add(Mode.PREDICTED, dtype, _TALL, (100_111, 5000), single=False)
    base, new = directory / "base", directory / "expected"
    base.write_bytes(files.base)
    new.write_bytes(files.new)
    return Laid(base, new, blocks)


def _written(path: Path, files: _Files, part: Part, single: bool) -> Path:
    path.write_bytes(_laid(files, part, single=single))
    return path
