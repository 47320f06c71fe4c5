"""What a merge costs in a patch: an estimate from the entropy of its factors and scales.

The tokens are those of ``docs/wpatch-format.md``. Packages made of merges of the nano and of matrices 1024
wide were at most 4 % larger.

The format codes the numbers of each rank component with one of at most 64 tables that all tensors of a
package share. Components of about the same spread share a table here, which is what a package does too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from autoglm.training.lowrank import Prediction

_DIRECT, _MANTISSA_BITS = 16, 2  # of 16-bit numbers: direct tokens, then this many mantissa bits a bucket
_CLASSES_PER_OCTAVE = 3
_TABLE_BITS_PER_TOKEN = 11
_TENSOR_BYTES = 60  # a segment's fields and map, and the hash and length of a block, compressed
_BLOCK_BYTES, _BLOCK_ELEMENTS = 170, 1 << 19  # of elements that the factors predict exactly


def factor_bytes(predictions: Sequence[Prediction]) -> int:
    """Return about how many bytes of a package these factors take, headers included."""
    used = [prediction for prediction in predictions if prediction.p.shape[1]]
    bits = 0.0
    for numbers in _classes(used):
        tokens, raw_bits = _tokens(numbers)
        bits += _entropy_bits(tokens) + raw_bits + _TABLE_BITS_PER_TOKEN * len(np.unique(tokens))
    more_blocks = sum(each.p.shape[0] * each.q.shape[1] // _BLOCK_ELEMENTS for each in used)
    return round(bits / 8) + _TENSOR_BYTES * len(used) + _BLOCK_BYTES * more_blocks


def scale_bytes(old: NDArray[np.float16], new: NDArray[np.float16]) -> int:
    """Return about how many bytes the change of a tensor's scales takes."""
    if np.array_equal(old, new):
        return 0
    tokens, raw_bits = _tokens(new.view(np.uint16).astype(np.int64) - old.view(np.uint16).astype(np.int64))
    return round((_entropy_bits(tokens) + raw_bits) / 8) + _TENSOR_BYTES


def _classes(predictions: Sequence[Prediction]) -> Iterable[NDArray[np.int64]]:
    """Return the numbers of all rank components, those of about the same spread together."""
    found: dict[int, list[NDArray[np.int64]]] = {}
    for prediction in predictions:
        for k in range(prediction.p.shape[1]):
            numbers = np.concatenate([prediction.p[:, k], prediction.q[k]]).astype(np.int64)
            spread = float(np.sqrt(np.square(numbers, dtype=np.float64).mean()))
            found.setdefault(round(_CLASSES_PER_OCTAVE * np.log2(spread)), []).append(numbers)
    return [np.concatenate(numbers) for numbers in found.values()]


def _entropy_bits(tokens: NDArray[np.int64]) -> float:
    _, counts = np.unique(tokens, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _tokens(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return the token of each number, and how many raw bits follow all of them together."""
    z = (numbers << 1) ^ (numbers >> 63)
    octave = np.frexp(np.maximum(z, 1).astype(np.float64))[1].astype(np.int64) - 1  # floor(log2 z)
    extra = np.maximum(octave - _MANTISSA_BITS, 0)
    bucket = (octave - 4) << _MANTISSA_BITS
    tokens = np.where(z < _DIRECT, z, _DIRECT + bucket + ((z >> extra) & ((1 << _MANTISSA_BITS) - 1)))
    return tokens, int(extra[z >= _DIRECT].sum())
