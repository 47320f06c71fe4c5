"""A model file as the peers that know tensors see it: a head, and planes of equal elements of each tensor.

Reads safetensors and GGUF. GGML's blocks are taken apart into their fields, so that a peer meets scales among
scales and codes among codes; our own codec parses the files itself, and nothing here is shared with it.

Kinds of planes: ``float`` (its ordered integers differ by units in the last place), ``code`` (signed or
unsigned integers), ``nibble`` (two codes a byte), ``bits`` (anything else; only exclusive-or makes sense).
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = Any

_DTYPES = {
    "F32": ("float", 4),
    "F16": ("float", 2),
    "BF16": ("float", 2),
    "F8_E4M3": ("float", 1),
    "F8_E5M2": ("float", 1),
    "I8": ("code", 1),
    "U8": ("nibble", 1),
}
# The fields of GGML's blocks: kind, bytes of an element, elements.
_BLOCKS = {
    "F32": (("float", 4, 1),),
    "F16": (("float", 2, 1),),
    "BF16": (("float", 2, 1),),
    "Q4_0": (("float", 2, 1), ("nibble", 1, 16)),
    "Q8_0": (("float", 2, 1), ("code", 1, 32)),
    "Q4_K": (("float", 2, 2), ("bits", 1, 12), ("nibble", 1, 128)),
    "Q5_K": (("float", 2, 2), ("bits", 1, 12), ("bits", 1, 32), ("nibble", 1, 128)),
    "Q6_K": (("nibble", 1, 128), ("bits", 1, 64), ("code", 1, 16), ("float", 2, 1)),
}


@dataclass(frozen=True)
class Plane:
    """Elements of one kind: ``values`` are their bits as unsigned integers."""

    kind: str
    dtype: str
    values: Array


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: where it lies, and its type by the file's own name for it."""

    name: str
    offset: int
    length: int
    dtype: str
    is_block: bool

    def planes(self, content: bytes) -> list[Plane]:
        """Take the tensor out of its file's content."""
        data = np.frombuffer(content, np.uint8, self.length, self.offset)
        if not self.is_block:
            kind, width = _DTYPES.get(self.dtype, ("bits", 1))
            return [Plane(kind, self.dtype, data.view(f"<u{width}"))]
        fields = _BLOCKS.get(self.dtype, (("bits", 1, 1),))
        ends = np.cumsum([width * count for _, width, count in fields])
        pieces = np.split(data.reshape(-1, ends[-1]), ends[:-1], axis=1)
        dtype = self.dtype if self.dtype in _DTYPES else "F16"
        return [
            Plane(kind, dtype, np.ascontiguousarray(piece).reshape(-1).view(f"<u{width}"))
            for piece, (kind, width, _) in zip(pieces, fields, strict=True)
        ]

    def join(self, planes: list[Array]) -> bytes:
        """Put the values of :meth:`planes` together again."""
        if not self.is_block:
            return planes[0].tobytes()
        fields = _BLOCKS.get(self.dtype, (("bits", 1, 1),))
        columns = [
            values.view(np.uint8).reshape(-1, width * count)
            for values, (_, width, count) in zip(planes, fields, strict=True)
        ]
        return np.concatenate(columns, axis=1).tobytes()


def read_tensors(path: Path, content: bytes) -> list[Tensor]:
    """Return the tensors of a model file in the order of their bytes."""
    found = _gguf(path) if path.suffix == ".gguf" else _safetensors(content)
    return sorted(found, key=lambda tensor: tensor.offset)


def main_dtype(path: Path) -> str:
    """Return the type that most of a model file's bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in read_tensors(path, path.read_bytes()):
        sizes[tensor.dtype] += tensor.length
    return sizes.most_common(1)[0][0]


def _safetensors(content: bytes) -> list[Tensor]:
    (length,) = struct.unpack_from("<Q", content)
    entries: Mapping[str, Any] = json.loads(content[8 : 8 + length])
    return [
        Tensor(name, 8 + length + entry["data_offsets"][0], _span(entry), entry["dtype"], is_block=False)
        for name, entry in entries.items()
        if name != "__metadata__" and _span(entry)
    ]


def _span(entry: Mapping[str, Any]) -> int:
    return entry["data_offsets"][1] - entry["data_offsets"][0]


def _gguf(path: Path) -> list[Tensor]:
    import gguf

    return [
        Tensor(t.name, int(t.data_offset), int(t.n_bytes), t.tensor_type.name, is_block=True)
        for t in gguf.GGUFReader(path).tensors
    ]


def ordered(values: Array) -> Array:
    """Map the bits of floats to unsigned integers in the order of the floats; -0 and +0 stay apart."""
    top = values.dtype.type(1 << (8 * values.itemsize - 1))
    negative = values & top != 0
    return np.where(negative, ~values, values | top)


def unordered(values: Array) -> Array:
    """Invert :func:`ordered`."""
    top = values.dtype.type(1 << (8 * values.itemsize - 1))
    return np.where(values & top != 0, values ^ top, ~values)


def zigzag(values: Array) -> Array:
    """Map differences modulo 2^n to unsigned integers, small for small ones of either sign."""
    bits = 8 * values.itemsize
    signed = values.view(f"<i{values.itemsize}")
    return (signed << 1 ^ signed >> bits - 1).view(values.dtype)


def unzigzag(values: Array) -> Array:
    """Invert :func:`zigzag`."""
    return values >> 1 ^ (~(values & 1) + values.dtype.type(1))


def difference(kind: str, old: Array, new: Array) -> Array:
    """Return how far ``new`` is from ``old`` in its plane's own steps, as unsigned integers near zero."""
    if kind == "float":
        return zigzag(ordered(new) - ordered(old))
    if kind == "code":
        return zigzag(new - old)
    if kind == "nibble":
        low, high = ((new & 15) - (old & 15)) & 15, ((new >> 4) - (old >> 4)) & 15
        return _zigzag4(low) | _zigzag4(high) << 4
    return new ^ old


def restore(kind: str, old: Array, difference: Array) -> Array:
    """Invert :func:`difference`."""
    if kind == "float":
        return unordered(ordered(old) + unzigzag(difference))
    if kind == "code":
        return old + unzigzag(difference)
    if kind == "nibble":
        low, high = _unzigzag4(difference & 15), _unzigzag4(difference >> 4)
        return ((old & 15) + low & 15) | ((old >> 4) + high & 15) << 4
    return difference ^ old


def _zigzag4(values: Array) -> Array:
    return (values << 1 ^ (values >> 3) * 15) & 15


def _unzigzag4(values: Array) -> Array:
    return (values >> 1 ^ (values & 1) * 15) & 15
