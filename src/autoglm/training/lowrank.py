"""The low-rank prediction of the patch format, in numpy: how integer factors move a matrix of INT8 codes.

This is the arithmetic of the mode PREDICTED in ``docs/wpatch-format.md``, to the last bit, so that a release
whose codes were made by :func:`predict` costs a patch its factors and nothing else.

    >>> curve = linear_curve(0.5, largest=4)
    >>> p, q = np.array([[2], [0]], np.int16), np.array([[1, -2, 0]], np.int16)
    >>> predict(np.array([[10, 10, 10], [7, 7, 7]], np.int8), unit_ratios(2), Prediction(p, q, curve))
    array([[11,  8, 10],
           [ 7,  7,  7]], dtype=int8)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoglm.errors import ConfigError

MAX_FACTOR, MAX_RANK = 2047, 64
FRACTION_BITS = 20  # of a scale ratio and of a prediction
LARGEST_CODE = 127
_MAX_RATIO = 1 << 23
_MAX_DROP, _MAX_LIMIT, _MAX_SLOPE, _MAX_SHIFT = 31, 32_767, 65_535, 31
_ROWS_ELEMENTS = 1 << 22  # elements worked on at a time

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """How a product of factors becomes a change, in units of 2^-20 codes.

    ``t = min(|product| >> drop, limit)``, change ``= t * (slope - (t * bend >> 15)) << shift`` with the
    product's sign.
    """

    drop: int
    limit: int
    slope: int
    bend: int
    shift: int


@dataclass(frozen=True)
class Prediction:
    """Integer factors of one matrix.

    Attributes:
        p: (rows, rank) int16, each number in -2047..2047.
        q: (rank, columns) int16, the same.
        curve: what their product means.
    """

    p: NDArray[np.int16]
    q: NDArray[np.int16]
    curve: Curve


def linear_curve(step: float, *, largest: int) -> Curve:
    """Return the curve that multiplies products by ``step``, as exactly as the format can.

    Args:
        step: codes that a product of 1 stands for.
        largest: largest product that occurs, in absolute value.

    Raises:
        ConfigError: such a step is out of the format's range.
    """
    drop = max(0, int(largest).bit_length() - _MAX_LIMIT.bit_length())
    slope = step * 2.0 ** (FRACTION_BITS + drop)
    if not 0 < slope < math.inf:
        raise ConfigError(f"no curve has the step {step}")
    shift = math.frexp(slope)[1] - _MAX_SLOPE.bit_length()
    rounded = round(math.ldexp(slope, -shift))
    if rounded > _MAX_SLOPE:  # rounded up to the next power of two
        rounded, shift = rounded >> 1, shift + 1
    if drop > _MAX_DROP or abs(shift) > _MAX_SHIFT:
        raise ConfigError(f"a step of {step} codes with products to {largest} is out of the format's range")
    return Curve(drop, _MAX_LIMIT, rounded, 0, shift)


def unit_ratios(rows: int) -> Ints:
    """Return the ratios of scales that were kept."""
    return np.full(rows, 1 << FRACTION_BITS, np.int64)


def scale_ratios(old: NDArray[np.float16], new: NDArray[np.float16]) -> Ints:
    """Return ``old / new`` with 20 fraction bits, a row each, rounded as the format says.

    Args:
        old: (rows,) scales of the base.
        new: (rows,) scales of the release.
    """
    (old_mantissa, old_exponent), (new_mantissa, new_exponent) = _parts(old), _parts(new)
    shift = FRACTION_BITS + old_exponent - new_exponent
    wide = old_mantissa << shift.clip(0, 38)
    ratio = (wide + new_mantissa // 2) // np.maximum(new_mantissa, 1)
    ratio = np.where(shift < 0, 0, np.where(shift > 38, _MAX_RATIO, np.minimum(ratio, _MAX_RATIO)))
    usable = (old_mantissa > 0) & (new_mantissa > 0)
    return np.where(usable, ratio, 1 << FRACTION_BITS)


def _parts(scales: NDArray[np.float16]) -> tuple[Ints, Ints]:
    """Return mantissa and exponent of positive finite float16; mantissa 0 for all others."""
    bits = np.ascontiguousarray(scales).view(np.uint16).astype(np.int64)
    field, fraction = bits >> 10, bits & 1023  # a field from 31 on: infinite, not a number, or negative
    mantissa = np.where(field >= 31, 0, np.where(field == 0, fraction, fraction + 1024))
    return mantissa, np.maximum(field, 1) - 25


def predict(codes: NDArray[np.int8], ratios: Ints, prediction: Prediction) -> NDArray[np.int8]:
    """Return the codes that the factors predict from a base's.

    Args:
        codes: (rows, columns) of the base.
        ratios: (rows,) as from :func:`scale_ratios`.
        prediction: factors and curve.
    """
    made = np.empty_like(codes)
    for rows in row_ranges(*codes.shape):
        moved = codes[rows].astype(np.int64) * ratios[rows, None] + changes(prediction, rows)
        half = 1 << (FRACTION_BITS - 1)
        made[rows] = (_wrap(moved + half) >> FRACTION_BITS).clip(-LARGEST_CODE, LARGEST_CODE)
    return made


def changes(prediction: Prediction, rows: slice = slice(None)) -> Ints:
    """Return what the factors add to these rows, in units of 2^-20 codes, as 32-bit two's complement."""
    curve = prediction.curve
    # Doubles hold every product exactly: 64 * 2047^2 < 2^53; and BLAS multiplies them fast.
    product = (prediction.p[rows].astype(np.float64) @ prediction.q.astype(np.float64)).astype(np.int64)
    t = np.minimum(np.abs(product) >> curve.drop, curve.limit)
    v = t * (curve.slope - ((t * curve.bend) >> 15))
    v = _wrap(v << curve.shift) if curve.shift >= 0 else v >> -curve.shift
    return _wrap(np.where(product < 0, -v, v))


def row_ranges(rows: int, columns: int) -> Iterator[slice]:
    """Cut a matrix into runs of rows that bound the memory of what is worked out of them."""
    step = max(1, _ROWS_ELEMENTS // max(1, columns))
    return (slice(first, first + step) for first in range(0, rows, step))


def _wrap(values: Ints) -> Ints:
    """Return 64-bit numbers modulo 2^32, as signed ones."""
    return ((values + (1 << 31)) & 0xFFFF_FFFF) - (1 << 31)
