"""llama.cpp's GGUF, versions 2 and 3, little-endian.

A header counts tensors and metadata; the metadata is walked over value by value, because nothing says how
long it is; then come the tensors' descriptions, and their data at offsets from the next aligned byte.
Dimensions are stored innermost first. Versions that are not known, and big-endian files, are no layout.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

from autoglm.patch.layouts.spans import (
    MAX_METADATA_BYTES,
    MalformedError,
    Span,
    bytes_between,
    tensor,
)
from autoglm.patch.package import MAX_NAME_BYTES, MAX_PLANES, MAX_RANK, Dtype

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_DEPTH = 4
_FIRST_READ_BYTES = 1 << 16

_U32, _STRING, _ARRAY = 4, 8, 9
# Bytes of a metadata value, by its type: u8, i8, u16, i16, u32, i32, f32, bool, u64, i64, f64.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# Element type and weights in an element, by ggml's number. Tensors of other types are carried as bytes.
_TYPES = {
    0: (Dtype.F32, 1),
    1: (Dtype.F16, 1),
    2: (Dtype.Q4_0, 32),
    8: (Dtype.Q8_0, 32),
    12: (Dtype.Q4_K, 256),
    13: (Dtype.Q5_K, 256),
    14: (Dtype.Q6_K, 256),
    24: (Dtype.I8, 1),
    25: (Dtype.I16, 1),
    26: (Dtype.I32, 1),
    27: (Dtype.I64, 1),
    28: (Dtype.F64, 1),
    30: (Dtype.BF16, 1),
}


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor's description; ``weights`` outermost dimension first, ``start`` in the file."""

    name: str
    weights: tuple[int, ...]
    kind: int
    start: int


def read_spans(file: IO[bytes], size: int) -> list[Span]:
    """Return the tensors of a GGUF file of ``size`` bytes, open at its start.

    Raises:
        MalformedError: it is none, or of another version or byte order.
        OSError: it cannot be read.
    """
    cursor = _Cursor(file)
    if cursor.take(4) != MAGIC or cursor.number(4) not in _VERSIONS:
        raise MalformedError
    num_tensors, num_values = cursor.number(8), cursor.number(8)
    if num_tensors > MAX_PLANES:
        raise MalformedError
    alignment = _skip_metadata(cursor, num_values)
    infos = [_read_info(cursor, alignment) for _ in range(num_tensors)]
    if len({info.name for info in infos}) != len(infos):
        raise MalformedError
    return list(_spans(infos, -(-cursor.at // alignment) * alignment, size))


def _skip_metadata(cursor: _Cursor, count: int) -> int:
    """Walk over all key-value pairs; return the alignment, the one that matters here."""
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(count):
        key, kind = cursor.take(cursor.number(8)), cursor.number(4)
        if key != b"general.alignment":
            _skip_value(cursor, kind, _MAX_DEPTH)
        elif kind != _U32:
            raise MalformedError
        else:
            alignment = cursor.number(4)
    if alignment.bit_count() != 1 or alignment > _MAX_ALIGNMENT:
        raise MalformedError
    return alignment


def _skip_value(cursor: _Cursor, kind: int, depth: int) -> None:
    if kind == _STRING:
        cursor.skip_strings(1)
    elif kind == _ARRAY:
        _skip_array(cursor, depth - 1)
    elif size := _VALUE_BYTES.get(kind):
        cursor.skip(size)
    else:
        raise MalformedError


def _skip_array(cursor: _Cursor, depth: int) -> None:
    """Walk over an array; every element that is looked at has bytes of its own, which bounds the work."""
    kind, count = cursor.number(4), cursor.number(8)
    if depth < 0:
        raise MalformedError
    if size := _VALUE_BYTES.get(kind):
        cursor.skip(count * size)
    elif kind == _STRING:
        cursor.skip_strings(count)
    elif kind == _ARRAY:
        for _ in range(count):
            _skip_array(cursor, depth - 1)
    else:
        raise MalformedError


def _read_info(cursor: _Cursor, alignment: int) -> _Info:
    name = cursor.text(MAX_NAME_BYTES)
    rank = cursor.number(4)
    if rank > MAX_RANK:
        raise MalformedError
    dimensions = [cursor.number(8) for _ in range(rank)]
    kind, start = cursor.number(4), cursor.number(8)
    if start % alignment:
        raise MalformedError
    return _Info(name, tuple(reversed(dimensions)), kind, start)


def _spans(infos: list[_Info], data: int, size: int) -> Iterator[Span]:
    """Yield the tensors' spans; one of an unknown type reaches to the next tensor, or to the end."""
    ordered = sorted(infos, key=lambda info: info.start)
    ends = [*(data + later.start for _, later in pairwise(ordered)), size]
    for info, end in zip(ordered, ends, strict=False):  # no tensors have one end too many
        start = data + info.start
        if info.kind not in _TYPES:
            if start > end:
                raise MalformedError
            yield bytes_between(start, end, info.name)
        else:
            yield _typed(info, start)


def _typed(info: _Info, start: int) -> Span:
    dtype, block = _TYPES[info.kind]
    shape = info.weights
    if block > 1:
        if not shape or shape[-1] % block:
            raise MalformedError
        shape = (*shape[:-1], shape[-1] // block)
    return tensor(info.name, dtype, shape, start, Span(info.name, dtype, shape, start).end)


class _Cursor:
    """Read a file's metadata from front to back, never more than is needed and allowed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.at = file, 0
        self.content = bytearray()

    def take(self, count: int) -> bytes:
        start = self.at
        self.skip(count)
        return bytes(self.content[start : self.at])

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, max_bytes: int) -> str:
        length = self.number(8)
        if length > max_bytes:
            raise MalformedError
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedError from error

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            self._fill(self.at)

    def skip_strings(self, count: int) -> None:
        """Walk over strings; a vocabulary has hundreds of thousands, so nothing is called for each."""
        at, content = self.at, self.content
        for _ in range(count):
            if at + 8 > len(content):
                self._fill(at + 8)
            at += 8 + int.from_bytes(content[at : at + 8], "little")
        self.at = at
        self.skip(0)

    def _fill(self, end: int) -> None:
        """Read on, twice as far each time, until there are ``end`` bytes."""
        if end > MAX_METADATA_BYTES:
            raise MalformedError
        target = min(max(end, 2 * len(self.content), _FIRST_READ_BYTES), MAX_METADATA_BYTES)
        self.content += self.file.read(target - len(self.content))
        if end > len(self.content):
            raise MalformedError
