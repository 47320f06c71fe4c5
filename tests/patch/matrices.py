"""Matrices before and after a training, in memory, with the core's exact counts for the search of factors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autoglm.patch import core
from autoglm.patch.moved import ratios
from autoglm.patch.observed import Matrix
from autoglm.patch.package import (
    MAX_BLOCK_TOKENS,
    NUM_TOKENS,
    Curve,
    Dtype,
    Mode,
    Part,
    Plane,
    Scales,
    Segment,
    num_contexts,
)
from patch import tensors


@dataclass
class Moved:
    """A matrix in both versions: elements as stored, (rows, columns), and F16 scales of its rows, if any."""

    dtype: Dtype
    old: np.ndarray
    new: np.ndarray
    old_scales: np.ndarray | None = None
    new_scales: np.ndarray | None = None
    num_counts: int = 0
    most_read: int = field(default=0)

    @property
    def top(self) -> int:
        return core.top_exponent(self.dtype, self.old.tobytes())

    @property
    def matrix(self) -> Matrix:
        given = None
        if self.old_scales is not None and self.new_scales is not None:
            given = ratios(Dtype.F16, self.old_scales.tobytes(), self.new_scales.tobytes())
        return Matrix(self.dtype, *self.old.shape, self.top, self.read, given)

    def read(self, first: int, past: int) -> tuple[bytes, bytes]:
        self.most_read = max(self.most_read, (past - first) * self.old.shape[1])
        return self.old[first:past].tobytes(), self.new[first:past].tobytes()

    def count(self, curve: Curve | None, factors: core.Factors | None, first: int, past: int) -> np.ndarray:
        """Count the tokens of rows, coded with factors, or without a prediction where there are none."""
        self.num_counts += 1
        mode = Mode.PREDICTED if curve else Mode.DIFFERENCE
        scales = Scales(Dtype.F16, self.old.shape[1], 0, 0) if self.old_scales is not None else None
        if scales and not curve:
            mode = Mode.SCALED
        segment = Segment(mode, self.old.nbytes, 0, top=self.top, scales=scales, curve=curve)
        plane = Plane("", self.dtype, self.old.shape, (segment,))
        histogram = core.new_histogram(num_contexts(mode, self.dtype))
        step = max(1, MAX_BLOCK_TOKENS // plane.columns)
        for row in range(first, past, step):
            rows = slice(row, min(row + step, past))
            held = self.old[rows]
            part = Part(plane, segment, row * plane.columns, held.size, 0)
            old, new = (
                b"" if side is None else side[rows].tobytes() for side in (self.old_scales, self.new_scales)
            )
            given = core.Inputs(held.tobytes(), old, new, factors)
            core.count_tokens(part, given, self.new[rows].tobytes(), histogram)
        return np.array(histogram, np.int64).reshape(-1, NUM_TOKENS)


def floats(dtype: Dtype, old: np.ndarray, new: np.ndarray) -> Moved:
    """Store both versions of a matrix as a float type."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.size]
    return Moved(
        dtype, *(np.frombuffer(_stored(side, dtype), kind).reshape(side.shape) for side in (old, new))
    )


def _stored(values: np.ndarray, dtype: Dtype) -> bytes:
    if dtype.size > 1:
        return tensors.encode(values, dtype.name).content
    # the nearest of the 128 positive values of an 8-bit float, and the sign
    exponent_bits, mantissa_bits = (4, 3) if dtype is Dtype.F8_E4M3 else (5, 2)
    patterns = np.arange(120)
    exponents, mantissas = patterns >> mantissa_bits, patterns & (1 << mantissa_bits) - 1
    whole = mantissas + np.where(exponents > 0, 1 << mantissa_bits, 0)
    sizes = np.ldexp(
        whole.astype(np.float64), np.maximum(exponents, 1) - (1 << exponent_bits - 1) + 1 - mantissa_bits
    )
    nearest = np.searchsorted((sizes[1:] + sizes[:-1]) / 2, np.abs(values))
    return (nearest + 128 * (values < 0)).astype(np.uint8).tobytes()


def planted(rng: np.random.Generator, shape: tuple[int, int], rank: int, size: float) -> np.ndarray:
    """Return a product of rank ``rank`` whose numbers have this standard deviation."""
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return left @ right * (size / rank**0.5)
