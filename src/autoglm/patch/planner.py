"""Decide how each stretch of a new file comes from the base: the cheapest mode, by what it would cost.

Tensors are matched by name; other files by path, or by content when a file only moved. The cost of a coded
mode is the entropy of its tokens, counted over the whole tensor; that of the raw mode is measured, on the
whole of small tensors and on a sample of large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from autoglm.patch import core, package, zstd
from autoglm.patch.layouts import Span, read_layout
from autoglm.patch.package import Dtype, Mode, OutputFile, Part, Plane, Segment
from autoglm.patch.parallel import in_order
from autoglm.patch.sources import Source, opened, read_at
from autoglm.patch.tables import entropy_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

# How far before its own place a raw piece of a large file looks into the base.
_BEFORE = 1 << 20
_SAMPLE_BYTES = 64 << 10
# What a block of its own costs in the package: its hash, its lengths, zstd's frame.
_BLOCK_BITS = 8 * 48


@dataclass(frozen=True)
class PlannedFile:
    """A file and, in the order of its segments, the token counts of those that are coded (else None)."""

    source: Source
    file: OutputFile
    counts: tuple[Counts | None, ...]


Planned = list[tuple[Segment, "Counts | None"]]


def match(new: Source, bases: Sequence[Source]) -> int:
    """Return the index of the base file that ``new`` is best made from, -1 for none."""
    same = [index for index, base in enumerate(bases) if base.sha256 == new.sha256]
    named = [index for index, base in enumerate(bases) if base.path == new.path]
    return (same or named or [-1])[0]


def plan_file(
    new: Source, bases: Sequence[Source], index: int, threads: int, advance: Callable[[int], None]
) -> PlannedFile:
    """Return how ``new`` is made from ``bases[index]``, or from nothing when ``index`` is -1.

    Raises:
        IntegrityError: a file changed while it was read.
        StorageError: a file cannot be read.
    """
    base = bases[index] if index >= 0 else None
    if base and base.sha256 == new.sha256 and new.size:
        whole = Segment(Mode.SAME, new.size, index)
        plane = Plane("", Dtype.BYTES, (new.size,), (whole,))
        advance(new.size)
        return PlannedFile(new, OutputFile(new.path, new.size, new.sha256, (plane,)), (None,))
    spans, base_spans = read_layout(new.location), read_layout(base.location) if base else []
    pair = _Pair(new, base, index, {s.name: s for s in spans}, {s.name: s for s in reversed(base_spans)})
    planes: list[Plane] = []
    counts: list[Counts | None] = []
    results = in_order(((lambda span=span: pair.plan(span)) for span in spans), threads)
    for span, planned in zip(spans, results, strict=True):
        planes.append(Plane(span.name, span.dtype, span.shape, tuple(segment for segment, _ in planned)))
        counts += [count for _, count in planned]
        advance(span.length)
    return PlannedFile(new, OutputFile(new.path, new.size, new.sha256, tuple(planes)), tuple(counts))


def extra_bits(mode: Mode, dtype: Dtype) -> list[int]:
    """Return how many raw bits follow each of the 64 tokens."""
    exponent, mantissa = package.float_fields(dtype)
    if mode is Mode.FULL and exponent:
        return [mantissa - 1 + (exponent if token >= 60 else 0) for token in range(package.NUM_TOKENS)]
    direct, fine = {1: (32, 3), 2: (16, 2), 4: (4, 1)}[dtype.size]
    octave = direct.bit_length() - 1
    return [
        0 if token < direct else octave + ((token - direct) >> fine) - fine
        for token in range(package.NUM_TOKENS)
    ]


def raw_bits(counts: Counts, mode: Mode, dtype: Dtype) -> int:
    """Return the raw bits that follow all the counted tokens."""
    return int(
        sum(int(n) * bits for n, bits in zip(counts.sum(axis=0), extra_bits(mode, dtype), strict=True))
    )


@dataclass(frozen=True)
class _Pair:
    """A new file beside the base file it is made from; spans by name."""

    new: Source
    base: Source | None
    index: int
    spans: dict[str, Span]
    base_spans: dict[str, Span]

    def plan(self, span: Span) -> Planned:
        """Find the cheapest segments for one span."""
        twin = self.base_spans.get(span.name)
        with opened(self.new) as file, opened(self.base or self.new) as base_file:
            search = _Search(self, span, twin, file, base_file)
            if span.dtype not in package.CODED_DTYPES or not span.length:
                return search.bytes_only()
            if twin is None or (twin.dtype, twin.shape[1:]) != (span.dtype, span.shape[1:]):
                return search.coded((Mode.FULL,), Segment(Mode.FULL, span.length))
            if twin.shape == span.shape:
                return search.against_twin()
            return search.resized()

    def scales(self, span: Span) -> Segment | None:
        """Describe a SCALED segment, when both files hold row scales for the span, the new ones before it."""
        old, new = (spans.get(f"{span.name}.scale") for spans in (self.base_spans, self.spans))
        if span.dtype is not Dtype.I8 or len(span.shape) < 2 or not old or not new:
            return None
        rows_fit = old.length == new.length == span.shape[0] * new.dtype.size
        if old.dtype is not new.dtype or new.dtype not in package.SCALE_DTYPES or not rows_fit:
            return None
        if new.end > span.offset or not 0 < span.length // span.shape[0] <= package.MAX_COLUMNS:
            return None
        twin = self.base_spans[span.name]
        return Segment(
            Mode.SCALED,
            span.length,
            self.index,
            twin.offset,
            scale_dtype=new.dtype,
            base_scale=old.offset,
            new_scale=new.offset,
        )


@dataclass
class _Search:
    """The search for one span, with its files open."""

    pair: _Pair
    span: Span
    twin: Span | None
    file: IO[bytes]
    base_file: IO[bytes]

    def bytes_only(self) -> Planned:
        return [(segment, None) for segment in self._byte_segments()]

    def against_twin(self) -> Planned:
        """Choose for a tensor whose twin has its shape."""
        assert self.twin is not None
        difference = Segment(Mode.DIFFERENCE, self.span.length, self.pair.index, self.twin.offset)
        scaled = self.pair.scales(self.span)
        if scaled and not self._scales_differ(scaled):
            scaled = None
        return self.coded((Mode.DIFFERENCE, Mode.FULL), difference, *([scaled] if scaled else []))

    def resized(self) -> Planned:
        """Code the rows that both have against the base and the rest on its own."""
        assert self.twin is not None
        span, twin = self.span, self.twin
        rows = min(span.shape[0], twin.shape[0]) if span.shape else 0
        common = span.length // span.shape[0] * rows if rows else 0
        if not common:
            return self.coded((Mode.FULL,), Segment(Mode.FULL, span.length))
        head = Segment(Mode.DIFFERENCE, common, self.pair.index, twin.offset)
        planned: Planned = [self._measure(head, 0)]
        if planned[0][0].changed_ppm == 0:
            planned = [(Segment(Mode.SAME, common, self.pair.index, twin.offset), None)]
        if common < span.length:
            rest = Segment(Mode.FULL, span.length - common)
            planned.append(self._measure(rest, common // span.dtype.size))
        return planned

    def coded(self, modes: tuple[Mode, ...], *candidates: Segment) -> Planned:
        """Choose between the candidates, FULL where ``modes`` has it, and raw bytes."""
        choices = list(candidates)
        if Mode.FULL in modes and choices[0].mode is not Mode.FULL:
            choices.append(Segment(Mode.FULL, self.span.length))
        best: tuple[float, Segment, Counts | None] | None = None
        for choice in choices:
            segment, counts = self._measure(choice, 0)
            if segment.mode is Mode.DIFFERENCE and segment.changed_ppm == 0:
                return [(Segment(Mode.SAME, segment.length, segment.base, segment.base_offset), None)]
            assert counts is not None
            cost = entropy_bits(counts) + raw_bits(counts, segment.mode, self.span.dtype)
            if best is None or cost < best[0]:
                best = cost, segment, counts
        assert best is not None
        if self._raw_is_cheaper(best[0]):
            return self.bytes_only()
        return [(best[1], best[2])]

    def _measure(self, segment: Segment, start: int) -> tuple[Segment, Counts]:
        """Count a segment's tokens; it begins ``start`` elements into the span."""
        import numpy as np

        span, size = self.span, self.span.dtype.size
        segment = replace(segment, top=self._top(segment, start))
        plane = Plane(span.name, span.dtype, span.shape, (segment,))
        histogram = core.new_histogram(segment.mode, span.dtype)
        total, changed = segment.length // size, 0
        for at in range(0, total, package.MAX_BLOCK_ELEMENTS):
            part = Part(plane, segment, at, min(package.MAX_BLOCK_ELEMENTS, total - at), 0)
            elements = read_at(self.file, span.offset + (start + at) * size, part.count * size)
            changed += core.count_tokens(
                part, inputs_of(part, self.file, self.base_file), elements, histogram
            )
        counts = np.array(histogram, np.int64).reshape(-1, package.NUM_TOKENS)
        # rounded up, so that 0 says that nothing changed
        ppm = -(-changed * 10**6 // total) if segment.mode is not Mode.FULL else 10**6
        return replace(segment, changed_ppm=ppm), counts

    def _top(self, segment: Segment, start: int) -> int:
        """Find the largest exponent of what gives the contexts: the base, or the elements themselves."""
        if not package.float_fields(self.span.dtype)[0]:
            return 0
        full = segment.mode is Mode.FULL
        file = self.file if full else self.base_file
        offset = self.span.offset + start * self.span.dtype.size if full else segment.base_offset
        step = package.MAX_BLOCK_ELEMENTS * self.span.dtype.size
        return max(
            core.top_exponent(self.span.dtype, read_at(file, offset + at, min(step, segment.length - at)))
            for at in range(0, segment.length, step)
        )

    def _scales_differ(self, scaled: Segment) -> bool:
        size = self.span.shape[0] * scaled.scale_dtype.size
        return read_at(self.file, scaled.new_scale, size) != read_at(self.base_file, scaled.base_scale, size)

    def _raw_is_cheaper(self, bits: float) -> bool:
        sample = min(self.span.length, _SAMPLE_BYTES)
        middle = (self.span.length - sample) // 2
        content = read_at(self.file, self.span.offset + middle, sample)
        prefix = b""
        if self.twin and self.twin.length == self.span.length and sample >= package.MIN_DICTIONARY_BYTES:
            prefix = read_at(self.base_file, self.twin.offset + middle, sample)
        level = zstd.LEVEL if sample == self.span.length else 3
        frame = 8 * len(zstd.compress(content, prefix=prefix, level=level))
        return _BLOCK_BITS + frame * (self.span.length / sample) < bits

    def _byte_segments(self) -> Iterator[Segment]:
        """Cut the span into pieces that equal the base's, and pieces for zstd with the base beside them."""
        span, twin = self.span, self.twin
        for start in range(0, span.length, package.MAX_RAW_BYTES):
            length = min(package.MAX_RAW_BYTES, span.length - start)
            if self.pair.base is None or twin is None or twin.length < package.MIN_DICTIONARY_BYTES:
                yield Segment(Mode.RAW, length, changed_ppm=10**6)
            elif self._equal(twin, start, length):
                yield Segment(Mode.SAME, length, self.pair.index, twin.offset + start)
            else:
                first = max(0, min(start - _BEFORE, twin.length - package.MAX_DICTIONARY_BYTES))
                size = min(twin.length - first, package.MAX_DICTIONARY_BYTES)
                base = self.pair.index
                yield Segment(Mode.RAW, length, base, twin.offset + first, dictionary=size, changed_ppm=10**6)

    def _equal(self, twin: Span, start: int, length: int) -> bool:
        if start + length > twin.length:
            return False
        new = read_at(self.file, self.span.offset + start, length)
        return new == read_at(self.base_file, twin.offset + start, length)


def inputs_of(part: Part, file: IO[bytes], base_file: IO[bytes]) -> core.Inputs:
    """Read what a part is coded against: base elements from the base, new scales from the new file."""
    segment, size = part.segment, part.plane.dtype.size
    if segment.mode is Mode.FULL:
        return core.Inputs()
    base = read_at(base_file, segment.base_offset + part.start * size, part.count * size)
    if segment.mode is Mode.DIFFERENCE:
        return core.Inputs(base)
    first, past = part.rows
    width = segment.scale_dtype.size
    old = read_at(base_file, segment.base_scale + first * width, (past - first) * width)
    return core.Inputs(base, old, read_at(file, segment.new_scale + first * width, (past - first) * width))
