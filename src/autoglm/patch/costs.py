"""What it costs to code a matrix with given factors, in bits, from counts of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoglm.patch import core
from autoglm.patch.package import NUM_TOKENS, Dtype, Mode
from autoglm.patch.tables import conditional_entropy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]
    Numbers = NDArray[np.int16]

# What a prediction costs beside its tokens: a segment's fields, a block of factors; and the entry of a table.
FIXED_BITS = 8 * 80
_ENTRY_BITS = 3


def packed(left: Numbers, right: Numbers) -> core.Factors:
    """Return factors, (rows, rank) and (columns, rank), as the core lays them out."""
    import numpy as np

    (rows, rank), columns = left.shape, len(right)
    even = rank + rank % 2
    padded = np.zeros((rows + columns, even), np.int16)
    padded[:rows, :rank], padded[rows:, :rank] = left, right
    pairs = padded[rows:].reshape(columns, even // 2, 2).transpose(1, 0, 2)
    return core.Factors(rows, columns, rank, bytearray(padded[:rows].tobytes()), bytearray(pairs.tobytes()))


def count_factors(factors: core.Factors) -> Counts:
    """Return how often each context of the factors uses each token, (64, 64)."""
    import numpy as np

    return np.array(core.count_factors(factors), np.int64).reshape(-1, NUM_TOKENS)


def residual_bits(counts: Counts, dtype: Dtype, share: float = 1.0) -> float:
    """Return the cost of the tokens of a residual, with their tables, where only ``share`` was counted."""
    import numpy as np

    extra = np.frombuffer(core.extra_bits(Mode.PREDICTED, dtype)[0], np.uint8).astype(np.int64)
    tokens = conditional_entropy(counts) + float((counts.sum(axis=0) * extra).sum())
    return tokens / share + _ENTRY_BITS * float((counts > 0).sum())


def factor_bits(counts: Counts, share: float = 1.0) -> float:
    """Return the cost of the tokens of factors, which are spelled like residuals of 16 bits."""
    return residual_bits(counts, Dtype.BF16, share)
