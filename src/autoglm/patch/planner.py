"""Decide how each file comes from the base: what its stretches are compared with, and what that gives.

What each stretch is best compared with, :mod:`autoglm.patch.matching` proposes; what that is worth, and in
which mode, :mod:`autoglm.patch.choice` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from autoglm.patch.choice import Choice, Pair, choose
from autoglm.patch.hints import Hints
from autoglm.patch.matching import FileMatch, Layout
from autoglm.patch.package import Dtype, Mode, OutputFile, Plane, Segment
from autoglm.patch.parallel import in_order
from autoglm.patch.sources import Source


@dataclass(frozen=True)
class PlannedFile:
    """A file and, in the order of its segments, what was chosen for each."""

    source: Source
    file: OutputFile
    choices: tuple[Choice, ...]


def plan_file(
    new: Layout,
    bases: Sequence[Layout],
    match: FileMatch,
    hints: Hints,
    threads: int,
    advance: Callable[[int], None],
) -> PlannedFile:
    """Return how ``new`` is made from ``bases``, as ``match`` proposes.

    Args:
        new: the file.
        bases: the files of the base.
        match: what each span of ``new`` is compared with.
        hints: factors that are known to have made tensors.
        threads: spans looked at together.
        advance: told how many bytes have been looked at.

    Raises:
        IntegrityError: a file changed while it was read.
        StorageError: a file cannot be read.
    """
    source = new.source
    if match.base >= 0 and bases[match.base].source.sha256 == source.sha256 and source.size:
        whole = Choice(Segment(Mode.SAME, source.size, match.base))
        plane = Plane("", Dtype.BYTES, (source.size,), (whole.segment,))
        advance(source.size)
        return PlannedFile(source, OutputFile(source.path, source.size, source.sha256, (plane,)), (whole,))
    used = {place.file for place in match.spans if place}
    by_name = {index: {span.name: span for span in bases[index].spans} for index in used}
    spans = {span.name: span for span in new.spans}
    pair = Pair(source, [base.source for base in bases], spans, by_name, hints)
    planes: list[Plane] = []
    choices: list[Choice] = []
    jobs = (partial(choose, pair, span, place) for span, place in zip(new.spans, match.spans, strict=True))
    for span, chosen in zip(new.spans, in_order(jobs, threads), strict=True):
        planes.append(Plane(span.name, span.dtype, span.shape, tuple(choice.segment for choice in chosen)))
        choices += chosen
        advance(span.length)
    file = OutputFile(source.path, source.size, source.sha256, tuple(planes))
    return PlannedFile(source, file, tuple(choices))
