"""The peers that code tensor by tensor, each plane of the new file against its plane in the old.

They share a container of their own: the bytes of the new file that are in no tensor (zstd), then each plane's
code. A tensor that the old file has in other sizes is coded against it as far as both reach, and the rest by
zstd, as is everything the codec has no answer for. That favours the peers: none of them has a container for
all these files, and each is given the transform that suits it best.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import frames
from planes import Plane, Tensor, difference, read_tensors, restore

Array = Any

_LENGTH = struct.Struct("<I")


class PlaneCodec(Protocol):
    """How a peer codes one plane."""

    def encode(self, plane: Plane, old: Array) -> bytes | None:
        """Return the code of ``plane.values`` against as many old values, None if it has no answer."""

    def decode(self, code: bytes, plane: Plane) -> Array:
        """Return the values; ``plane`` is the old one, of as many values."""


class PcodecDifference:
    """pcodec at its highest level, over differences; 8 bits are widened, as it has no good 8-bit types."""

    def __init__(self) -> None:
        self._pcodec = import_module("pcodec")

    def encode(self, plane: Plane, old: Array) -> bytes:
        values = difference(plane.kind, old, plane.values)
        wide = values if values.itemsize > 1 else values.astype(np.uint16)
        config = self._pcodec.ChunkConfig(compression_level=12)
        return self._pcodec.standalone.simple_compress(wide, config)

    def decode(self, code: bytes, plane: Plane) -> Array:
        values: Array = self._pcodec.standalone.simple_decompress(code)
        return restore(plane.kind, plane.values, values.astype(plane.values.dtype))


class XorPlanes:
    """Exclusive-or with the base, cut into byte planes, each through zstd -19."""

    def encode(self, plane: Plane, old: Array) -> bytes:
        mixed = (plane.values ^ old).view(np.uint8).reshape(-1, plane.values.itemsize)
        return _bundle([frames.pack(mixed[:, i].tobytes()) for i in range(mixed.shape[1])])

    def decode(self, code: bytes, plane: Plane) -> Array:
        columns = [np.frombuffer(frames.unpack(piece), np.uint8) for piece in _unbundle(code)]
        return np.stack(columns, 1).reshape(-1).view(plane.values.dtype) ^ plane.values


class OpenZLDifference:
    """Differences through OpenZL: the smallest of its graphs for numbers and of bytes apart into FSE."""

    def __init__(self) -> None:
        self._zl = import_module("openzl.ext")
        self._compressors: dict[int, Any] = {}

    def encode(self, plane: Plane, old: Array) -> bytes:
        values = difference(plane.kind, old, plane.values)
        context = self._zl.CCtx()
        context.ref_compressor(self._compressor(values.itemsize))
        return context.compress([self._zl.Input(self._zl.Type.Numeric, values)])

    def decode(self, code: bytes, plane: Plane) -> Array:
        values: Array = self._zl.DCtx().decompress(code)[0].content.as_nparray()
        return restore(plane.kind, plane.values, values.astype(plane.values.dtype))

    def _compressor(self, width: int) -> Any:
        if width not in self._compressors:
            graphs, nodes, made = self._zl.graphs, self._zl.nodes, self._zl.Compressor()
            last = graphs.Entropy()(made)
            if width > 1:
                last = nodes.ConvertNumToStructLE()(made, nodes.TransposeSplit()(made, last))
            made.set_parameter(self._zl.CParam.FormatVersion, self._zl.MAX_FORMAT_VERSION)
            successors = [graphs.Compress()(made), graphs.FieldLz()(made), last]
            made.select_starting_graph(graphs.BruteForce(successors)(made))
            self._compressors[width] = made
        return self._compressors[width]


class FMDelta:
    """FM-Delta (Ning et al., NeurIPS 2024): range-coded differences of float bits; no other types."""

    def __init__(self) -> None:
        self._fmd = import_module("fmd")

    def encode(self, plane: Plane, old: Array) -> bytes | None:
        if plane.kind != "float" or plane.values.itemsize == 1:
            return None
        return self._fmd.compress_param(_as_float(old), _as_float(plane.values))

    def decode(self, code: bytes, plane: Plane) -> Array:
        values: Array = self._fmd.decompress_param(code, _as_float(plane.values))
        return values.reshape(-1).view(plane.values.dtype)


def _as_float(values: Array) -> Array:
    """Copy bits as floats; FM-Delta sees 16 bits as an integer, so bfloat16 may pass for a half."""
    return values.copy().view(np.float16 if values.itemsize == 2 else np.float32)


def make(codec: PlaneCodec, old_path: Path, new_path: Path, delta: Path) -> None:
    """Write to ``delta`` the new file against the old one."""
    old, new = old_path.read_bytes(), new_path.read_bytes()
    tensors = read_tensors(new_path, new)
    codes: list[bytes] = [frames.pack(_without(new, tensors)), _where(tensors)]
    for plane, before in _pairs(tensors, new, read_tensors(old_path, old), old):
        reach = min(len(plane.values), len(before))
        head = Plane(plane.kind, plane.dtype, plane.values[:reach])
        code = codec.encode(head, before[:reach]) if reach else None
        if code is None:
            reach, code = 0, b""
        rest = plane.values[reach:].tobytes()
        codes += [_LENGTH.pack(reach), code, frames.pack(rest) if rest else b""]
    delta.write_bytes(_bundle(codes))


def apply(codec: PlaneCodec, old_path: Path, delta: Path, made: Path) -> None:
    """Write to ``made`` what :func:`make` was given."""
    old = old_path.read_bytes()
    gaps, where, *codes = _unbundle(delta.read_bytes())
    tensors = _tensors(where)
    empty = bytes(max((t.offset + t.length for t in tensors), default=0))
    pieces = iter(codes)
    values: list[Array] = []
    for plane, before in _pairs(tensors, empty, read_tensors(old_path, old), old):
        (reach,) = _LENGTH.unpack(next(pieces))
        code, rest = next(pieces), next(pieces)
        dtype = plane.values.dtype
        known = Plane(plane.kind, plane.dtype, before[:reach])
        head = codec.decode(code, known) if reach else np.empty(0, dtype)
        left = (len(plane.values) - reach) * dtype.itemsize
        tail = np.frombuffer(frames.unpack(rest), dtype) if left else np.empty(0, dtype)
        values.append(np.concatenate([head, tail]))
    made.write_bytes(b"".join(_joined(tensors, values, empty, gaps)))


def _pairs(
    tensors: list[Tensor], content: bytes, old_tensors: list[Tensor], old: bytes
) -> Iterator[tuple[Plane, Array]]:
    """Yield every plane of the tensors with the values of its twin, none where it has no twin."""
    twins = {tensor.name: tensor for tensor in old_tensors}
    for tensor in tensors:
        twin = twins.get(tensor.name)
        planes = tensor.planes(content)
        if twin is None or twin.dtype != tensor.dtype:
            yield from ((plane, plane.values[:0]) for plane in planes)
        else:
            yield from zip(planes, (plane.values for plane in twin.planes(old)), strict=True)


def _without(content: bytes, tensors: list[Tensor]) -> bytes:
    """Return what lies between the tensors."""
    starts = [0, *(tensor.offset + tensor.length for tensor in tensors)]
    ends = [*(tensor.offset for tensor in tensors), len(content)]
    return b"".join(content[start:end] for start, end in zip(starts, ends, strict=True))


def _where(tensors: list[Tensor]) -> bytes:
    """Say where the tensors lie: some hundred bytes, which count."""
    rows = [f"{t.name}\t{t.offset}\t{t.length}\t{t.dtype}\t{int(t.is_block)}" for t in tensors]
    return frames.pack("\n".join(rows).encode())


def _tensors(where: bytes) -> list[Tensor]:
    rows = [row.split("\t") for row in frames.unpack(where).decode().splitlines()]
    return [Tensor(r[0], int(r[1]), int(r[2]), r[3], r[4] == "1") for r in rows]


def _joined(tensors: list[Tensor], values: list[Array], empty: bytes, gaps: bytes) -> Iterator[bytes]:
    between, at, done = frames.unpack(gaps), 0, 0
    rest = iter(values)
    for tensor in tensors:
        gap = tensor.offset - done
        yield between[at : at + gap]
        yield tensor.join([next(rest) for _ in tensor.planes(empty)])
        at, done = at + gap, tensor.offset + tensor.length
    yield between[at:]


def _bundle(pieces: list[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)


def _unbundle(packed: bytes) -> list[bytes]:
    pieces, at = [], 0
    while at < len(packed):
        (length,) = _LENGTH.unpack_from(packed, at)
        pieces.append(packed[at + 4 : at + 4 + length])
        at += 4 + length
    return pieces


def coder(codec: PlaneCodec) -> tuple[Callable[[Path, Path, Path], None], Callable[[Path, Path, Path], None]]:
    """Return make and apply between files."""
    return partial(make, codec), partial(apply, codec)
