"""Tensors in both versions: what parts of them are coded against, and matrices for the search of factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from autoglm.patch import core, package
from autoglm.patch.hints import Hint
from autoglm.patch.layouts import Span
from autoglm.patch.lowrank import Found, from_hint
from autoglm.patch.observed import Matrix
from autoglm.patch.package import Curve, Dtype, Mode, Part, Plane, Segment
from autoglm.patch.sources import read_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]


def inputs_of(
    part: Part, file: IO[bytes], base_file: IO[bytes], factors: core.Factors | None = None
) -> core.Inputs:
    """Read what a part is coded against: base elements and old scales of the base, new scales of the file."""
    segment = part.segment
    if segment.mode is Mode.FULL:
        return core.Inputs()
    base = read_at(base_file, segment.base_offset + part.start * part.plane.dtype.size, part.size)
    if segment.scales is None:
        return core.Inputs(base, factors=factors)
    first, past = part.groups
    width = segment.scales.dtype.size
    old = read_at(base_file, segment.scales.old + first * width, (past - first) * width)
    new = read_at(file, segment.scales.new + first * width, (past - first) * width)
    return core.Inputs(base, old, new, factors)


@dataclass(frozen=True)
class Moved:
    """A matrix in both versions, for the search of factors."""

    span: Span
    segment: Segment
    file: IO[bytes]
    base_file: IO[bytes]

    @property
    def matrix(self) -> Matrix:
        """What the search looks at."""
        rows = self.span.shape[0]
        columns = self.span.length // self.span.dtype.size // rows
        return Matrix(self.span.dtype, rows, columns, self.segment.top, self._read, self._ratios())

    def by_hint(self, hint: Hint, bits: float) -> Found | None:
        """Return the hint's factors where they fit and pay."""
        if (len(hint.left), hint.right.shape[1]) != (self.matrix.rows, self.matrix.columns):
            return None
        return from_hint(self.matrix, self.count, hint.curve, hint.left, hint.right, best_bits=bits)

    def _read(self, first: int, past: int) -> tuple[bytes, bytes]:
        row = self.span.length // self.span.shape[0]
        size = (past - first) * row
        old = read_at(self.base_file, self.segment.base_offset + first * row, size)
        return old, read_at(self.file, self.span.offset + first * row, size)

    def _ratios(self) -> NDArray[np.float64] | None:
        scales = self.segment.scales
        if scales is None:
            return None
        size = self.span.shape[0] * scales.dtype.size
        old, new = read_at(self.base_file, scales.old, size), read_at(self.file, scales.new, size)
        return ratios(scales.dtype, old, new)

    def count(self, curve: Curve, factors: core.Factors, first: int, past: int) -> Counts:
        """Count the tokens of some rows as they would be coded with these factors."""
        import numpy as np

        segment = replace(self.segment, curve=curve)
        plane = Plane("", self.span.dtype, self.span.shape, (segment,))
        histogram = core.new_histogram(package.num_contexts(Mode.PREDICTED, self.span.dtype))
        columns, size = plane.columns, self.span.dtype.size
        for at in range(first * columns, past * columns, package.MAX_BLOCK_TOKENS):
            part = Part(plane, segment, at, min(package.MAX_BLOCK_TOKENS, past * columns - at), 0)
            given = inputs_of(part, self.file, self.base_file, factors)
            elements = read_at(self.file, self.span.offset + at * size, part.size)
            core.count_tokens(part, given, elements, histogram)
        return np.array(histogram, np.int64).reshape(-1, package.NUM_TOKENS)


def ratios(dtype: Dtype, old: bytes, new: bytes) -> NDArray[np.float64]:
    """Return old / new of scales, within what the format can express; 1 where that is not a number."""
    import numpy as np

    def values(content: bytes) -> NDArray[np.float64]:
        if dtype is Dtype.BF16:
            return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.frombuffer(content, "<f2" if dtype is Dtype.F16 else "<f4").astype(np.float64)

    before, after = values(old), values(new)
    good = np.isfinite(before) & np.isfinite(after) & (before > 0) & (after > 0)
    return np.clip(np.divide(before, after, out=np.ones(len(before)), where=good), 0.0, 8.0)
