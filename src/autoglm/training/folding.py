"""Fold a low-rank change into one matrix of INT8 codes, so that the patch format itself predicts the result.

The change ``left @ right`` is divided by the row scales, balanced by a singular value decomposition, and both
sides are rounded to multiples of one common step: at a given error this costs the fewest bits. The new codes
are what :func:`~autoglm.training.lowrank.predict` makes of these integers, and nothing else.

Two things are done to the scales, free of bits or nearly so:

- A row whose weights outgrow its scale gets a larger one, in few and coarse steps.
- Where the change is so small beside the steps of the codes that rounding would swallow it, all scales of
  the matrix are raised by the same few units in the last place. The old codes then fall between the new
  ones, each at another fraction, and rounding keeps the change on average, as it does for weights that were
  never quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoglm.errors import ConfigError
from autoglm.training.lowrank import (
    LARGEST_CODE,
    MAX_FACTOR,
    MAX_RANK,
    Prediction,
    linear_curve,
    predict,
    row_ranges,
    scale_ratios,
)

Floats = NDArray[np.float64]
Scales = NDArray[np.float16]
Codes = NDArray[np.int8]

_GROWTH_UNITS = 64  # a scale grows by 3 to 6 % at a time
# Squared steps a weight that a row's range may cut off. A new scale costs a patch a byte or two. Measured on
# the nano: cutting less does not show in the retention, cutting more does.
_OUTGROWN = 1 / 3
_LARGEST_FINITE = 0x7BFF
_NUDGES = (0, 7, 16, 32, 64)  # units in the last place; up to 7 cost nothing in a patch
_TOLERANCE = 0.01  # of the gain, before the scales are nudged


@dataclass(frozen=True)
class Folded:
    """One matrix after the merge.

    Attributes:
        codes: (rows, columns) int8.
        scales: (rows,) float16.
        prediction: what makes the codes from the base's; rank 0 where nothing changed.
        gain: share of the change along its own direction that the codes hold; 1 is perfect.
        kept_energy: share of the change's energy in the rank that the format holds.
    """

    codes: Codes
    scales: Scales
    prediction: Prediction
    gain: float
    kept_energy: float


@dataclass(frozen=True)
class Change:
    """A change of weights as a product.

    Attributes:
        left: (rows, rank).
        right: (rank, columns).
    """

    left: Floats
    right: Floats

    def rows(self, rows: slice) -> Floats:
        """The change of some rows."""
        return self.left[rows] @ self.right


def fold(codes: Codes, scales: Scales, change: Change, *, factor_error: float) -> Folded:
    """Merge a change into quantised weights.

    Args:
        codes: (rows, columns) of the base.
        scales: (rows,) of the base.
        change: of the weights, the adapter's scaling included.
        factor_error: share of the change's energy that rounding the factors may cost.

    Raises:
        ConfigError: a scale is not positive, or would have to be larger than a float16 can be.
    """
    if not bool((scales > 0).all()):
        raise ConfigError("the base has a row scale that is not positive: such a row cannot be merged into")
    grown = _grown(codes, scales, change)
    best: Folded | None = None
    for units in _NUDGES:
        made = _fold_with(codes, scales, _raised(grown, units), change, factor_error)
        if best is None or abs(made.gain - 1) < abs(best.gain - 1):
            best = made
        if abs(best.gain - 1) <= _TOLERANCE:
            break
    assert best is not None
    return best


def _raised(scales: Scales, units: int | NDArray[np.int64]) -> Scales:
    """Return scales so many units in the last place larger."""
    bits = scales.view(np.uint16).astype(np.int64) + units
    if int(bits.max()) > _LARGEST_FINITE:
        raise ConfigError("the adapter changes weights beyond what a float16 scale can hold")
    return bits.astype(np.uint16).view(np.float16)


def _wide(scales: Scales) -> Floats:
    return scales.astype(np.float64)[:, None]


def _grown(codes: Codes, scales: Scales, change: Change) -> Scales:
    """Return the scales, larger where the range would cut off too much."""
    units = np.zeros(len(scales), np.int64)
    for rows in row_ranges(*codes.shape):
        wanted = np.abs(codes[rows] * _wide(scales[rows]) + change.rows(rows))
        while True:
            steps = wanted / _wide(_raised(scales[rows], units[rows]))
            outgrown = np.square(np.maximum(steps - LARGEST_CODE, 0)).mean(1) > _OUTGROWN
            if not outgrown.any():
                break
            units[rows] += _GROWTH_UNITS * outgrown
    return _raised(scales, units)


def _fold_with(codes: Codes, old: Scales, new: Scales, change: Change, factor_error: float) -> Folded:
    balanced, kept_energy = _balance(Change(change.left / _wide(new), change.right))
    prediction = _rounded(balanced, factor_error)
    made = predict(codes, scale_ratios(old, new), prediction)
    gain = _gain(codes, _wide(old) / _wide(new), made, balanced)
    return Folded(made, new, prediction, gain, kept_energy)


def _gain(codes: Codes, ratios: Floats, made: Codes, change: Change) -> float:
    """Project what moved onto what should have: rounding errors that know nothing of the change drop out."""
    along, energy = 0.0, 0.0
    for rows in row_ranges(*made.shape):
        wanted = change.rows(rows)
        along += float(((made[rows] - codes[rows] * ratios[rows]) * wanted).sum())
        energy += float(np.square(wanted).sum())
    return along / energy if energy else 1.0


def _balance(change: Change) -> tuple[Change, float]:
    """Decompose a product without forming it; return it balanced, and the share of its energy that is kept.

    Both sides carry the root of the singular values, as many as the format has room for.
    """
    outer, inner = np.linalg.qr(change.left), np.linalg.qr(change.right.T)
    u, values, v = np.linalg.svd(outer.R @ inner.R.T)
    kept = values[:MAX_RANK]
    root = np.sqrt(kept)
    balanced = Change((outer.Q @ u[:, : len(kept)]) * root, root[:, None] * (v[: len(kept)] @ inner.Q.T))
    energy = float(np.square(values).sum())
    return balanced, float(np.square(kept).sum()) / energy if energy else 1.0


def _rounded(change: Change, factor_error: float) -> Prediction:
    """Round both sides of a balanced change to multiples of one step, as large as the error allows."""
    values = np.square(change.right).sum(1)  # the singular values
    lines = len(change.left) + change.right.shape[1]
    largest = max(float(np.abs(side).max(initial=0)) for side in (change.left, change.right))
    step = 1.0
    if largest > 0:
        # A rounded number is off by step^2 / 12, and meets the other side's energy, which is `values`.
        step = float(np.sqrt(12 * factor_error * np.square(values).sum() / (lines * values.sum())))
        step = max(step, largest / MAX_FACTOR)
    p, q = np.rint(change.left / step).astype(np.int16), np.rint(change.right / step).astype(np.int16)
    used = p.any(0) & q.any(1)
    p, q = np.ascontiguousarray(p[:, used]), np.ascontiguousarray(q[used])
    # Not the largest product but a bound of it: the curve loses no precision that matters.
    bound = int((np.abs(p).max(0, initial=0).astype(np.int64) * np.abs(q).max(1, initial=0)).sum())
    return Prediction(p, q, linear_curve(step**2, largest=bound))
