"""Writers of GGUF and ``.ptd`` files, small enough to be bent into every wrong shape."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.patch.layouts import Span, read_layout

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
F16, BF16 = 1, 30


def spans_of(path: Path, content: bytes) -> list[Span]:
    """Read the layout of a file with this content, and make sure that it covers the file."""
    path.write_bytes(content)
    spans = read_layout(path)
    at = 0
    for span in spans:
        assert span.offset == at
        at = span.end
    assert at == len(content)
    return spans


def tensors_of(path: Path, content: bytes) -> dict[str, Span]:
    """Read the named spans of a file with this content."""
    return {span.name: span for span in spans_of(path, content) if span.name}


# GGUF


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of ggml's type ``kind``; dimensions innermost first, ``start`` in the data."""

    name: str
    kind: int
    dimensions: tuple[int, ...]
    start: int


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key-value pair of GGUF metadata."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def gguf(
    tensors: Sequence[GgufTensor],
    data: bytes,
    pairs: Sequence[bytes] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a GGUF file; ``counts`` lies about how many tensors and pairs there are."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs)))) + b"".join(pairs)
    for tensor in tensors:
        rank = len(tensor.dimensions)
        head += text(tensor.name) + struct.pack(f"<I{rank}Q", rank, *tensor.dimensions)
        head += struct.pack("<IQ", tensor.kind, tensor.start)
    return head + bytes(-len(head) % alignment) + data


# Flatbuffers: tables whose children follow them


class Table(list[Any]):
    """The fields of a table: numbers as (struct code, value), texts, vectors of bytes, of i32, of tables."""


def _place(buffer: bytearray, item: Any) -> int:
    """Append something that an offset may lead to; return where it is."""
    if isinstance(item, Table):
        return _table(buffer, item)
    buffer += bytes(-len(buffer) % 4)
    at = len(buffer)
    if isinstance(item, str):
        buffer += struct.pack("<I", len(item.encode())) + item.encode() + b"\0"
    elif isinstance(item, bytes):
        buffer += struct.pack("<I", len(item)) + item
    elif isinstance(item, list) and all(isinstance(entry, int) for entry in item):
        buffer += struct.pack(f"<I{len(item)}i", len(item), *item)
    elif isinstance(item, list):
        buffer += struct.pack("<I", len(item)) + bytes(4 * len(item))
        for number, entry in enumerate(item):
            _link(buffer, at + 4 + 4 * number, entry)
    return at


def _link(buffer: bytearray, at: int, item: Any) -> None:
    target = _place(buffer, item)
    struct.pack_into("<I", buffer, at, target - at)


def _table(buffer: bytearray, table: Table) -> int:
    size = 4 + 2 * len(table)
    buffer += bytes((-len(buffer) - size - 4) % 8)
    fields = len(buffer)
    steps = [0 if field is None else 4 + 8 * number for number, field in enumerate(table)]
    buffer += struct.pack(f"<HH{len(table)}H", size, 4 + 8 * len(table), *steps)
    at = len(buffer)
    buffer += struct.pack("<i", at - fields) + bytes(8 * len(table))
    for step, field in zip(steps, table, strict=True):
        if isinstance(field, tuple):
            struct.pack_into(f"<{field[0]}", buffer, at + step, field[1])
        elif field is not None:
            _link(buffer, at + step, field)
    return at


def layout(kind: int, sizes: Sequence[int], order: Sequence[int] | None = None) -> Table:
    """A ``TensorLayout``."""
    order = range(len(sizes)) if order is None else order
    return Table([("b", kind), list(sizes), bytes(order)])


def ptd(root: Table, data: bytes, *, base: int | None = None) -> bytes:
    """Return a ``.ptd`` file with this root table and these segments."""
    buffer = bytearray(56)
    root_at = _table(buffer, root)
    start = -(-len(buffer) // 128) * 128
    struct.pack_into(
        "<I4s4sIQQQQ", buffer, 0, root_at, b"FT01", b"FH01", 40, 48, len(buffer) - 48, start, len(data)
    )
    if base is not None:
        struct.pack_into("<Q", buffer, 32, base)
    return bytes(buffer) + bytes(start - len(buffer)) + data


def named(segments: Sequence[tuple[int, int]], entries: Sequence[Table]) -> Table:
    """A ``FlatTensor`` of the schema in use."""
    return Table([("I", 0), [Table([("Q", at), ("Q", size)]) for at, size in segments], list(entries)])
