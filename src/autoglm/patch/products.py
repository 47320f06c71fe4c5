"""Products of a matrix with thin ones, always in small pieces, and what is built from them.

Linear algebra libraries put large products on threads. Small ones they do not, which keeps results the same
for any number of threads, and is a hundred times faster where the cores are busy. A *thin* matrix has far
more rows than columns, of which there are *rank*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

# OpenBLAS puts products of more than 4 * 2^16 multiplications on threads.
_PIECE = 1 << 18
# A product is cut along its long side only while that leaves so many lines to a piece, else both ways.
_LINES = 16
# Directions shorter than this share of the longest are rounding errors.
_NOTHING = 1e-9
# The widest thin matrix whose square is one piece; an even number of steps that make it nearly diagonal.
_WIDEST, _TURNS = 64, 8


def project(matrix: Floats, right: Floats) -> Floats:
    """Return ``matrix @ right``: (rows, columns) and (columns, rank) give (rows, rank)."""
    import numpy as np

    (rows, columns), rank = matrix.shape, right.shape[1]
    total = np.zeros((rows, rank), np.float32)
    for at, past in _panels(columns, rank):
        panel, part = matrix[:, at:past], right[at:past]
        step = min(rows, max(1, _PIECE // ((past - at) * rank)))
        even = rows // step * step
        total[:even] += (panel[:even].reshape(rows // step, step, -1) @ part).reshape(even, rank)
        if even < rows:
            total[even:] += panel[even:] @ part
    return total


def gather(matrix: Floats, left: Floats) -> Floats:
    """Return ``matrix.T @ left``: (rows, columns) and (rows, rank) give (columns, rank)."""
    import numpy as np

    (rows, columns), rank = matrix.shape, left.shape[1]
    total = np.zeros((columns, rank), np.float32)
    for at, past in _panels(rows, rank):
        panel, part = matrix[at:past], left[at:past]
        step = min(columns, max(1, _PIECE // ((past - at) * rank)))
        even = columns // step * step
        pieces = panel[:, :even].reshape(past - at, columns // step, step).transpose(1, 2, 0)
        total[:even] += (pieces @ part).reshape(even, rank)
        if even < columns:
            total[even:] += panel[:, even:].T @ part
    return total


def spread(left: Floats, right: Floats) -> Floats:
    """Return ``left @ right.T``: (rows, rank) and (columns, rank) give (rows, columns)."""
    import numpy as np

    (rows, rank), columns = left.shape, len(right)
    made = np.empty((rows, columns), np.float32)
    for at, past in _panels(columns, rank):
        part = right[at:past].T
        step = min(rows, max(1, _PIECE // ((past - at) * rank)))
        even = rows // step * step
        target = made[:even, at:past].reshape(rows // step, step, -1)
        np.matmul(left[:even].reshape(rows // step, step, rank), part, out=target)
        if even < rows:
            np.matmul(left[even:], part, out=made[even:, at:past])
    return made


def _panels(length: int, rank: int) -> list[tuple[int, int]]:
    """Cut a side into panels that are narrow enough for pieces of several lines."""
    width = max(64, _PIECE // (_LINES * rank))
    return [(at, min(at + width, length)) for at in range(0, length, width)]


def gram(thin: Floats) -> Doubles:
    """Return ``thin.T @ thin``, (rank, rank), in double precision."""
    import numpy as np

    rows, rank = thin.shape
    step = min(rows, max(1, _PIECE // (rank * rank)))
    even = rows // step * step
    blocks = thin[:even].reshape(rows // step, step, rank).astype(np.float64)
    rest = thin[even:].astype(np.float64)
    return (blocks.transpose(0, 2, 1) @ blocks).sum(axis=0) + rest.T @ rest


def balanced(left: Floats, right: Floats) -> tuple[Floats, Floats, Doubles]:
    """Return factors of the same product along its singular vectors, nearly, and the singular values.

    In both factors the columns are nearly orthogonal, the longest first, and the squares of their lengths are
    nearly the singular values. The library's own decompositions would put even such small ones on threads;
    QR, of the matrix and of what it leaves turned over, comes near the same diagonal.
    """
    import numpy as np

    over_left, root_left = _roots(gram(left))
    over_right, root_right = _roots(gram(right))
    first, second = np.eye(len(root_left)), np.eye(len(root_left))
    middle = root_left.T @ root_right
    for _ in range(_TURNS):
        turn, rest = np.linalg.qr(middle)
        first, second, middle = second, first @ turn, rest.T
    # here root_left.T @ root_right == first @ middle @ second.T, for an even number of turns
    lengths = np.sqrt(np.square(middle).sum(axis=1))
    order = np.argsort(-lengths, kind="stable")
    lengths, scale = lengths[order], np.sqrt(np.maximum(lengths[order], 1e-30))
    new_left = project(left, (over_left @ first[:, order] * scale).astype(np.float32))
    new_right = project(right, (over_right @ second @ middle.T[:, order] / scale).astype(np.float32))
    return new_left, new_right, lengths


def leading(matrix: Floats, rank: int) -> tuple[Floats, Floats, Doubles]:
    """Return balanced factors near the best of a rank, and their singular values, by random projection.

    Source: Halko, Martinsson, Tropp: Finding structure with randomness (2011), algorithms 4.4 and 5.1.
    """
    import numpy as np

    width = min(max(rank, min(rank + 8, _WIDEST)), *matrix.shape)
    start = np.random.default_rng(width).standard_normal((matrix.shape[1], width), np.float32)
    rough = _orthonormal(project(matrix, start))
    basis = _orthonormal(project(matrix, gather(matrix, rough)))
    left, right, lengths = balanced(basis, gather(matrix, basis))
    return left[:, :rank], right[:, :rank], lengths[:rank]


def _orthonormal(thin: Floats) -> Floats:
    """Return an orthonormal basis of what the columns span."""
    import numpy as np

    return project(thin, _roots(gram(thin))[0].astype(np.float32))


def _roots(square: Doubles) -> tuple[Doubles, Doubles]:
    """Return A and B with ``B @ B.T == square`` and ``square @ A == B``: ``thin @ A`` is orthonormal."""
    import numpy as np

    nothing = max(float(square.diagonal().max()) * _NOTHING, 1e-30)
    root = np.linalg.cholesky(square + nothing * np.eye(len(square)))
    return np.linalg.inv(root).T.astype(np.float64, copy=False), root.astype(np.float64, copy=False)
