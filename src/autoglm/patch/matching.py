"""Which stretch of which base file each stretch of the new files is best made from.

Tensors are found by name, in the file of the same path first and then in any other, so models may be divided
into other files than before. A tensor that has another name, or whose namesake holds something else (layers
that moved up), is found by content: an equal one, else the one that differs least, if it is related at all.
Bytes between tensors follow the tensor before them. A match is a proposal: what it saves is for the planner
to measure, and a bad one costs size, never correctness.

    >>> layouts, bases = read_layouts(new_sources), read_layouts(base_sources)          # doctest: +SKIP
    >>> for layout, matches in zip(layouts, match_spans(layouts, bases)):               # doctest: +SKIP
    ...     for span, match in zip(layout.spans, matches.spans): ...
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from autoglm.files import storage_error
from autoglm.patch.layouts import Span, read_layout
from autoglm.patch.package import Dtype
from autoglm.patch.similarity import Place, closest, read_samples, related
from autoglm.patch.sources import Source, opened, read_at

# Bytes between tensors are looked up by so many of their first: all, where they are padding.
_GAP_SAMPLE_BYTES = 4096
# A file that is found by its suffix alone has at most so many times the other's size.
_SIZE_RATIO = 2
# How many tensors of one name, or of one content, are looked at to choose the likest.
_MAX_CHOICE = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """A file and the spans that cover it, in order."""

    source: Source
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class FileMatch:
    """What a new file is best made from.

    Attributes:
        base: index of the base file that is its counterpart, -1 for none.
        spans: for each of its spans the place in a base file, which may be another one, or None. A match with
            the span's element type and length is meant to be compared element by element, whatever the
            shapes; one whose first dimension alone differs, row by row; any other serves as a dictionary.
    """

    base: int
    spans: tuple[Place | None, ...]


def read_layouts(sources: Iterable[Source]) -> list[Layout]:
    """Read the layouts of files.

    Raises:
        StorageError: a file cannot be read.
    """
    layouts: list[Layout] = []
    for source in sources:
        try:
            layouts.append(Layout(source, tuple(read_layout(source.location))))
        except OSError as error:
            raise storage_error(error, f"reading {source.location}") from error
    return layouts


def match_files(new: Sequence[Source], bases: Sequence[Source]) -> list[int]:
    """Return for each new file the index of its counterpart in the base, -1 for none.

    That is an equal file, else the one of the same path, of the same name in another directory, or of the
    same suffix and about the same size. A single file is the counterpart of a single file.
    """
    if len(new) == len(bases) == 1:
        return [0]
    index = _FileIndex(bases)
    return [index.find(source) for source in new]


def match_spans(new: Sequence[Layout], bases: Sequence[Layout]) -> list[FileMatch]:
    """Find what each span of each new file is best made from.

    Raises:
        IntegrityError: a file is shorter than it was.
        StorageError: a file cannot be read.
    """
    counterparts = match_files([layout.source for layout in new], [layout.source for layout in bases])
    found = _Tensors(new, bases, counterparts).match()
    gaps = _Gaps(bases)
    matches: list[FileMatch] = []
    for index, layout in enumerate(new):
        tensors = [found.get(Place(index, span)) for span in layout.spans]
        home = counterparts[index] if counterparts[index] >= 0 else _home(tensors)
        matches.append(FileMatch(home, tuple(gaps.fill(layout, tensors, home) if home >= 0 else tensors)))
    return matches


class _FileIndex:
    """The base's files by all that a counterpart is found by."""

    def __init__(self, bases: Sequence[Source]) -> None:
        self.places: dict[tuple[str, str], int] = {}
        self.sizes: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for index, base in enumerate(bases):
            for key in _keys(base):
                self.places.setdefault(key, index)
            self.sizes[PurePosixPath(base.path).suffix].append((base.size, index))
        for sizes in self.sizes.values():
            sizes.sort()

    def find(self, source: Source) -> int:
        for key in _keys(source):
            if (index := self.places.get(key)) is not None:
                return index
        return self._of_similar_size(self.sizes.get(PurePosixPath(source.path).suffix, []), source.size)

    def _of_similar_size(self, sizes: list[tuple[int, int]], size: int) -> int:
        at = bisect(sizes, (size,))
        nearest = min(sizes[max(0, at - 1) : at + 1], key=lambda entry: abs(entry[0] - size), default=(0, -1))
        return nearest[1] if nearest[0] <= _SIZE_RATIO * size and size <= _SIZE_RATIO * nearest[0] else -1


