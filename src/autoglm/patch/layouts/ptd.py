"""ExecuTorch's ``.ptd`` (FlatTensor): a flatbuffer that names segments, then the segments.

The file begins with the flatbuffer's root offset and identifier; an extended header, squeezed in behind
them, says where the flatbuffer ends and the segments begin. Two schemas were published under the same
identifier and version: named data with an optional tensor layout, and before it tensors with offsets into
shared segments. Names of data without a layout (a backend's packed weights) are kept, as bytes.

Source: extension/flat_tensor/serialize/flat_tensor.fbs in https://github.com/pytorch/executorch, and
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from autoglm.patch.layouts.spans import MAX_METADATA_BYTES, MalformedError, Span, bytes_between, tensor
from autoglm.patch.package import MAX_NAME_BYTES, MAX_PLANES, MAX_RANK, Dtype

IDENTIFIER = b"FT01"
HEADER_MAGIC = b"FH01"
_HEADER_BYTES = 40
_VERSION = 0

# ScalarType of scalar_type.fbs; others are carried as bytes.
_DTYPES = {
    0: Dtype.U8,
    1: Dtype.I8,
    2: Dtype.I16,
    3: Dtype.I32,
    4: Dtype.I64,
    5: Dtype.F16,
    6: Dtype.F32,
    7: Dtype.F64,
    11: Dtype.BOOL,
    12: Dtype.I8,
    13: Dtype.U8,
    14: Dtype.I32,
    15: Dtype.BF16,
    22: Dtype.U16,
    23: Dtype.F8_E5M2,
    24: Dtype.F8_E4M3,
    27: Dtype.U16,
    28: Dtype.U32,
    29: Dtype.U64,
}


def read_spans(file: IO[bytes], size: int) -> list[Span]:
    """Return the tensors and named blobs of a ``.ptd`` file of ``size`` bytes, open at its start.

    Raises:
        MalformedError: it is none, or of another version.
        OSError: it cannot be read.
    """
    head = _Buffer(file.read(8 + _HEADER_BYTES))
    flatbuffer_end = head.number(16, 8) + head.number(24, 8)
    if head.number(12, 4) < _HEADER_BYTES or flatbuffer_end > min(size, MAX_METADATA_BYTES):
        raise MalformedError
    file.seek(0)
    buffer = _Buffer(file.read(flatbuffer_end))
    root = buffer.table(buffer.follow(0))
    if root.number(0, 4) != _VERSION:
        raise MalformedError
    base = head.number(32, 8)
    try:
        found = list(_named_data(root, base))
    except MalformedError:
        found = list(_tensors(root, base))
    # Several names may share data; the first one stands for all.
    spans = list({(span.offset, span.end): span for span in reversed(found)}.values())
    if len({span.name for span in spans}) != len(spans):
        raise MalformedError
    return spans


def _named_data(root: _Table, base: int) -> Iterator[Span]:
    """Read the schema in use: version, segments, named data."""
    segments = [_segment(table, base) for table in root.tables(1)]
    for entry in root.tables(2):
        name, (start, end) = entry.text(0), _at(segments, entry.number(1, 4))
        layout = entry.table(2)
        if layout is None:
            yield bytes_between(start, end, name)
        else:
            yield _tensor(name, layout, (0, 1, 2), start, end)


def _tensors(root: _Table, base: int) -> Iterator[Span]:
    """Read the first schema: version, alignment, tensors, segments, named data."""
    segments = [_segment(table, base) for table in root.tables(3)]
    for entry in root.tables(2):
        start, end = _at(segments, entry.number(4, 4))
        yield _tensor(entry.text(0), entry, (1, 2, 3), start + entry.number(5, 8), end, shared=True)
    for entry in root.tables(4):
        yield bytes_between(*_at(segments, entry.number(1, 4)), entry.text(0))


def _segment(table: _Table, base: int) -> tuple[int, int]:
    start = base + table.number(0, 8)
    return start, start + table.number(1, 8)


def _at(segments: list[tuple[int, int]], index: int) -> tuple[int, int]:
    if index >= len(segments):
        raise MalformedError
    return segments[index]


def _tensor(
    name: str, layout: _Table, fields: tuple[int, int, int], start: int, end: int, *, shared: bool = False
) -> Span:
    """Describe a tensor whose type, sizes and order of dimensions are ``fields`` of a table.

    Args:
        name, layout, fields: of the tensor.
        start, end: where its data lie; data that its layout does not explain are bytes.
        shared: other tensors may follow before ``end``.
    """
    kind, sizes, order = fields
    dtype = _DTYPES.get(layout.number(kind, 1))
    shape = _in_memory(layout.numbers(sizes, 4), layout.numbers(order, 1))
    length = dtype.size * math.prod(shape) if dtype is not None else -1
    if length == end - start or (shared and 0 <= length < end - start):
        return tensor(name, dtype, shape, start, start + length)
    return bytes_between(start, end, name)


def _in_memory(sizes: list[int], order: list[int]) -> tuple[int, ...]:
    """Put the dimensions in the order in which they lie in memory, outermost first."""
    order = order or list(range(len(sizes)))
    if sorted(order) != list(range(len(sizes))) or max(sizes, default=0) >= 1 << 31:
        raise MalformedError
    return tuple(sizes[dimension] for dimension in order)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A flatbuffer; whatever is read lies inside it."""

    content: bytes

    def number(self, at: int, size: int) -> int:
        if not 0 <= at <= len(self.content) - size:
            raise MalformedError
        return int.from_bytes(self.content[at : at + size], "little")

    def follow(self, at: int) -> int:
        """Return where the offset stored at ``at`` leads to."""
        return at + self.number(at, 4)

    def vector(self, at: int, size: int, limit: int) -> tuple[int, int]:
        """Return where the elements of a vector begin, and their number."""
        count = self.number(at, 4)
        if count > limit or at + 4 + count * size > len(self.content):
            raise MalformedError
        return at + 4, count

    def table(self, at: int) -> _Table:
        """Return the table at ``at``, which begins with the distance back to its list of fields."""
        step = self.number(at, 4)
        fields = at - (step - (1 << 32) if step >> 31 else step)
        size = self.number(fields, 2)
        if size < 4 or size % 2 or fields + size > len(self.content):
            raise MalformedError
        return _Table(self, at, fields, (size - 4) // 2)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a flatbuffer; fields that are absent read as zero, empty or None."""

    buffer: _Buffer
    at: int
    fields: int
    num_fields: int

    def _place(self, field: int) -> int | None:
        if field >= self.num_fields:
            return None
        step = self.buffer.number(self.fields + 4 + 2 * field, 2)
        return self.at + step if step else None

    def number(self, field: int, size: int) -> int:
        place = self._place(field)
        return 0 if place is None else self.buffer.number(place, size)

    def numbers(self, field: int, size: int) -> list[int]:
        place = self._place(field)
        if place is None:
            return []
        start, count = self.buffer.vector(self.buffer.follow(place), size, MAX_RANK)
        return [self.buffer.number(start + size * index, size) for index in range(count)]

    def text(self, field: int) -> str:
        place = self._place(field)
        if place is None:
            raise MalformedError
        start, count = self.buffer.vector(self.buffer.follow(place), 1, MAX_NAME_BYTES)
        try:
            return self.buffer.content[start : start + count].decode()
        except UnicodeDecodeError as error:
            raise MalformedError from error

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return None if place is None else self.buffer.table(self.buffer.follow(place))

    def tables(self, field: int) -> Iterator[_Table]:
        place = self._place(field)
        if place is None:
            return
        start, count = self.buffer.vector(self.buffer.follow(place), 4, MAX_PLANES)
        for index in range(count):
            yield self.buffer.table(self.buffer.follow(start + 4 * index))
