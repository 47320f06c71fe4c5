"""Fit a matrix of changes by a product of two thin ones, where some changes are known better than others.

The model of a change ``D[i, j]`` is ``curve(X[i, j])`` with ``X = P @ Q.T`` of a small rank, plus noise: the
rest that the model does not explain, and the rounding of the element type, which grows with the exponent of
the weight. :func:`start` and :func:`refined` find P, Q and the curve by alternating weighted least squares.
Each half step is a few rounds of conjugate gradients for all rows (or all columns) at once, so nothing larger
than the matrix itself is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from autoglm.patch.observed import Observed
from autoglm.patch.products import balanced, gather, gram, leading, project, spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

# Elements that a half step handles at a time, so that its arrays stay in the second-level cache.
_CHUNK = 1 << 17
_CG_ROUNDS = 2
# The variance that a model usually leaves, in squares of the mean change; the least that is believed.
_FIRST_REST, _MIN_REST = 0.25, 2e-6
# The curve: elements that it is fitted on, shares of them below the place where it ends that are tried.
_CURVE_SAMPLE = 1 << 13
_CURVE_SHARES = (0.8, 0.85, 0.9, 0.95, 0.98, 0.999, 1.0)
# A curve that bends by less than this share of its slope is taken as straight.
_STRAIGHT = 0.05
# The least derivative of the curve that a step may divide by, as a share of the largest.
_FLAT = 0.3


@dataclass(frozen=True)
class Bend:
    """The curve in real numbers: ``s * (slope - bend * s)`` with ``s = min(|x|, end)``, and the sign of x."""

    slope: float = 1.0
    bend: float = 0.0
    end: float = math.inf


@dataclass(frozen=True)
class Fit:
    """A model of changes: the curve of ``left @ right.T``.

    Attributes:
        left, right: (rows, rank) and (columns, rank), balanced: the columns of each are orthogonal, and
            as long as those of the other, longest first.
        lengths: (rank,), the singular values of the product.
        bend: the curve.
        rest: variance of what the model does not explain, beside the rounding.
        blur: variance of noise in the product that would matter as much as all that is not explained.
        peak: largest magnitude in the product, roughly; 0 before :func:`refined`.
        total: of :func:`start`: the sum of the squares that the leading part was taken from.
    """

    left: Floats
    right: Floats
    lengths: Doubles
    bend: Bend = field(default_factory=Bend)
    rest: float = _FIRST_REST
    blur: float = 1.0
    peak: float = 0.0
    total: float = 0.0

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.right.shape[1]

    def cut(self, rank: int) -> Fit:
        """Return the leading part of the model."""
        left, right = self.left[:, :rank], self.right[:, :rank]
        return replace(self, left=left, right=right, lengths=self.lengths[:rank])


def start(observed: Observed, rank: int) -> Fit:
    """Return a first fit: the leading part of the changes, each as far as it is known."""
    import numpy as np

    weights = observed.weights(_FIRST_REST)
    known = observed.changes
    if weights is not None:
        weights *= np.float32(_FIRST_REST)
        known = np.multiply(known, weights, out=weights)
    left, right, lengths = leading(known, rank)
    return Fit(left, right, lengths, total=float(np.square(known).sum(dtype=np.float64)))


def refined(observed: Observed, fit: Fit, rounds: int) -> Fit:
    """Return a better fit of the same rank, by so many rounds of alternating least squares."""
    if not fit.peak:
        fit = _measured(observed, fit)
    for _ in range(rounds):
        left, right, lengths = balanced(*_round(observed, fit))
        fit = _measured(observed, replace(fit, left=left, right=right, lengths=lengths))
    return fit


def settled(observed: Observed, fit: Fit, left: Floats, rounds: int = 1) -> Floats:
    """Return the left factor that fits best, given the right one; ``left`` is where the search begins.

    The rows need not be those of the fit, but are taken to be like them.
    """
    import numpy as np

    made, ridge = np.empty_like(left), _ridge(observed, fit.rest, fit.left)
    for first, past in _chunks(*observed.shape):
        rows, part = observed.rows(first, past), left[first:past]
        weights = rows.weights(fit.rest)
        for _ in range(rounds):
            part = _settle(rows.changes, weights, replace(fit, left=part), ridge)
        made[first:past] = part
    return made


def _chunks(rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // columns)
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _round(observed: Observed, fit: Fit) -> tuple[Floats, Floats]:
    """Take a step of the left factor, then one of the right."""
    import numpy as np

    left, right, ridge = np.empty_like(fit.left), fit.right, _ridge(observed, fit.rest, fit.left)
    even = observed.levels is None and not fit.bend.bend
    stiffness = None if even else np.empty(observed.shape, np.float32)
    force, diagonal = np.zeros_like(right), np.zeros_like(right)
    for first, past in _chunks(*observed.shape):
        rows = observed.rows(first, past)
        weights = rows.weights(fit.rest)
        known = replace(fit, left=fit.left[first:past])
        part = left[first:past] = _settle(rows.changes, weights, known, ridge)
        push, stiff = _forces(rows.changes, weights, spread(part, right), fit.bend)
        force += gather(push, part)
        if stiffness is not None and stiff is not None:
            stiffness[first:past] = stiff
            diagonal += gather(stiff, part * part)
    ridge = _ridge(observed, fit.rest, right)
    return left, _settle_right(left, right, force, diagonal, stiffness, ridge)


def _forces(
    changes: Floats, weights: Floats | None, product: Floats, bend: Bend
) -> tuple[Floats, Floats | None]:
    """Return the pull on each element of the product, and how stiffly it is held (None: 1 everywhere).

    These are the gradient and the Gauss-Newton curvature of the weighted squares. ``product`` is overwritten.
    """
    import numpy as np

    f4 = np.float32
    if not bend.bend:
        error = np.subtract(changes, product, out=product)
        return (error, None) if weights is None else (np.multiply(error, weights, out=error), weights)
    size = np.minimum(np.abs(product), f4(bend.end))
    value = size * f4(-bend.bend)
    value += f4(bend.slope)
    steep = size * f4(-2 * bend.bend)
    steep += f4(bend.slope)
    np.maximum(steep, f4(_FLAT * max(bend.slope, bend.slope - 2 * bend.bend * bend.end)), out=steep)
    value *= size
    np.copysign(value, product, out=value)
    error = np.subtract(changes, value, out=value)
    error *= steep
    steep *= steep
    if weights is not None:
        error *= weights
        steep *= weights
    return error, steep


def _settle(changes: Floats, weights: Floats | None, fit: Fit, ridge: Floats) -> Floats:
    """Take one Gauss-Newton step of all rows of the left factor."""
    import numpy as np

    left, right = fit.left, fit.right
    push, stiff = _forces(changes, weights, spread(left, right), fit.bend)
    force = project(push, right)
    force -= ridge * left
    if stiff is None:
        return np.add(left, _shared(force, right, ridge))

    def pull(step: Floats) -> Floats:
        work = spread(step, right)
        work *= stiff
        pulled = project(work, right)
        pulled += ridge * step
        return pulled

    diagonal = project(stiff, np.square(right))
    diagonal += ridge
    return np.add(left, _conjugate(pull, force, diagonal))


def _settle_right(
    left: Floats,
    right: Floats,
    force: Floats,
    diagonal: Floats,
    stiffness: Floats | None,
    ridge: Floats,
) -> Floats:
    """Take one Gauss-Newton step of all rows of the right factor."""
    import numpy as np

    force -= ridge * right
    if stiffness is None:
        return np.add(right, _shared(force, left, ridge))

    def pull(step: Floats) -> Floats:
        total = np.multiply(ridge, step)
        for first, past in _chunks(*stiffness.shape):
            work = spread(left[first:past], step)
            work *= stiffness[first:past]
            total += gather(work, left[first:past])
        return total

    diagonal += ridge
    return np.add(right, _conjugate(pull, force, diagonal))


def _ridge(observed: Observed, rest: float, factor: Floats) -> Floats:
    """Return what a normal prior of the columns' present size pulls with, in the units of the weights."""
    import numpy as np

    unit = 1.0 if observed.levels is not None else rest + float(observed.noise[0])
    return (unit / np.maximum(np.square(factor).mean(axis=0), 1e-12)).astype(np.float32)