def _keys(source: Source) -> tuple[tuple[str, str], ...]:
    """Return hashes and paths that a counterpart is looked up by, the best first; "" stands for any."""
    name = PurePosixPath(source.path).name
    return (source.sha256, source.path), (source.sha256, ""), ("", source.path), ("", f"/{name}")


_Found = dict[Place, Place]
_Bucket = tuple[Dtype, int]


class _Tensors:
    """The search for tensors: by name, then by content among those of one element type and size."""

    def __init__(self, new: Sequence[Layout], bases: Sequence[Layout], counterparts: Sequence[int]) -> None:
        self.new, self.bases, self.counterparts = new, bases, counterparts
        self.by_path: dict[tuple[int, str], Place] = {}
        self.by_name: dict[str, list[Place]] = defaultdict(list)
        self.by_kind: dict[_Bucket, list[Place]] = defaultdict(list)
        for place in _tensors(bases):
            self.by_path.setdefault((place.file, place.span.name), place)
            self.by_name[place.span.name].append(place)
            self.by_kind[place.span.dtype, place.span.count].append(place)

    def match(self) -> _Found:
        found: _Found = {}
        open_places: dict[_Bucket, list[Place]] = defaultdict(list)
        for place in _tensors(self.new):
            if self._lies_in_equal_file(place):
                found[place] = Place(self.counterparts[place.file], place.span)
                continue
            twin = self._namesake(place)
            if twin is not None:
                found[place] = twin
            kind = place.span.dtype, place.span.count
            # A namesake that grew or shrank cannot be compared by samples.
            if kind in self.by_kind and (twin is None or not _resized(place.span, twin.span)):
                open_places[kind].append(place)
        taken = set(found.values())
        for kind, places in open_places.items():
            new = read_samples([layout.source for layout in self.new], places)
            base = read_samples([layout.source for layout in self.bases], self.by_kind[kind])
            _Contest(kind[0], self.by_kind[kind], new, base).match(found, taken)
        return found

    def _lies_in_equal_file(self, place: Place) -> bool:
        base = self.counterparts[place.file]
        return base >= 0 and self.bases[base].source.sha256 == self.new[place.file].source.sha256

    def _namesake(self, place: Place) -> Place | None:
        """Choose among the tensors of the same name: the counterpart's, unless only another one fits."""
        first = self.by_path.get((self.counterparts[place.file], place.span.name))
        if first is not None and _fits(place.span, first.span):
            return first

        def order(candidate: Place) -> tuple[bool, bool, bool]:
            span = candidate.span
            return not _fits(place.span, span), candidate is not first, place.span.shape != span.shape

        return min(self.by_name.get(place.span.name, ())[:_MAX_CHOICE], key=order, default=first)


