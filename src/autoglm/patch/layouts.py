"""What lies where in a file: the typed planes of a safetensors file; any other file is one plane of bytes.

A layout covers a file from its first byte to its last, in order. A file that claims to be safetensors and
breaks any rule of it is treated as plain bytes: that costs size, never correctness.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from autoglm.patch.package import MAX_NAME_BYTES, MAX_RANK, Dtype

_MAX_JSON_BYTES = 100_000_000
_DTYPES = {
    "I8": Dtype.I8,
    "U8": Dtype.U8,
    "BOOL": Dtype.BOOL,
    "F8_E4M3": Dtype.F8_E4M3,
    "F8_E5M2": Dtype.F8_E5M2,
    "I16": Dtype.I16,
    "U16": Dtype.U16,
    "F16": Dtype.F16,
    "BF16": Dtype.BF16,
    "I32": Dtype.I32,
    "U32": Dtype.U32,
    "F32": Dtype.F32,
    "I64": Dtype.I64,
    "U64": Dtype.U64,
    "F64": Dtype.F64,
}


@dataclass(frozen=True, slots=True)
class Span:
    """A run of equal elements at an offset of a file; ``name`` is empty for the bytes between tensors."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def length(self) -> int:
        """In bytes."""
        return self.dtype.size * math.prod(self.shape)

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.length


def read_layout(path: Path) -> list[Span]:
    """Return the spans of the file at ``path``, covering it in order.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    spans = _safetensors(path, size) if path.suffix == ".safetensors" else None
    return _cover(spans or [], size)


def _safetensors(path: Path, size: int) -> list[Span] | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_JSON_BYTES):
            return None
        try:
            entries = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return None
    if not isinstance(entries, dict):
        return None
    spans: list[Span] = []
    for name, entry in cast("dict[str, Any]", entries).items():
        if name != "__metadata__":
            span = _span(name, entry, 8 + length)
            if span is None or span.end > size:
                return None
            spans.append(span)
    return spans


def _span(name: str, entry: Any, start: int) -> Span | None:
    try:
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], str(entry["dtype"])
        long = len(name.encode()) > MAX_NAME_BYTES
        known = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        return None
    if not known or long or begin > end:
        return None
    span = Span(name, _DTYPES.get(dtype, Dtype.BYTES), tuple(shape), start + begin)
    if dtype not in _DTYPES or len(shape) > MAX_RANK:
        return Span(name, Dtype.BYTES, (end - begin,), start + begin)
    return span if span.length == end - begin else None


def _cover(spans: list[Span], size: int) -> list[Span]:
    """Fill what lies between the spans with bytes; without order there is no layout."""
    covered: list[Span] = []
    at = 0
    for span in sorted(spans, key=lambda span: (span.offset, span.length)):
        if span.offset < at:
            return _cover([], size)
        if span.offset > at:
            covered.append(Span("", Dtype.BYTES, (span.offset - at,), at))
        covered.append(span)
        at = span.end
    if size > at:
        covered.append(Span("", Dtype.BYTES, (size - at,), at))
    return covered
