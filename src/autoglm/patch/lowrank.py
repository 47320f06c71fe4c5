"""Find integer factors that predict how a matrix moved, where they make the patch smaller.

Training moves matrices in few directions, so a product of two thin matrices predicts much of a change. The
search here chooses the rank, the curve and the step of the integers by the exact cost of coding the rest: a
``count`` that the caller passes in codes rows with a trial's factors. Large matrices are searched on bands of
rows; what is found is then settled, and counted, on all of them.

Factors are only a prediction: with any of them the package is right, at worst too large. ::

    found = find(matrix, count, best_bits=bits_without_prediction)
    if found:
        ...  # code with found.curve and found.factors
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from autoglm.patch import core
from autoglm.patch.costs import FIXED_BITS, count_factors, factor_bits, packed, residual_bits
from autoglm.patch.factors import Fit, refined, settled, start
from autoglm.patch.observed import Matrix, observe
from autoglm.patch.package import MAX_FACTOR_RANK, MAX_FACTORS, Curve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int16]

# Counts the tokens of rows [first, past) when they are coded with these factors: (contexts, 64).
Counter = Callable[[Curve, core.Factors, int, int], "Counts"]
Bands = list[tuple[int, int]]

# The search looks at bands of so many rows, of about so many elements in all, and at least at so many rows.
# What it chose is then refined on far more elements.
_BAND = 16
_SAMPLE, _MIN_ROWS, _WIDE = 1 << 20, 512, 12 << 20
# Elements of the blocks in which all rows are settled, and steps for each.
_BLOCK, _SETTLE_ROUNDS = 1 << 20, 2
# The first look, which refuses what has no structure: rows, columns, directions, how far they must stand out.
_LOOK_ROWS, _LOOK_COLUMNS, _LOOK_RANK, _STANDS_OUT = 256, 256, 8, 1.15
# Elements of a matrix that is looked at as a whole; the shortest side that is worth it.
_FEW, _MIN_SIDE = 1 << 17, 4
_RANKS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Most rounds of refinement, and the share of the cost that one must go below to be followed by another.
_MAX_ROUNDS, _HELPS = 5, 0.99
# How many lower ranks in a row may be worse before no lower one is tried.
_PATIENCE = 2
_MAX_OCTAVES = 8
# Below this variance of what is left, in squares of the mean change, a model is nearly exact: an adapter.
_EXACT = 0.01
# The eight classes of a prediction's size are a third of its root mean square wide.
_CLASSES = 3.0
_MAX_FACTOR, _MAX_PLACE, _MAX_SLOPES, _MAX_SHIFT = 2047, 32767, 65535, 31
# Rows outside the sample may be larger than those in it.
_HEADROOM = 0.8


@dataclass(frozen=True)
class Found:
    """A prediction that pays.

    Attributes:
        curve, factors: what to code with.
        counts: (contexts, 64), of all elements.
        factor_counts: (64, 64), of the factors.
        bits: what all of it costs, roughly.
    """

    curve: Curve
    factors: core.Factors
    counts: Counts
    factor_counts: Counts
    bits: float


def find(matrix: Matrix, count: Counter, *, best_bits: float) -> Found | None:
    """Return the factors that save most, or None where coding costs ``best_bits`` or more with any."""
    sides = matrix.rows + matrix.columns
    if min(matrix.rows, matrix.columns) < _MIN_SIDE or matrix.columns > _WIDE // _BAND:
        return None
    if best_bits < 2 * FIXED_BITS or sides > MAX_FACTORS:
        return None
    search = _Search(matrix, count, best_bits)
    return search.run() if search.may_pay() else None


def from_hint(
    matrix: Matrix, count: Counter, curve: Curve, left: Numbers, right: Numbers, *, best_bits: float
) -> Found | None:
    """Return given factors, (rows, rank) and (rank, columns), where coding with them beats ``best_bits``.

    Raises:
        ValueError: their shapes, or their numbers, do not fit the matrix or the format.
    """
    import numpy as np

    fitting = ((matrix.rows, curve.rank), (curve.rank, matrix.columns))
    if (left.shape, right.shape) != fitting or not 1 <= curve.rank <= MAX_FACTOR_RANK:
        raise ValueError(
            f"factors of {left.shape} and {right.shape}, where {fitting[0]} and {fitting[1]} fit"
        )
    if max(int(np.abs(side.astype(np.int64)).max()) for side in (left, right)) > _MAX_FACTOR:
        raise ValueError(f"factors beyond {_MAX_FACTOR}")
    if (matrix.rows + matrix.columns) * curve.rank > MAX_FACTORS:
        return None
    found = _counted(matrix, count, curve, packed(left, right.T))
    return found if found.bits < best_bits else None


def _counted(matrix: Matrix, count: Counter, curve: Curve, factors: core.Factors) -> Found:
    """Count all rows."""
    counts, factor_counts = count(curve, factors, 0, matrix.rows), count_factors(factors)
    bits = residual_bits(counts, matrix.dtype) + factor_bits(factor_counts) + FIXED_BITS
    return Found(curve, factors, counts, factor_counts, bits)


def _bands(rows: int, wanted: int, size: int) -> Bands:
    """Return bands of ``size`` rows, evenly spread, that have about so many rows in all."""
    if wanted >= rows:
        return [(0, rows)]
    number = max(1, wanted // size)
    return [(at, at + size) for at in ((rows - size) * i // max(1, number - 1) for i in range(number))]


def _worth_a_search(begin: Fit, matrix: Matrix) -> bool:
    """Tell whether any directions stand out of the noise by so much that a prediction may pay."""
    import numpy as np

    rows, columns = len(begin.left), len(begin.right)
    squares = np.square(begin.lengths)
    noise = max(begin.total - float(squares.sum()), 1e-9 * begin.total) / (rows * columns)
    # noise alone has hardly a singular value above its deviation * (sqrt(rows) + sqrt(columns))
    seen = squares[squares > _STANDS_OUT * noise * (math.sqrt(rows) + math.sqrt(columns)) ** 2]
    gain = float((seen / noise - rows - columns).sum()) / (2 * math.log(2))
    gain *= matrix.rows * matrix.columns / (rows * columns)
    return gain > len(seen) * (matrix.rows + matrix.columns) + FIXED_BITS


@dataclass(frozen=True)
class _Trial:
    """A fit in whole steps, and what coding everything with it would cost.

    Attributes:
        bits: the cost.
        fit: of the sampled rows.
        step: of the integers.
        coarser: how much larger than where theory puts it.
        tilt: (rank,), what columns of the left factor were multiplied with, and of the right one divided by.
        curve: in integers.
        right: the right factor in integers.
    """

    bits: float
    fit: Fit
    step: float
    coarser: float
    tilt: Floats
    curve: Curve
    right: Numbers


class _Search:
    """The search for one matrix."""

    def __init__(self, matrix: Matrix, count: Counter, best_bits: float) -> None:
        self.matrix, self.count, self.best_bits = matrix, count, best_bits
        self.bands = _bands(matrix.rows, max(_BAND, _SAMPLE // matrix.columns), 2)
        if len(self.bands) > 1:  # too many for a first look
            self.bands = _bands(matrix.rows, max(_BAND, min(_LOOK_ROWS, _SAMPLE // matrix.columns)), 2)
        self.observed, self.scale = observe(matrix, self.bands)
        self.begin: Fit | None = None

    def may_pay(self) -> bool:
        """Take a first look, which refuses what has no structure."""
        rows, columns = self.observed.shape
        if not self.scale:
            return False
        if len(self.bands) == 1 and rows * columns <= _FEW:
            self.begin = start(self.observed, self._ranks()[-1])
            return _worth_a_search(self.begin.cut(_LOOK_RANK), self.matrix)
        look = self.observed.every(max(1, rows // _LOOK_ROWS), max(1, columns // _LOOK_COLUMNS))
        return _worth_a_search(start(look, min(_LOOK_RANK, *look.shape)), self.matrix)

    def _look_at(self, wanted: int) -> None:
        """Observe about so many rows."""
        self.bands = _bands(self.matrix.rows, max(_BAND, wanted), _BAND)
        self.share = sum(past - first for first, past in self.bands) / self.matrix.rows
        if self.observed.shape[0] != self.matrix.rows:
            self.begin = None
            self.observed, _ = observe(self.matrix, self.bands, self.scale)

    def run(self) -> Found | None:
        """Choose rank, curve and step on the sample; settle and count everything with them."""
        rows = max(_MIN_ROWS, _SAMPLE // self.matrix.columns)
        self._look_at(min(rows, _WIDE // self.matrix.columns))
        best = self._best_step(self._polished(self._best_rank()))
        if best.bits >= self.best_bits:
            return None
        found = self._settled(self._widened(best) if len(self.bands) > 1 else best)
        return found if found.bits < self.best_bits else None

    def _polished(self, best: _Trial) -> _Trial:
        """Refine the fit while that helps; an adapter's changes are found to the last bit this way."""
        for _ in range(_MAX_ROUNDS):
            before, trial = best.bits, self._trial(refined(self.observed, best.fit, 1))
            best = min(best, trial, key=lambda trial: trial.bits)
            if trial.bits > _HELPS * before:
                break
        return best

    def _best_rank(self) -> _Trial:
        """Fit at the rank above a guess; then cut the fit down, or fit at higher ranks, while that helps."""
        ranks = self._ranks()
        begin = self.begin or start(self.observed, ranks[-1])
        place = top = min(self._guess(begin, ranks) + 1, len(ranks) - 1)
        fit = refined(self.observed, begin.cut(ranks[top]), 1)
        best = self._trial(fit)
        for lower in range(top - 1, -1, -1):
            trial = self._trial(fit.cut(ranks[lower]))
            if trial.bits < best.bits:
                best, place = trial, lower
            elif place - lower >= _PATIENCE:
                break
        while place == top < len(ranks) - 1:
            top += 1
            trial = self._trial(refined(self.observed, begin.cut(ranks[top]), 1))
            if trial.bits < best.bits:
                best, place = trial, top
        return best

    def _ranks(self) -> list[int]:
        limit = min(MAX_FACTOR_RANK, MAX_FACTORS // (self.matrix.rows + self.matrix.columns))
        limit = min(limit, *self.observed.shape)
        return [rank for rank in _RANKS if rank <= limit] or [limit]

    def _guess(self, begin: Fit, ranks: list[int]) -> int:
        """Return the place of the rank that the singular values speak for, were all noise Gaussian."""
        import numpy as np

        rows, columns = self.matrix.rows, self.matrix.columns
        seen, sides = self.observed.changes.size, sum(self.observed.shape)
        costs: list[float] = []
        for rank in ranks:
            lengths = begin.lengths[:rank]
            rest = max(begin.total - float(np.square(lengths).sum()), 1e-9 * begin.total)
            rest /= max(1.0, seen - rank * sides)
            steps = lengths * float(lengths.sum()) / (12 * rest * rank * self.share)
            factors = sum(side * 0.5 * np.log2(1 + 17 * steps / side).sum() for side in (rows, columns))
            costs.append(rows * columns * 0.5 * math.log2(rest) + float(factors))
        return int(np.argmin(costs))

    def _trial(self, fit: Fit, coarser: float = 1.0) -> _Trial:
        """Round the factors to whole steps, and count the sample.

        The step is where finer factors would cost as much more as they would save: the derivatives of
        ``rank * (rows + columns) * log2(1 / step)`` and of the residual's entropy cancel.
        """
        lengths = float(fit.lengths.sum()) / math.sqrt(self.share)
        step = coarser * math.sqrt(12 * fit.blur * fit.rank / max(lengths, 1e-30))
        step, tilt = _fitting(fit, step, self.share)
        left, right = _rounded(fit.left * tilt, step), _rounded(fit.right / tilt, step)
        curve = self._curve(fit, step)
        factors = self._placed(left, right)
        counts = reduce(add, (self.count(curve, factors, *band) for band in self.bands))
        sampled = (len(left) + len(right)) / (self.matrix.rows + self.matrix.columns)
        bits = residual_bits(counts, self.matrix.dtype, self.share) + FIXED_BITS
        bits += factor_bits(count_factors(packed(left, right)), sampled)
        return _Trial(bits, fit, step, coarser, tilt, curve, right)

    def _placed(self, left: Numbers, right: Numbers) -> core.Factors:
        """Return factors with the sampled rows in their places, and 0 in the others."""
        import numpy as np

        if len(self.bands) == 1:
            return packed(left, right)
        whole = np.zeros((self.matrix.rows, left.shape[1]), np.int16)
        whole[np.concatenate([np.arange(*band) for band in self.bands])] = left
        return packed(whole, right)

    def _curve(self, fit: Fit, step: float) -> Curve:
        """Return the curve in integers: of t, a product of factors, in units of the element type."""
        end = min(fit.bend.end, 2 * fit.peak) / step**2
        drop = min(_MAX_SHIFT, max(0, math.ceil(math.log2(max(end, 1.0) / _MAX_PLACE))))
        grain = step**2 * 2.0**drop
        slope = fit.bend.slope * grain * self.scale / self.matrix.unit
        bend = fit.bend.bend * grain**2 * self.scale / self.matrix.unit * 2.0**15
        # the slope has 14 bits, or as many as leave room for the bend
        shift = max(
            math.floor(math.log2(slope)) - 13, math.ceil(math.log2((slope + abs(bend)) / _MAX_SLOPES))
        )
        shift = min(max(shift, -_MAX_SHIFT), _MAX_SHIFT)
        whole = min(math.floor(slope / 2.0**shift), _MAX_SLOPES)
        size = math.sqrt(float((fit.lengths**2).sum()) / self.observed.changes.size) / grain
        return Curve(
            rank=fit.rank,
            drop=drop,
            limit=max(1, min(_MAX_PLACE, round(end / 2.0**drop))),
            classes=max(1, min(_MAX_SLOPES, round(_CLASSES * 65536 / max(size, 1e-30)))),
            slope=whole,
            bend=min(max(math.trunc(bend / 2.0**shift), whole - _MAX_SLOPES), _MAX_SLOPES - whole),
            shift=shift,
        )

    def _best_step(self, best: _Trial) -> _Trial:
        """Try finer steps, then coarser ones, by half octaves, while that helps.

        Where much is left unexplained, theory puts the step well enough.
        """
        first = best
        if best.fit.rest > _EXACT:
            return best
        for direction in (-0.5, 0.5):
            for octave in range(1, _MAX_OCTAVES + 1):
                trial = self._trial(first.fit, 2.0 ** (direction * octave))
                if trial.bits >= best.bits:
                    break
                best = trial
            if best is not first:
                break
        return best

    def _widened(self, best: _Trial) -> _Trial:
        """Refine the fit on far more rows, because an error in the right factor is one in every row."""
        import numpy as np

        self._look_at(_WIDE // self.matrix.columns)
        left = np.zeros((self.observed.shape[0], best.fit.rank), np.float32)
        fit = replace(best.fit, left=settled(self.observed, best.fit, left, _SETTLE_ROUNDS))
        return self._trial(refined(self.observed, fit, 1), best.coarser)

    def _settled(self, best: _Trial) -> Found:
        """Fit all rows to the rounded right factor, and count everything."""
        import numpy as np

        right = best.right.astype(np.float32) * (np.float32(best.step) * best.tilt)
        fit = replace(best.fit, right=right)
        whole = len(self.bands) == 1
        left = settled(self.observed, fit, best.fit.left) if whole else self._all_rows(fit)
        factors = packed(_rounded(left * best.tilt, best.step), best.right)
        return _counted(self.matrix, self.count, best.curve, factors)

    def _all_rows(self, fit: Fit) -> Floats:
        """Fit each row anew, a block of rows at a time."""
        import numpy as np

        made = np.zeros((self.matrix.rows, fit.rank), np.float32)
        step = max(1, _BLOCK // self.matrix.columns)
        for first in range(0, self.matrix.rows, step):
            past = min(first + step, self.matrix.rows)
            observed, _ = observe(self.matrix, [(first, past)], self.scale)
            made[first:past] = settled(observed, fit, made[first:past], _SETTLE_ROUNDS)
        return made


def _fitting(fit: Fit, step: float, share: float) -> tuple[float, Floats]:
    """Return a step that is large enough for the largest factors, and the tilt of their columns.

    Usually the tilt only balances the factors of all rows, where those of the sample are balanced. When the
    step is too small, it brings the largest numbers of both factors to the same size.
    """
    import numpy as np

    tilt = np.full(fit.rank, share**0.25, np.float32)
    highest, widest = np.abs(fit.left).max(axis=0), np.abs(fit.right).max(axis=0)
    room = _MAX_FACTOR * (1.0 if share == 1.0 else _HEADROOM)
    if max(float((highest * tilt).max()), float((widest / tilt).max())) > room * step:
        tilt = np.sqrt(np.maximum(widest, 1e-20) / np.maximum(highest, 1e-20))
        step = max(step, float(np.sqrt(highest * widest).max()) / room)
    return step, tilt


def _rounded(values: Floats, step: float) -> Numbers:
    """Return values in whole steps, within what the format can hold."""
    import numpy as np

    whole = np.rint(values * np.float32(1 / step))
    return np.clip(whole, -_MAX_FACTOR, _MAX_FACTOR).astype(np.int16)