@dataclass(frozen=True, slots=True)
class _Contest:
    """The search by content among the tensors of one element type and size."""

    dtype: Dtype
    candidates: Sequence[Place]
    new: Mapping[Place, bytes]
    base: Mapping[Place, bytes]

    def match(self, found: _Found, taken: set[Place]) -> None:
        """Give each new tensor an equal or related one, where its namesake is neither."""
        left = self._unlike_namesakes(self._without_equal(found, taken), found)
        samples = [self.base[candidate] for candidate in self.candidates]
        ranks = closest(self.dtype, [self.new[place] for place in left], samples)
        for place, ranked in zip(left, ranks, strict=True):
            if ranked:
                found[place] = self.candidates[ranked[0]]

    def _without_equal(self, found: _Found, taken: set[Place]) -> list[Place]:
        """Match those that have an equal; return the others."""
        equal: dict[bytes, list[Place]] = defaultdict(list)
        for candidate in self.candidates:
            equal[self.base[candidate]].append(candidate)
        left: list[Place] = []
        for place, sample in self.new.items():
            twins, named = equal.get(sample, [])[:_MAX_CHOICE], found.get(place)
            if not twins:
                left.append(place)
            elif named is None or self.base.get(named) != sample:
                found[place] = min(twins, key=lambda twin: _likeness(place, twin, taken))
        return left

    def _unlike_namesakes(self, places: Sequence[Place], found: _Found) -> list[Place]:
        """Return those that their namesake is not related to."""
        named = [place for place in places if found.get(place) in self.base]
        pairs = [(self.new[place], self.base[found[place]]) for place in named]
        kept = {place for place, near in zip(named, related(self.dtype, pairs), strict=True) if near}
        return [place for place in places if place not in kept]


def _tensors(layouts: Sequence[Layout]) -> Iterator[Place]:
    for index, layout in enumerate(layouts):
        for span in layout.spans:
            if span.length and not span.is_gap:
                yield Place(index, span)


def _fits(ours: Span, theirs: Span) -> bool:
    """Whether elements, or rows, can be compared one by one."""
    return ours.dtype is theirs.dtype and (ours.count == theirs.count or _resized(ours, theirs))


def _resized(ours: Span, theirs: Span) -> bool:
    """Whether rows were added or taken away."""
    return ours.shape[1:] == theirs.shape[1:] and ours.count != theirs.count


def _likeness(place: Place, twin: Place, taken: set[Place]) -> tuple[bool, int, tuple[int, int]]:
    """Order equal tensors: those that nobody has by name first, then by the parts of the name they share."""
    ours, theirs = (reversed(name.split(".")) for name in (place.span.name, twin.span.name))
    shared = sum(1 for our, their in zip(ours, theirs, strict=False) if our == their)
    return twin in taken, -shared, twin.position


def _home(matches: Iterable[Place | None]) -> int:
    """Return the base file that most of the tensors' bytes are in."""
    weight: dict[int, int] = defaultdict(int)
    for match in matches:
        if match is not None:
            weight[match.file] += match.span.length
    return max(weight, key=lambda file: (weight[file], -file), default=-1)


class _Gaps:
    """What lies between the tensors of the base's files."""

    def __init__(self, bases: Sequence[Layout]) -> None:
        self.bases = bases
        self.known: dict[int, dict[str | bytes, Place]] = {}

    def fill(self, layout: Layout, tensors: Sequence[Place | None], home: int) -> list[Place | None]:
        """Add to a file's matches those of its gaps, all in the base file ``home``."""
        if len(layout.spans) == 1 and layout.spans[0].is_gap:
            size = self.bases[home].source.size
            return [Place(home, Span("", Dtype.BYTES, (size,), 0)) if size else None]
        if home not in self.known:
            found = ((key, Place(home, span)) for span, *keys in _gaps(self.bases[home]) for key in keys)
            self.known[home] = dict(reversed(list(found)))
        known = self.known[home]
        gaps = {span: known.get(sample) or known.get(before) for span, before, sample in _gaps(layout)}
        return [gaps.get(span, tensor) for span, tensor in zip(layout.spans, tensors, strict=True)]


def _gaps(layout: Layout) -> Iterator[tuple[Span, str, bytes]]:
    """Yield each gap with the name of the tensor before it, and its first bytes."""
    before = ""
    with opened(layout.source) as file:
        for span in layout.spans:
            if span.is_gap:
                yield span, before, read_at(file, span.offset, min(span.length, _GAP_SAMPLE_BYTES))
            before = span.name
