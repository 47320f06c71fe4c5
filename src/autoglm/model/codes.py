"""Weights as small integers: INT8 with a scale a row, INT4 with a scale a group of a row.

======  ==============================  ===============================  =====================
stored  codes                           scales                           value
======  ==============================  ===============================  =====================
INT8    int8 (rows, columns)            float16 (rows,)                  code * scale
INT4    uint8 (rows, columns / 2)       float16 (rows, columns / group)  (nibble - 8) * scale
======  ==============================  ===============================  =====================

The low nibble of a byte is the even column. INT8 codes lie in -127..127, INT4 codes in -8..7.

An update is quantised with the scales of the release before it: a weight that hardly moved keeps its code,
and the patch between the two stays small. A scale that its weights have outgrown is replaced: clipping a
weight hurts more than rounding it. There is no hysteresis: a code is always the nearest one. Holding on to
old codes looks harmless in squared error and deletes the update.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = {8: 127, 4: 7}
_SMALLEST = {8: -127, 4: -8}
# Squared steps a weight that keeping a scale may cost beside replacing it: a quarter of what rounding to its
# steps costs anyway. Measured on v1.2 -> v1.3: with it the patch is smaller and the loss lower than without.
OUTGROWN = 0.25 / 12
_MIN_SCALE = 2.0**-20
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the range of an INT4 group, tried for least error


def quantize_rows(weight: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantise a weight to INT8, symmetric, one scale a row.

    Args:
        weight: (rows, ...), any float type.
        scale: (rows,) float16 to keep where it still fits, such as the previous release's.

    Returns:
        Codes (rows, columns) int8 in -127..127 and scales (rows,) float16.
    """
    rows = weight.detach().to(torch.float32).flatten(1)
    # Rounded up to the next float16, so that the largest value stays within 127 codes.
    own = (rows.abs().amax(1) / 127 * (1 + 2**-11)).clamp_min(_MIN_SCALE).to(torch.float16)
    scale = own if scale is None else _kept(rows, scale, own, 8)
    return _nearest(rows, scale, 8).to(torch.int8), scale


def quantize_groups(weight: Tensor, group: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantise a weight to INT4, one scale for each ``group`` columns of a row.

    Args:
        weight: (rows, ...), any float type; the columns are an even multiple of the group.
        group: columns that share a scale.
        scale: (rows, columns / group) float16 to keep where it still fits.

    Returns:
        Packed codes (rows, columns / 2) uint8 and scales (rows, columns / group) float16.
    """
    rows = weight.detach().to(torch.float32).flatten(1)
    groups = rows.reshape(-1, group)
    own = _best_scale(groups)
    flat = own if scale is None else _kept(groups, scale.flatten(), own, 4)
    codes = _nearest(groups, flat, 4).reshape(rows.shape)
    return pack(codes), flat.reshape(len(rows), -1)


def _nearest(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    codes = (rows / scale.to(torch.float32)[:, None]).round()
    return codes.clamp_(_SMALLEST[bits], _LARGEST[bits])


def _kept(rows: Tensor, scale: Tensor, own: Tensor, bits: int) -> Tensor:
    """Return ``scale``, and the larger ``own`` where a row has outgrown it."""
    costs = (_error(rows, scale, bits) - _error(rows, own, bits)) / scale.to(torch.float32).square()
    usable = torch.isfinite(scale) & (scale > 0)
    return torch.where(usable & ((own <= scale) | (costs <= OUTGROWN)), scale, own)


def _error(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return each row's mean squared error under these scales."""
    return (_nearest(rows, scale, bits) * scale.to(torch.float32)[:, None] - rows).square().mean(1)


def _best_scale(groups: Tensor) -> Tensor:
    """Return each group's scale of least squared error: at 4 bits a little clipping buys finer steps."""
    largest = groups.abs().amax(1)
    best = torch.full_like(largest, torch.inf)
    chosen = torch.zeros_like(largest, dtype=torch.float16)
    for shrink in _SHRINKS:
        scale = (largest * shrink / _LARGEST[4]).clamp_min(_MIN_SCALE).to(torch.float16)
        error = _error(groups, scale, 4)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(error, best)
    return chosen


def pack(codes: Tensor) -> Tensor:
    """Pack INT4 codes (rows, columns) in -8..7 into (rows, columns / 2) uint8."""
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """Return the codes (rows, columns) int8 of packed bytes (rows, columns / 2)."""
    nibbles = torch.stack((packed & 15, packed >> 4), -1).flatten(1)
    return nibbles.to(torch.int8) - 8


def multiply_out(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the weights (rows, columns) float32 of codes with a scale a row or a group."""
    wide = scale.to(torch.float32)
    if wide.dim() == 1:
        return codes.to(torch.float32) * wide[:, None]
    rows, groups = wide.shape
    return (codes.to(torch.float32).view(rows, groups, -1) * wide[..., None]).view(rows, -1)


def scales_fit(codes: Tensor, scale: Tensor, rows: int, columns: int) -> bool:
    """Tell whether stored codes and scales are INT8 or INT4 of a matrix (rows, columns)."""
    if scale.dtype != torch.float16:
        return False
    if codes.dtype == torch.int8:
        return codes.shape == (rows, columns) and scale.shape == (rows,)
    whole = scale.dim() == 2 and len(scale) == rows and scale.shape[1] > 0 and columns % scale.shape[1] == 0
    return codes.dtype == torch.uint8 and whole and columns % 2 == 0 and codes.shape == (rows, columns // 2)
