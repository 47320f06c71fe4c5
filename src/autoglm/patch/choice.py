"""Choose the cheapest way to get a tensor of the new file from the base, by what each would cost.

The cost of a coded mode is the entropy of its tokens, counted over the whole tensor; that of the raw mode is
measured, on the whole of small tensors and on a sample of large ones. Modes that cannot win are not tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from autoglm.patch import core, package, zstd
from autoglm.patch.companions import companion
from autoglm.patch.hints import Hints
from autoglm.patch.layouts import Span
from autoglm.patch.lowrank import find
from autoglm.patch.moved import Moved, inputs_of
from autoglm.patch.package import Dtype, Mode, Part, Plane, Scales, Segment
from autoglm.patch.similarity import Place
from autoglm.patch.sources import Source, opened, read_at
from autoglm.patch.tables import entropy_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

# How far before its own place a raw piece of a large file looks into the base.
_BEFORE = 1 << 20
_SAMPLE_BYTES = 64 << 10
_COMPARED_BYTES = 1 << 20
# What a block of its own costs in the package: its hash, its lengths, zstd's frame.
_BLOCK_BITS = 8 * 48
# Only a difference that costs this share of the elements' own bits can be dearer than no base at all.
_WORTH_FULL = 0.5


@dataclass(frozen=True)
class Choice:
    """A segment and, when it is coded, how often it uses each token in each context.

    Attributes:
        segment: with everything but its tables.
        counts: (contexts, 64); None when nothing is coded.
        factors: of a PREDICTED segment.
        factor_counts: (64, 64), one context a rank.
    """

    segment: Segment
    counts: Counts | None = None
    factors: core.Factors | None = None
    factor_counts: Counts | None = None


@dataclass(frozen=True)
class Pair:
    """A new file beside the base files it is made from; spans by name, those of the base by file."""

    new: Source
    bases: Sequence[Source]
    spans: Mapping[str, Span]
    base_spans: Mapping[int, Mapping[str, Span]]
    hints: Hints


def choose(pair: Pair, span: Span, place: Place | None) -> list[Choice]:
    """Return the cheapest segments for one span, compared with what lies at a place of the base, in order.

    Raises:
        IntegrityError: a file changed while it was read.
        StorageError: a file cannot be read.
    """
    base = pair.bases[place.file] if place else pair.new
    with opened(pair.new) as file, opened(base) as base_file:
        twin, index = (place.span, place.file) if place else (None, -1)
        search = _Search(pair, span, twin, index, file, base_file)
        if twin and twin.length == span.length and search.equal(0, span.length):
            return [Choice(Segment(Mode.SAME, span.length, index, twin.offset))] if span.length else []
        if span.dtype not in package.CODED_DTYPES or not span.length:
            return search.bytes_only()
        if twin and (twin.dtype, twin.length) == (span.dtype, span.length):
            return search.against(twin)
        if twin and (twin.dtype, twin.shape[1:]) == (span.dtype, span.shape[1:]):
            return search.resized(twin)
        return search.cheapest([Segment(Mode.FULL, span.length)])


def raw_bits(counts: Counts, mode: Mode, dtype: Dtype) -> int:
    """Return the raw bits that follow all the counted tokens."""
    import numpy as np

    extra = np.frombuffer(b"".join(core.extra_bits(mode, dtype)), np.uint8).reshape(counts.shape)
    return int((counts * extra).sum())


def factor_raw_bits(counts: Counts) -> int:
    """Return the raw bits that follow the counted tokens of factors, which are spelled as 16-bit numbers."""
    import numpy as np

    extra = np.frombuffer(core.extra_bits(Mode.DIFFERENCE, Dtype.BF16)[0], np.uint8)
    return int((counts * extra).sum())


def coded_bits(counts: Counts, mode: Mode, dtype: Dtype) -> float:
    """Return what the counted tokens cost with tables of their own, roughly."""
    return entropy_bits(counts) + raw_bits(counts, mode, dtype)


@dataclass(frozen=True)
class _Search:
    pair: Pair
    span: Span
    twin: Span | None
    index: int
    file: IO[bytes]
    base_file: IO[bytes]

    def against(self, twin: Span) -> list[Choice]:
        """Try all modes that a tensor of the same type and size in the base allows."""
        difference = Segment(Mode.DIFFERENCE, self.span.length, self.index, twin.offset)
        candidates = [difference]
        scales = self._scales(twin) if self._has_rows() else None
        changed = scales if scales and self._scales_differ(scales) else None
        if self.span.dtype is Dtype.I8 and changed:
            candidates.append(replace(difference, mode=Mode.SCALED, scales=changed))
        if self.span.dtype is Dtype.U8 and self._has_rows():
            candidates.append(replace(difference, mode=Mode.PAIRS, scales=changed))
        return self.cheapest(candidates, changed)

    def resized(self, twin: Span) -> list[Choice]:
        """Code the rows that both have against the base and the rest on its own."""
        span = self.span
        rows = min(span.shape[0], twin.shape[0]) if span.shape and twin.shape else 0
        common = span.length // span.shape[0] * rows if rows else 0
        if not common:
            return self.cheapest([Segment(Mode.FULL, span.length)])
        if self.equal(0, common):
            chosen = [Choice(Segment(Mode.SAME, common, self.index, twin.offset))]
        else:
            chosen = [self._measure(Segment(Mode.DIFFERENCE, common, self.index, twin.offset), 0)]
        if common < span.length:
            rest = Segment(Mode.FULL, span.length - common)
            chosen.append(self._measure(rest, common // span.dtype.size))
        return chosen

    def cheapest(self, candidates: list[Segment], scales: Scales | None = None) -> list[Choice]:
        """Choose between the candidates, a prediction, FULL where it may win, and raw bytes."""
        measured = [self._measured(segment) for segment in candidates]
        bits, choice = min(measured, key=lambda pair: pair[0])
        if package.allowed(Mode.PREDICTED, self.span.dtype) and choice.segment.mode is not Mode.FULL:
            bits, choice = self._predicted(bits, choice, scales)
        if choice.segment.mode is not Mode.FULL and bits > _WORTH_FULL * 8 * self.span.length:
            full = self._measured(Segment(Mode.FULL, self.span.length))
            bits, choice = min((bits, choice), full, key=lambda pair: pair[0])
        return self.bytes_only() if self._raw_is_cheaper(bits) else [choice]

    def _predicted(self, bits: float, choice: Choice, scales: Scales | None) -> tuple[float, Choice]:
        """Search for factors that predict the span; return what is cheaper with its bits."""
        span, found = self.span, None
        if not self._has_rows() or (scales and scales.group != span.length // span.shape[0]):
            return bits, choice
        segment = replace(
            choice.segment, mode=Mode.PREDICTED, scales=scales, top=self._top(choice.segment, 0)
        )
        moved = Moved(span, segment, self.file, self.base_file)
        if hint := self.pair.hints.get(span.name):
            found = moved.by_hint(hint, bits)
        found = found or find(moved.matrix, moved.count, best_bits=bits)
        if found is None:
            return bits, choice
        segment = replace(segment, curve=found.curve)
        return found.bits, Choice(segment, found.counts, found.factors, found.factor_counts)

    def _measured(self, segment: Segment) -> tuple[float, Choice]:
        choice = self._measure(segment, 0)
        assert choice.counts is not None
        return coded_bits(choice.counts, segment.mode, self.span.dtype), choice

    def _measure(self, segment: Segment, start: int) -> Choice:
        """Count a segment's tokens; it begins ``start`` elements into the span."""
        import numpy as np

        span, size = self.span, self.span.dtype.size
        segment = replace(segment, top=self._top(segment, start))
        plane = Plane(span.name, span.dtype, span.shape, (segment,))
        histogram = core.new_histogram(package.num_contexts(segment.mode, span.dtype))
        total, changed = segment.length // size, 0
        step = package.MAX_BLOCK_TOKENS // package.num_tokens(segment.mode, span.dtype)
        for at in range(0, total, step):
            part = Part(plane, segment, at, min(step, total - at), 0)
            elements = read_at(self.file, span.offset + (start + at) * size, part.size)
            changed += core.count_tokens(
                part, inputs_of(part, self.file, self.base_file), elements, histogram
            )
        counts = np.array(histogram, np.int64).reshape(-1, package.NUM_TOKENS)
        # rounded up, so that 0 says that nothing changed
        ppm = -(-changed * 10**6 // total) if segment.mode is not Mode.FULL else 10**6
        return Choice(replace(segment, changed_ppm=ppm), counts)

    def _top(self, segment: Segment, start: int) -> int:
        """Find the largest exponent of what gives the contexts: the base, or the elements themselves."""
        if self.span.dtype not in package.FLOAT_DTYPES and not self.span.dtype.is_record:
            return 0
        full = segment.mode is Mode.FULL
        file = self.file if full else self.base_file
        offset = self.span.offset + start * self.span.dtype.size if full else segment.base_offset
        step = package.MAX_BLOCK_TOKENS * self.span.dtype.size
        return max(
            core.top_exponent(self.span.dtype, read_at(file, offset + at, min(step, segment.length - at)))
            for at in range(0, segment.length, step)
        )

    def _has_rows(self) -> bool:
        rows = self.span.shape[0] if self.span.shape else 0
        return rows > 0 and 0 < self.span.length // self.span.dtype.size // rows <= package.MAX_COLUMNS

    def _scales(self, twin: Span) -> Scales | None:
        """Find the scales of a quantised span in both files, the new ones before it."""
        old, new = companion(self.pair.base_spans[self.index], twin), companion(self.pair.spans, self.span)
        if not old or not new or old.elements_per_scale != new.elements_per_scale:
            return None
        if old.span.dtype is not new.span.dtype or new.span.end > self.span.offset:
            return None
        group = new.elements_per_scale
        return Scales(new.span.dtype, group, old.span.offset, new.span.offset) if self._fits(group) else None

    def _fits(self, group: int) -> bool:
        return group <= package.MAX_COLUMNS and self.span.dtype.size == 1

    def _scales_differ(self, scales: Scales) -> bool:
        size = self.span.length // scales.group * scales.dtype.size
        return read_at(self.file, scales.new, size) != read_at(self.base_file, scales.old, size)

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

    def bytes_only(self) -> list[Choice]:
        """Cut the span into pieces that equal the base's, and pieces for zstd with the base beside them."""
        return [Choice(segment) for segment in self._byte_segments()]

    def _byte_segments(self) -> Iterator[Segment]:
        span, twin = self.span, self.twin
        for start in range(0, span.length, package.MAX_RAW_BYTES):
            length = min(package.MAX_RAW_BYTES, span.length - start)
            if twin is None or twin.length < package.MIN_DICTIONARY_BYTES:
                yield Segment(Mode.RAW, length, changed_ppm=10**6)
            elif self.equal(start, length):
                yield Segment(Mode.SAME, length, self.index, twin.offset + start)
            else:
                first = max(0, min(start - _BEFORE, twin.length - package.MAX_DICTIONARY_BYTES))
                size = min(twin.length - first, package.MAX_DICTIONARY_BYTES)
                base = self.index
                yield Segment(Mode.RAW, length, base, twin.offset + first, dictionary=size, changed_ppm=10**6)

    def equal(self, start: int, length: int) -> bool:
        """Tell whether so many bytes from ``start`` on are the same in both spans."""
        if self.twin is None or start + length > self.twin.length:
            return False
        for at in range(start, start + length, _COMPARED_BYTES):
            size = min(_COMPARED_BYTES, start + length - at)
            new = read_at(self.file, self.span.offset + at, size)
            if new != read_at(self.base_file, self.twin.offset + at, size):
                return False
        return True
