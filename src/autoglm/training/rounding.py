"""Training through rounded weights: a step sees what a release will hold, the optimiser has exact values.

The gradient passes the rounding unchanged (straight-through estimator, arXiv:1308.3432). The rounding is the
release's own: the same code and the same scales, those of the release that is followed where they are given.

    >>> with rounded(model, 8, {}):                                      # doctest: +SKIP
    ...     loss(model).backward()
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autoglm.errors import ConfigError
from autoglm.model.codes import multiply_out, quantize_groups, quantize_rows, unpack
from autoglm.model.weights import is_matrix
from autoglm.training.sharding import is_sharded

GROUP = 64  # columns that share a scale, where INT4 has none to keep


@contextmanager
def rounded(model: nn.Module, bits: int, scales: Mapping[str, Tensor]) -> Generator[None]:
    """Round all matrices for as long as the body runs; the exact values come back, whatever happens.

    Args:
        model: whose weights are rounded in place; gradients land on them as usual.
        bits: 8, or 4 for the blocks' matrices.
        scales: scales to keep by weight name, as a release stores them; others are the weights' own.

    Raises:
        ConfigError: the weights are spread over processes.
    """
    if is_sharded(model.parameters()):
        raise ConfigError("weights that are spread over processes cannot be trained through rounding")
    exact = {
        name: (parameter, parameter.data)
        for name, parameter in model.named_parameters()
        if is_matrix(name, parameter.shape)
    }
    try:
        for name, (parameter, value) in exact.items():
            parameter.data = round_weight(value, bits if name.startswith("blocks.") else 8, scales.get(name))
        yield
    finally:
        for parameter, value in exact.values():
            parameter.data = value


@torch.no_grad()
def round_weight(weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
    """Return a weight as a release of so many bits would hold it."""
    columns = weight.shape[1:].numel()
    group = columns // scale.shape[1] if scale is not None and scale.dim() > 1 else GROUP
    if bits == 8 or (scale is not None and scale.dim() == 1):
        codes, scale = quantize_rows(weight, scale)
    else:
        packed, scale = quantize_groups(weight, group, scale)
        codes = unpack(packed)
    return multiply_out(codes, scale).view(weight.shape).contiguous(memory_format=torch.preserve_format)
