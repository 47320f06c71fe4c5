"""The forms a release's weights take: float types, int8 with a scale a row, int4 with a scale a group.

Matrices are quantised, vectors stay bfloat16. Every quantiser either finds its scales anew or takes those of
the base ("kept"), as an update-aware quantiser does. Names and layouts are those of our releases:

``int8``
    ``name`` I8 (rows, columns), ``name.scale`` F16 (rows).
``q4``
    ``name`` U8 (rows, columns / 2), two codes a byte, the even column in the low half, 8 is zero;
    ``name.scale`` F16 (rows, columns / 32).
``f8``
    ``name`` F8_E4M3, ``name.scale`` F32 (1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Quantiser = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]

GROUP = 32
_LEAST = 2.0**-24  # the least positive half: no scale is zero


def plain(weights: Weights, dtype: torch.dtype) -> Weights:
    """Return every tensor rounded to a float type."""
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def quantise(weights: Weights, quantiser: Quantiser, base: Weights | None) -> Weights:
    """Quantise the matrices of a model.

    Args:
        weights: float32.
        quantiser: one of this module's.
        base: the quantised base whose scales are kept; None finds them anew.
    """
    made: Weights = {}
    for name, tensor in weights.items():
        if tensor.dim() != 2:
            made[name] = tensor.bfloat16()
            continue
        scale = base[f"{name}.scale"] if base is not None else None
        made[name], made[f"{name}.scale"] = quantiser(tensor, scale)
    return made


def int8(tensor: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return codes in [-127, 127] and the scales of the rows."""
    if scale is None:
        scale = (tensor.abs().amax(1) / 127).clamp_min(_LEAST).half()
    codes = (tensor / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def q4(tensor: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return two codes a byte and the scales of groups of 32 columns."""
    groups = tensor.unflatten(1, (-1, GROUP))
    if scale is None:
        scale = (groups.abs().amax(2) / 7).clamp_min(_LEAST).half()
    codes = (groups / scale.float()[:, :, None]).round().clamp(-8, 7).flatten(1).to(torch.int16) + 8
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), scale


def f8(tensor: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return 8-bit floats (4 bits of exponent, 3 of mantissa) and the scale of the tensor."""
    if scale is None:
        scale = (tensor.abs().max() / 448).clamp_min(_LEAST).reshape(1)
    return (tensor / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale
