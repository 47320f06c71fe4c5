"""Read how the elements of a matrix changed, as real numbers, and how well each change is known.

An element type rounds: the change of a large float is only known to within its last bit, that of a small one
far better. Where both versions of a weight were rounded, the change that is seen is right on average, and its
variance is about ``min(ulp * |change|, ulp^2 / 6)``: a small change moves a weight by a whole ulp or, mostly,
not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from autoglm.patch import package
from autoglm.patch.package import Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Levels = NDArray[np.uint8]

# Values beyond this many mean magnitudes are cut off, so that single wild elements do not lead a fit astray.
_WILD = 64.0
# Elements that tell what is usual.
_FEW = 1 << 12
# Types whose rounding noise is the same for all elements, or nothing beside any change.
_EVEN = frozenset((Dtype.I8, Dtype.F32))
# Elements that are read at a time.
_CHUNK = 1 << 18
# The unit of a float's prediction is 2^-29 of its top exponent's, that of a code 2^-20: see the format.
_FLOAT_POINT, _CODE_POINT = 29, 20


@dataclass(frozen=True)
class Matrix:
    """A tensor of two dimensions in both versions.

    Attributes:
        dtype: I8 or a float type.
        rows, columns: its shape.
        top: the largest exponent field of the base; 0 for I8.
        read: returns the bytes of rows [first, past) of the base and of the new version.
        ratios: (rows,), old scale / new scale of each row of I8; None where the scales are the same.
    """

    dtype: Dtype
    rows: int
    columns: int
    top: int
    read: Callable[[int, int], tuple[bytes, bytes]]
    ratios: Doubles | None = None

    @property
    def unit(self) -> float:
        """The real value of the smallest prediction."""
        exponent_bits = package.float_fields(self.dtype)[0]
        if not exponent_bits:
            return 2.0**-_CODE_POINT
        return 2.0 ** (self.top - _bias(exponent_bits) - _FLOAT_POINT)


@dataclass(frozen=True)
class Observed:
    """Changes of some rows of a matrix, in units of their mean magnitude.

    Attributes:
        changes: (rows, columns).
        levels: (rows, columns), the place of each element's rounding noise in ``noise``; None where it is the
            same for all, ``noise[0]``.
        noise: variance of the rounding at each level.
    """

    changes: Floats
    levels: Levels | None
    noise: Doubles

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.changes.shape
        return rows, columns

    def rows(self, first: int, past: int) -> Observed:
        """Return some of the rows."""
        levels = None if self.levels is None else self.levels[first:past]
        return Observed(self.changes[first:past], levels, self.noise)

    def every(self, row: int, column: int) -> Observed:
        """Return each so many-th row and column."""
        import numpy as np

        changes = np.ascontiguousarray(self.changes[::row, ::column])
        levels = None if self.levels is None else np.ascontiguousarray(self.levels[::row, ::column])
        return Observed(changes, levels, self.noise)

    def weights(self, rest: float) -> Floats | None:
        """Return 1 / variance, where a model leaves a variance of ``rest``; None where it is even."""
        import numpy as np

        if self.levels is None:
            return None
        return np.take((1.0 / (rest + self.noise)).astype(np.float32), self.levels)


def observe(matrix: Matrix, bands: Sequence[tuple[int, int]], scale: float = 0.0) -> tuple[Observed, float]:
    """Return the changes in bands of rows, each [first, past), in units of ``scale``; and that.

    Where no scale is given, it is the mean magnitude of these changes, or 0 when there are none.
    """
    import numpy as np

    changes, levels = _changes(matrix, bands)
    scale = scale or _mean_size(changes)
    if scale:
        with np.errstate(over="ignore"):
            changes /= np.float32(scale)
        if max(float(changes.max()), -float(changes.min())) > _WILD:
            np.clip(changes, -_WILD, _WILD, out=changes)
    noise = _noise(matrix.dtype, scale or 1.0)
    return Observed(changes, levels, noise), scale


def _mean_size(changes: Floats) -> float:
    """Return the mean magnitude, of those that are not wild."""
    import numpy as np

    sizes = np.abs(changes)
    mean = float(sizes.mean(dtype=np.float64))
    if float(sizes.max()) > _WILD**2 * mean:
        some = np.sort(sizes.ravel()[:: max(1, sizes.size // _FEW)])
        usual = float(some[len(some) * 9 // 10])
        mean = float(np.minimum(sizes, np.float32(_WILD * usual)).mean(dtype=np.float64)) if usual else mean
    return float(np.float32(mean))


def _changes(matrix: Matrix, bands: Sequence[tuple[int, int]]) -> tuple[Floats, Levels | None]:
    """Return new - old of bands of rows, 0 where that is not a number, and the larger exponents."""
    import numpy as np

    rows = sum(past - first for first, past in bands)
    changes = np.empty((rows, matrix.columns), np.float32)
    levels = None if matrix.dtype in _EVEN else np.empty(changes.shape, np.uint8)
    step, at = max(1, _CHUNK // matrix.columns), 0
    for first, past in bands:
        for row in range(first, past, step):
            end = at + min(step, past - row)
            changes[at:end], exponents = _band(matrix, row, row + end - at)
            if levels is not None and exponents is not None:
                levels[at:end] = exponents
            at = end
    if not np.isfinite(changes.sum(dtype=np.float64)):
        np.nan_to_num(changes, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return changes, levels


def _band(matrix: Matrix, first: int, past: int) -> tuple[Floats, Levels | None]:
    import numpy as np

    kind = np.dtype(f"<u{matrix.dtype.size}")
    old, new = (
        np.frombuffer(content, kind).astype(kind.newbyteorder("="), copy=False).reshape(-1, matrix.columns)
        for content in matrix.read(first, past)
    )
    if matrix.dtype is Dtype.I8:
        before = old.view(np.int8).astype(np.float32)
        if matrix.ratios is not None:
            before *= matrix.ratios[first:past, None].astype(np.float32)
        return new.view(np.int8).astype(np.float32) - before, None
    with np.errstate(invalid="ignore", over="ignore"):
        changes = _reals(new, matrix.dtype) - _reals(old, matrix.dtype)
    if matrix.dtype in _EVEN:
        return changes, None
    return changes, np.maximum(_exponents(old, matrix.dtype), _exponents(new, matrix.dtype))


def _exponents(bits: Bits, dtype: Dtype) -> Levels:
    import numpy as np

    exponent_bits, mantissa_bits = package.float_fields(dtype)
    return (bits >> mantissa_bits).astype(np.uint8) & np.uint8((1 << exponent_bits) - 1)


def _reals(bits: Bits, dtype: Dtype) -> Floats:
    """Return the values that bit patterns of a float type stand for."""
    import numpy as np

    if dtype is Dtype.BF16:
        return np.left_shift(bits, np.uint32(16), dtype=np.uint32).view(np.float32)
    if dtype is Dtype.F16:
        return bits.view(np.float16).astype(np.float32)
    if dtype is Dtype.F32:
        return bits.view(np.float32)
    return np.take(_values_of_bytes(dtype), bits)


@cache
def _values_of_bytes(dtype: Dtype) -> Floats:
    """Return the values of the 256 patterns of an 8-bit float; those that are no numbers as if they were."""
    import numpy as np

    exponent_bits, mantissa_bits = package.float_fields(dtype)
    patterns = np.arange(256)
    exponents = patterns >> mantissa_bits & (1 << exponent_bits) - 1
    hidden = np.where(exponents > 0, 1 << mantissa_bits, 0)
    whole = (patterns & (1 << mantissa_bits) - 1) + hidden
    powers = np.maximum(exponents, 1) - _bias(exponent_bits) - mantissa_bits
    sizes = np.ldexp(whole.astype(np.float64), powers)
    return np.where(patterns < 128, sizes, -sizes).astype(np.float32)


def _noise(dtype: Dtype, scale: float) -> Doubles:
    """Return the variance of the rounding at each exponent of a weight, for a mean change of 1."""
    import numpy as np

    exponent_bits, mantissa_bits = package.float_fields(dtype)
    if exponent_bits:
        exponents = np.maximum(np.arange(1 << exponent_bits), 1)
        ulps = np.ldexp(1.0, exponents - _bias(exponent_bits) - mantissa_bits)
    else:
        ulps = np.array([1.0])
    ulps = ulps / scale if dtype is not Dtype.F32 else np.zeros(1)
    return np.minimum(np.minimum(ulps, ulps * ulps / 6), 1e30)


def _bias(exponent_bits: int) -> int:
    return (1 << exponent_bits - 1) - 1
