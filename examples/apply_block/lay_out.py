"""Lay out a patch of a single file for a program that has only the codec's C core.

    python lay_out.py old.safetensors patch.wpatch directory

The directory gets ``new``, with everything that is copied or stored, and files ``0000.block``, ``0001.block``
and so on for ``apply_block``, which puts the rest into ``new``. It shows what a reader of packages in another
language has to hand to the core; the header itself is parsed by :mod:`autoglm.patch`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoglm.patch import zstd
from autoglm.patch.header import read_header
from autoglm.patch.package import Header, Mode, Need, OutputFile, Part, is_inline, schedule, segments_of


@dataclass(frozen=True)
class LaidPart:
    """A part of a block, and the block of its factors; empty when they lie inline, or there are none."""

    part: Part
    factor_block: bytes = b""


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}Q", *(value % (1 << 64) for value in values))


def part_bytes(laid: LaidPart) -> bytes:
    """Describe a part, in the order in which ``block_file.h`` reads it."""
    part, segment, plane = laid.part, laid.part.segment, laid.part.plane
    scales, curve, size = segment.scales, segment.curve, laid.part.plane.dtype.size
    first, past = part.groups
    columns = (plane.columns, part.start % plane.columns, part.rows[1] - part.rows[0]) if curve else (0, 0, 0)
    group = (scales.dtype, scales.group, part.start % scales.group, past - first) if scales else (0, 0, 0, 0)
    bend = (curve.rank, curve.drop, curve.limit, curve.classes) if curve else (0, 0, 0, 0)
    signed = (curve.slope, curve.bend, curve.shift) if curve else (0, 0, 0)
    old, new = ((at + first * scales.dtype.size) for at in (scales.old, scales.new)) if scales else (0, 0)
    places = (segment.base_offset + part.start * size, old, new, part.file_offset, part.size)
    fields = (segment.mode, plane.dtype, part.count, segment.top, len(segment.tables), *group, *columns)
    factors = (plane.rows if curve else 0, len(segment.factor_tables))
    return b"".join(
        (
            _numbers((*fields, *bend, *signed, *places)) + segment.tables,
            _numbers(factors) + segment.factor_tables,
            _numbers((part.rows[0] if curve else 0, len(laid.factor_block))) + laid.factor_block,
        )
    )


def block_bytes(tables: Sequence[Sequence[int]], parts: Sequence[LaidPart], block: bytes) -> bytes:
    """Return the content of a block file."""
    head = _numbers((len(tables), len(parts), len(block), *(n for table in tables for n in table)))
    return head + b"".join(map(part_bytes, parts)) + block


def _coded(
    header: Header, file: OutputFile, content: Callable[[int], bytes], made: bytearray, base: bytes
) -> Iterator[bytes]:
    """Yield the file of each coded block; write stored segments into ``made``."""
    raw = iter([(segment, at) for _, segment, at in segments_of(file) if segment.mode is Mode.RAW])
    factor_block = b""
    for number, need in enumerate(schedule(file, iter(header.blocks))):
        if need.plane:
            factor_block = content(number)
        elif need.segment:
            segment, at = next(raw)
            prefix = base[segment.base_offset :][: segment.dictionary] if segment.dictionary else b""
            made[at : at + segment.length] = zstd.decompress(content(number), segment.length, prefix=prefix)
        else:
            yield block_bytes(header.tables, _laid(need, factor_block), content(number))


def _laid(need: Need, factor_block: bytes) -> list[LaidPart]:
    """Give the factors' block to the parts whose factors lie in one."""
    apart = [bool(part.segment.curve) and not is_inline(part.plane, part.segment) for part in need.parts]
    return [LaidPart(part, factor_block * lies) for part, lies in zip(need.parts, apart, strict=True)]


def lay_out(base: Path, package: Path, directory: Path) -> list[Path]:
    """Write ``new`` and the block files into a directory; return the latter in their order."""
    header, packed, old = read_header(package), package.read_bytes(), base.read_bytes()
    (file,) = header.files
    offsets = header.block_offsets()
    made, paths = bytearray(file.size), list[Path]()
    for _, segment, at in segments_of(file):
        if segment.mode is Mode.SAME:
            made[at : at + segment.length] = old[segment.base_offset :][: segment.length]

    def content(number: int) -> bytes:
        return packed[offsets[number] :][: header.blocks[number].length]

    for laid in _coded(header, file, content, made, old):
        paths.append(directory / f"{len(paths):04}.block")
        paths[-1].write_bytes(laid)
    (directory / "new").write_bytes(made)
    return paths


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
