"""Factors that are known to have made tensors: what a merge of an adapter leaves beside a release.

A hint file is a safetensors file with three tensors for each one that was made by factors: ``<name>.P`` (I16,
rows x rank), ``<name>.Q`` (I16, rank x columns) and ``<name>.params`` (I64: drop, limit, slope, bend, shift).
With it :func:`autoglm.patch.diff` need not search, and finds what no search could: the very numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm.errors import PackageError
from autoglm.files import storage_error
from autoglm.patch.layouts import Span, read_layout
from autoglm.patch.package import MAX_FACTOR_RANK, MAX_FACTORS, Curve, Dtype
from autoglm.patch.sources import read_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUM_PARAMS = 5


@dataclass(frozen=True)
class Hint:
    """The factors of one tensor, (rows, rank) and (rank, columns), and the curve they were put through."""

    curve: Curve
    left: NDArray[np.int16]
    right: NDArray[np.int16]


Hints = Mapping[str, Hint]


def read_hints(path: Path) -> Hints:
    """Read a hint file.

    Raises:
        PackageError: it is not one.
        StorageError: it cannot be read.
    """
    try:
        spans = {span.name: span for span in read_layout(path) if span.name}
        with path.open("rb") as file:
            content = {name: read_at(file, span.offset, span.length) for name, span in spans.items()}
    except OSError as error:
        raise storage_error(error, f"reading {path}") from error
    names = [name.removesuffix(".params") for name in spans if name.endswith(".params")]
    if not names or len(spans) != 3 * len(names):
        raise PackageError(f"{path.name} holds no factors: name what `autoglm model merge` wrote")
    return {name: _hint(path, name, spans, content) for name in names}


def _hint(path: Path, name: str, spans: Mapping[str, Span], content: Mapping[str, bytes]) -> Hint:
    import numpy as np

    keys = [f"{name}.{part}" for part in ("P", "Q", "params")]
    if not all(key in spans for key in keys):
        raise PackageError(f"{path.name}: the factors of {name} are not complete")
    left, right, params = (spans[key] for key in keys)
    types = (left.dtype, right.dtype, params.dtype) == (Dtype.I16, Dtype.I16, Dtype.I64)
    shapes = len(left.shape) == len(right.shape) == 2 and params.shape == (_NUM_PARAMS,)
    if (
        not types
        or not shapes
        or left.shape[1] != right.shape[0]
        or not 1 <= right.shape[0] <= MAX_FACTOR_RANK
    ):
        raise PackageError(f"{path.name}: the factors of {name} have wrong types or shapes")
    drop, limit, slope, bend, shift = np.frombuffer(content[keys[2]], "<i8").tolist()
    steep = abs(slope) + abs(bend) > 65535 or not -31 <= shift <= 31
    if not 0 <= drop <= 31 or not 1 <= limit <= 32767 or steep or left.count + right.count > MAX_FACTORS:
        raise PackageError(f"{path.name}: the curve of {name} is not one that a package can carry")
    numbers = [np.frombuffer(content[key], "<i2").reshape(spans[key].shape) for key in keys[:2]]
    curve = Curve(right.shape[0], drop, limit, 0, slope, bend, shift)
    return Hint(curve, numbers[0], numbers[1])
