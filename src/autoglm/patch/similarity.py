"""Which tensor of the base looks like a new one: compared by samples, never as a whole.

A sample is four stretches of a tensor, a thousand bytes in all. Equal samples mean equal tensors, or nearly.
Otherwise the signs of the sampled elements (against their median) are compared: an update turns few of
them, while those of unrelated weights agree in half of all places. Signs are summed in numbers that floats
hold exactly, so the outcome is the same on every machine. The work is bounded however many tensors there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from autoglm.patch.layouts import Span
from autoglm.patch.package import Dtype
from autoglm.patch.sources import Source, opened, read_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WINDOWS = 4
_WINDOW_BYTES = 256
# Fewer signs than this agree by chance.
_MIN_SIGNS = 32
# Pairs of tensors compared at most for one element type and size, and how many rows at a time.
_MAX_PAIRS = 1 << 25
_ROWS = 256
_FINALISTS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """A span of one of several files."""

    file: int
    span: Span

    @property
    def position(self) -> tuple[int, int]:
        """The file's index and the offset in it, to sort by."""
        return self.file, self.span.offset


def read_samples(sources: Sequence[Source], places: Iterable[Place]) -> dict[Place, bytes]:
    """Return a sample of each place's content; those of spans of one length compare element by element.

    Raises:
        IntegrityError: a file is shorter than it was.
        StorageError: a file cannot be read.
    """
    samples: dict[Place, bytes] = {}
    ordered = sorted(places, key=lambda place: place.position)
    for index, group in groupby(ordered, key=lambda place: place.file):
        with opened(sources[index]) as file:
            for place in group:
                pieces = (read_at(file, offset, length) for offset, length in _windows(place.span))
                samples[place] = b"".join(pieces)
    return samples


def _windows(span: Span) -> list[tuple[int, int]]:
    """Return the offset and length of each stretch of a sample, in whole elements."""
    size, count = span.dtype.size, span.count
    wanted = max(1, _WINDOW_BYTES // size)
    if count <= _WINDOWS * wanted:
        return [(span.offset, span.length)]
    starts = [(count - wanted) * window // (_WINDOWS - 1) for window in range(_WINDOWS)]
    return [(span.offset + start * size, wanted * size) for start in starts]


def related(dtype: Dtype, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    """Tell for each pair of samples of one length and type whether the signs of most elements agree."""
    found: list[bool] = []
    for at in range(0, len(pairs), _ROWS):
        ours, theirs = (_signs(dtype, samples) for samples in zip(*pairs[at : at + _ROWS], strict=True))
        agreement = (ours * theirs).sum(axis=1)
        found += [bool(close) for close in 2 * agreement >= _needed(ours, theirs)]
    return found


def closest(dtype: Dtype, samples: Sequence[bytes], candidates: Sequence[bytes]) -> list[list[int]]:
    """Return for each sample the related candidates, the one with the least difference first.

    Args:
        dtype: the type of all elements.
        samples, candidates: of spans of one length.
    """
    if not candidates:
        return [[] for _ in samples]
    theirs = _signs(dtype, candidates)
    found: list[list[int]] = []
    for at in range(0, len(samples), _ROWS):
        rows = samples[at : at + _ROWS]
        if (at + len(rows)) * len(candidates) > _MAX_PAIRS:
            break
        found += _closest(dtype, rows, candidates, theirs)
    return found + [[] for _ in samples[len(found) :]]


def _closest(
    dtype: Dtype, samples: Sequence[bytes], candidates: Sequence[bytes], theirs: NDArray[np.float32]
) -> list[list[int]]:
    import numpy as np

    ours = _signs(dtype, samples)
    agreement = ours @ theirs.T  # (samples, candidates)
    strength = np.abs(theirs).sum(axis=1)
    found: list[list[int]] = []
    for sample, row, scores in zip(samples, ours, agreement, strict=True):
        needed = np.maximum(np.maximum(np.abs(row).sum(), strength), _MIN_SIGNS)
        close = np.flatnonzero(2 * scores >= needed)
        finalists = close[np.argsort(-scores[close], kind="stable")][:_FINALISTS]
        distances = {int(index): _distance(dtype, sample, candidates[index]) for index in finalists}
        found.append(sorted(distances, key=lambda index: (distances[index], index)))
    return found


def _needed(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    strengths = np.maximum(np.abs(ours).sum(axis=1), np.abs(theirs).sum(axis=1))
    return np.maximum(strengths, _MIN_SIGNS)


def _values(dtype: Dtype, sample: bytes) -> NDArray[np.float64]:
    """Return a sample's elements as signed integers; floats, whose sign is the top bit, too."""
    import numpy as np

    size = dtype.size if dtype.size in (2, 4, 8) else 1
    return np.frombuffer(sample, f"<i{size}").astype(np.float64)


def _signs(dtype: Dtype, samples: Sequence[bytes]) -> NDArray[np.float32]:
    """Return -1, 0 or 1 for each element of each sample: below, at or above its sample's median."""
    import numpy as np

    signs = np.empty((len(samples), _values(dtype, samples[0]).size), np.float32)
    for row, sample in zip(signs, samples, strict=True):
        values = _values(dtype, sample)
        row[:] = np.sign(values - np.median(values))
    return signs


def _distance(dtype: Dtype, ours: bytes, theirs: bytes) -> float:
    import numpy as np

    return float(np.abs(_values(dtype, ours) - _values(dtype, theirs)).sum())
