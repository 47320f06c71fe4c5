"""Hugging Face's safetensors: eight bytes of length, a JSON object, the tensors.

Source: the format's description in https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from typing import IO, Any, cast

from autoglm.patch.layouts.spans import MAX_METADATA_BYTES, MalformedError, Span, tensor
from autoglm.patch.package import MAX_PLANES, Dtype

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
# What separates JSON values; a tensor of rank 8 has 14. A parsed value takes up to 30 times its text in
# memory, so they are counted before anything is parsed.
_SEPARATORS = (b",", b"[", b"{")
_MAX_SEPARATORS = 16 * MAX_PLANES


def read_spans(file: IO[bytes], size: int) -> list[Span]:
    """Return the tensors of a safetensors file of ``size`` bytes, open at its start.

    Raises:
        MalformedError: it is none.
        OSError: it cannot be read.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_METADATA_BYTES):
        raise MalformedError
    entries = _parsed(file.read(length))
    start = 8 + length
    return [_span(name, entry, start) for name, entry in entries.items() if name != "__metadata__"]


def _parsed(text: bytes) -> dict[str, Any]:
    if sum(text.count(mark) for mark in _SEPARATORS) > _MAX_SEPARATORS:
        raise MalformedError
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError from error
    if not isinstance(entries, dict):
        raise MalformedError
    return cast("dict[str, Any]", entries)


def _span(name: str, entry: Any, start: int) -> Span:
    try:
        shape, (begin, end), dtype = tuple(entry["shape"]), entry["data_offsets"], str(entry["dtype"])
        name.encode()
    except (TypeError, KeyError, ValueError) as error:
        raise MalformedError from error
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise MalformedError
    return tensor(name, _DTYPES.get(dtype), shape, start + begin, start + end)