def _shared(force: Floats, other: Floats, ridge: Floats) -> Floats:
    """Solve the normal equations of all rows at once, where no element weighs more than another."""
    import numpy as np

    square = gram(other) + np.diag(ridge.astype(np.float64))
    return project(force, np.linalg.inv(square).astype(np.float32))


def _conjugate(pull: Callable[[Floats], Floats], force: Floats, diagonal: Floats) -> Floats:
    """Solve ``pull(x) == force`` for all rows at once, nearly, by conjugate gradients, scaled."""
    import numpy as np

    tiny = np.float32(1e-30)
    found, rest = np.zeros_like(force), force
    step = np.divide(rest, diagonal)
    size = (rest * step).sum(axis=1, keepdims=True)
    for _ in range(_CG_ROUNDS):
        moved = pull(step)
        far = size / np.maximum((step * moved).sum(axis=1, keepdims=True), tiny)
        found += far * step
        rest = np.subtract(rest, far * moved)
        scaled = np.divide(rest, diagonal)
        grown = (rest * scaled).sum(axis=1, keepdims=True)
        step = np.add(scaled, grown / np.maximum(size, tiny) * step)
        size = grown
    return found


def _measured(observed: Observed, fit: Fit) -> Fit:
    """Return the fit with its curve, and what that leaves, measured anew on some rows."""
    import numpy as np

    rows = min(observed.shape[0], max(1, _CURVE_SAMPLE // observed.shape[1]))
    places = np.linspace(0, observed.shape[0] - 1, rows).astype(np.int64)
    changes, product = observed.changes[places], spread(fit.left[places], fit.right)
    noise = observed.noise.astype(np.float32)
    if observed.levels is not None:
        noise = np.take(noise, observed.levels[places])
    weights = np.reciprocal(noise + np.float32(fit.rest))
    fit, product = _bent(fit, _best_bend(changes, weights, product), product)
    bend, size = fit.bend, np.minimum(np.abs(product), np.float32(fit.bend.end))
    error = changes - np.copysign(size * (bend.slope - bend.bend * size), product)
    heavy = np.square(weights)
    rest = max(float(np.mean(heavy * (np.square(error) - noise)) / np.mean(heavy)), _MIN_REST)
    steep = np.square(bend.slope - 2 * bend.bend * size)
    blur = 1 / max(float(np.mean(steep / (rest + noise))), 1e-12)
    return replace(fit, rest=rest, blur=blur, peak=float(np.abs(product).max()))


def _bent(fit: Fit, bend: Bend, product: Floats) -> tuple[Fit, Floats]:
    """Give the fit a curve; the slope of a straight one goes into the factors."""
    import numpy as np

    if bend.bend and abs(bend.bend) * bend.end >= _STRAIGHT * bend.slope:
        return replace(fit, bend=bend), product
    root = np.float32(math.sqrt(bend.slope))
    scaled = replace(fit, left=fit.left * root, right=fit.right * root, lengths=fit.lengths * bend.slope)
    return replace(scaled, bend=Bend()), product * np.float32(bend.slope)


def _best_bend(changes: Floats, weights: Floats, product: Floats) -> Bend:
    """Fit the curve by least squares of the changes on the product, for the end that fits best."""
    import numpy as np

    size = np.abs(product).ravel()
    target = np.copysign(changes, changes * product).ravel()
    heavy = np.broadcast_to(weights, changes.shape).ravel()
    places = [int(share * (size.size - 1)) for share in _CURVE_SHARES]
    ends = np.partition(size, places)[places, None]
    if not ends[0] > 0:
        return Bend()
    part = np.divide(np.minimum(size, ends), ends)
    slope, bend, left = _least_squares(*_moments(part, heavy, target * heavy))
    best = int(left.argmin())
    end = float(ends[best, 0])
    return Bend(float(slope[best]) / end, float(bend[best]) / end**2, end) if slope[best] > 0 else Bend()


def _moments(part: Floats, heavy: Floats, pulled: Floats) -> tuple[Doubles, ...]:
    """Return for each row the weighted sums of its powers 2, 3 and 4, and the pull on its powers 1 and 2."""
    import numpy as np

    square = part * part
    weighed = heavy * square
    products = (weighed, weighed * part, weighed * square, pulled * part, pulled * square)
    return tuple(np.sum(product, axis=1).astype(np.float64) for product in products)


def _least_squares(
    squares: Doubles, cubes: Doubles, fourths: Doubles, first: Doubles, second: Doubles
) -> tuple[Doubles, Doubles, Doubles]:
    """Return slope and bend of ``slope * t - bend * t^2``, t up to 1, and what they leave, less a part."""
    import numpy as np

    determinant = np.maximum(squares * fourths - cubes * cubes, 1e-30)
    slope = (first * fourths - second * cubes) / determinant
    bend = (first * cubes - second * squares) / determinant
    # no further than where the curve would fall before its end
    steepest = (first - second / 2) / np.maximum(squares - cubes + fourths / 4, 1e-30)
    falls = bend > slope / 2
    slope, bend = np.where(falls, steepest, slope), np.where(falls, steepest / 2, bend)
    spent = slope**2 * squares - 2 * slope * bend * cubes + bend**2 * fourths
    return slope, bend, spent - 2 * (slope * first - bend * second)
