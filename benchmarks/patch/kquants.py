"""Quantisers for GGUF's K types, in numpy: the ``gguf`` package reads these types but does not make them.

A super-block is 256 weights of a row. Q4_K and Q5_K cut it into 8 groups with a 6-bit scale and minimum each,
Q6_K into 16 with an 8-bit scale. The searches are those of ggml's reference quantisers: a weighted
least-squares fit of scale and minimum for each of a row of trial scales, the best kept. Checked in the tests
by ``gguf``'s own dequantisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any

SUPER = 256


def _nearest(values: Array, low: int, high: int) -> Array:
    return np.clip(np.rint(values), low, high)


def _inverse(values: Array) -> Array:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)


def fit_scale_and_minimum(x: Array, top: int, trials: Array) -> tuple[Array, Array]:
    """Fit ``x ≈ scale * code - minimum`` with codes from 0 to ``top`` and a minimum that is not negative.

    Args:
        x: groups (n, size).
        top: the largest code.
        trials: what is added to ``top`` for the trial scales.

    Returns:
        scale and minimum (n) each.
    """
    weights = np.sqrt((x * x).mean(1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(1), 0)
    span = x.max(1) - low
    best_scale, best_low = span / top, low.copy()

    def error(scale: Array, floor: Array) -> Array:
        codes = _nearest((x - floor[:, None]) * _inverse(scale)[:, None], 0, top)
        return (weights * (scale[:, None] * codes + floor[:, None] - x) ** 2).sum(1)

    best = error(best_scale, best_low)
    sum_w, sum_x = weights.sum(1), (weights * x).sum(1)
    for trial in trials:
        codes = _nearest((x - low[:, None]) * ((top + trial) * _inverse(span))[:, None], 0, top)
        sum_l, sum_ll = (weights * codes).sum(1), (weights * codes * codes).sum(1)
        sum_xl = (weights * x * codes).sum(1)
        determinant = _inverse(sum_w * sum_ll - sum_l * sum_l)
        scale = (sum_w * sum_xl - sum_x * sum_l) * determinant
        floor = (sum_ll * sum_x - sum_l * sum_xl) * determinant
        scale = np.where(floor > 0, sum_xl * _inverse(sum_ll), scale)
        floor = np.minimum(floor, 0)
        off = (weights * (scale[:, None] * codes + floor[:, None] - x) ** 2).sum(1)
        better = (off < best) & (determinant > 0)
        best_scale, best_low = np.where(better, scale, best_scale), np.where(better, floor, best_low)
        best = np.where(better, off, best)
    return best_scale, -best_low


def fit_scale(x: Array, top: int) -> Array:
    """Fit ``x ≈ scale * code`` with codes from -top to top - 1, large weights counting most.

    Args:
        x: groups (n, size).
        top: half the number of codes.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    best, found = np.full(len(x), -1.0, np.float32), np.zeros(len(x), np.float32)
    for trial in (0, *(t for t in range(-9, 10) if t)):
        codes = _nearest(x * (-(top + 0.1 * trial) * _inverse(largest))[:, None], -top, top - 1)
        dot, square = (x * x * x * codes).sum(1), (x * x * codes * codes).sum(1)
        gain = dot * dot * _inverse(square)
        better = gain > best
        found, best = np.where(better, dot * _inverse(square), found), np.where(better, gain, best)
    return found


def _super_scales(values: Array, steps: int) -> tuple[Array, Array]:
    """Quantise the scales of each super-block (n, groups) against their largest; (halves, codes)."""
    largest = np.maximum(values.max(1), 0)
    codes = _nearest(values * (steps * _inverse(largest))[:, None], 0, steps)
    return (largest / steps).astype(np.float16), codes


def _affine(x: Array, top: int, trials: Array) -> tuple[Array, Array, Array]:
    """Return codes (n, 8, 32), the head (n, 4) and the packed 6-bit scales (n, 12) of super-blocks."""
    n = len(x)
    groups = x.reshape(-1, 32)
    scale, minimum = (part.reshape(n, 8) for part in fit_scale_and_minimum(groups, top, trials))
    (d, sc), (dmin, m) = _super_scales(scale, 63), _super_scales(minimum, 63)
    step = d.astype(np.float32)[:, None] * sc
    floor = dmin.astype(np.float32)[:, None] * m
    codes = _nearest((x.reshape(n, 8, 32) + floor[:, :, None]) * _inverse(step)[:, :, None], 0, top)
    head = np.stack([d, dmin], 1).view(np.uint8)
    return codes.astype(np.uint8), head, _pack_scales(sc.astype(np.uint8), m.astype(np.uint8))


def _pack_scales(sc: Array, m: Array) -> Array:
    """Pack 8 scales and 8 minima of 6 bits: four of each, then the low halves, the high bits on top."""
    low = np.concatenate([sc[:, :4] | sc[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6], 1)
    return np.concatenate([low, sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4], 1)


def q4_k(x: Array) -> Array:
    """Return blocks of 144 bytes for super-blocks (n, 256)."""
    codes, head, scales = _affine(x, 15, -1 + 0.1 * np.arange(21, dtype=np.float32))
    return np.concatenate([head, scales, _halves(codes)], 1)


def q5_k(x: Array) -> Array:
    """Return blocks of 176 bytes for super-blocks (n, 256)."""
    codes, head, scales = _affine(x, 31, -0.5 + 0.1 * np.arange(16, dtype=np.float32))
    high = ((codes >> 4) << np.arange(8, dtype=np.uint8)[:, None]).sum(1).astype(np.uint8)
    return np.concatenate([head, scales, high, _halves(codes & 15)], 1)


def _halves(codes: Array) -> Array:
    """Put groups 0 and 1, 2 and 3, ... into the halves of bytes; (n, 8, 32) to (n, 128)."""
    return (codes[:, ::2] | codes[:, 1::2] << 4).reshape(len(codes), 128)


def q6_k(x: Array) -> Array:
    """Return blocks of 210 bytes for super-blocks (n, 256)."""
    n = len(x)
    scale = fit_scale(x.reshape(-1, 16), 32).reshape(n, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)[:, 0]
    d = (largest / -128).astype(np.float16)
    sc = _nearest(scale * (-128 * _inverse(largest))[:, None], -128, 127)
    step = d.astype(np.float32)[:, None] * sc
    codes = _nearest(x.reshape(n, 16, 16) * _inverse(step)[:, :, None], -32, 31).astype(np.int8) + 32
    quarters = codes.astype(np.uint8).reshape(n, 2, 4, 32)  # of each half: four runs of 32
    low = (quarters[:, :, :2] & 15) | (quarters[:, :, 2:] & 15) << 4
    high = ((quarters >> 4) << (2 * np.arange(4, dtype=np.uint8))[:, None]).sum(2).astype(np.uint8)
    parts = [low.reshape(n, 128), high.reshape(n, 64), sc.astype(np.int8).view(np.uint8)]
    return np.concatenate([*parts, d[:, None].view(np.uint8)], 1)


QUANTISERS: dict[str, Callable[[Array], Array]] = {"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}


def quantise(matrix: Array, name: str) -> Array:
    """Return the rows of a float32 matrix as rows of blocks of the K type ``name``, uint8."""
    rows, columns = matrix.shape
    if columns % SUPER:
        raise ValueError(f"{name} needs rows of whole {SUPER}s, not of {columns}")
    with np.errstate(over="ignore", invalid="ignore"):
        return QUANTISERS[name](np.ascontiguousarray(matrix, np.float32).reshape(-1, SUPER)).reshape(rows, -1)
