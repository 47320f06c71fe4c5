"""The rules that tie the parts of a header together: paths, references into the base, tables, blocks.

What single fields may be is checked where they are read, in :mod:`autoglm.patch.header`.
"""

from __future__ import annotations

from typing import NoReturn

from autoglm.errors import PackageError
from autoglm.patch import package
from autoglm.patch.package import Curve, Dtype, Header, Mode, Plane, Scales, Segment


def check(header: Header) -> None:
    """Check that a header makes sense as a whole.

    Raises:
        PackageError: a rule is broken; the message names the tensor or the file.
    """
    for paths in ([base.path for base in header.base_files], [file.path for file in header.files]):
        inner = {parent for path in paths for parent in _parents(path)}
        if len(set(paths)) != len(paths) or inner & set(paths):
            _refuse("a path is listed twice, or is both a file and a directory")
    if header.single and (len(header.files) != 1 or len(header.base_files) > 1):
        _refuse("a package of a single file must make one file, from one base file at most")
    if header.output_bytes > package.MAX_BYTES:
        _refuse("the files are too large together")
    blocks = iter(header.blocks)
    for file in header.files:
        for plane, segment, _ in package.segments_of(file):
            _check_segment(header, plane, segment)
        for need in package.schedule(file, blocks):
            _check_parts(need.parts)
    if next(blocks, None) is not None:
        _refuse("there are more blocks than the files need")


def _parents(path: str) -> list[str]:
    pieces = path.split("/")
    return ["/".join(pieces[:depth]) for depth in range(1, len(pieces))]


def _refuse(what: str) -> NoReturn:
    raise PackageError(f"package header: {what}")


def _check_segment(header: Header, plane: Plane, segment: Segment) -> None:
    mode, base = segment.mode, segment.base
    if base >= len(header.base_files) or (base < 0 and mode not in (Mode.RAW, Mode.FULL)):
        _refuse(f"{plane.name!r} has no such base file")
    if segment.base_offset + segment.reach > (header.base_files[base].size if base >= 0 else 0):
        _refuse(f"{plane.name!r} reads outside its base file")
    if mode is Mode.RAW and segment.length > package.MAX_RAW_BYTES:
        _refuse(f"{plane.name!r} has too long a raw segment")
    if 0 < segment.dictionary < package.MIN_DICTIONARY_BYTES:
        _refuse(f"{plane.name!r} has too short a dictionary")
    if mode.coded:
        _check_coded(header, plane, segment)


def _check_coded(header: Header, plane: Plane, segment: Segment) -> None:
    mode, dtype = segment.mode, plane.dtype
    if not package.allowed(mode, dtype) or segment.length % dtype.size:
        _refuse(f"{plane.name!r} cannot be coded in whole elements of its type")
    if len(segment.tables) not in (1, package.num_contexts(mode, dtype)):
        _refuse(f"{plane.name!r} has a wrong number of contexts")
    if mode >= Mode.SCALED:
        _check_matrix(plane)
    if segment.scales:
        _check_scales(header, plane, segment, segment.scales)
    if segment.curve:
        _check_factors(plane, segment, segment.curve)


def _check_matrix(plane: Plane) -> None:
    if len(plane.segments) != 1 or plane.rows < 1 or not 0 < plane.columns <= package.MAX_COLUMNS:
        _refuse(f"{plane.name!r}: a segment of this mode must be a whole plane of rows")


def _check_scales(header: Header, plane: Plane, segment: Segment, scales: Scales) -> None:
    if scales.dtype not in package.SCALE_DTYPES or segment.length % scales.group:
        _refuse(f"{plane.name!r}: its scales are not floats, or their groups do not divide it")
    if segment.curve and (plane.dtype is not Dtype.I8 or scales.group != plane.columns):
        _refuse(f"{plane.name!r}: a predicted plane can only have one scale a row of int8")
    length = segment.length // scales.group * scales.dtype.size
    if scales.old + length > header.base_files[segment.base].size:
        _refuse(f"{plane.name!r} reads scales outside its base file")


def _check_factors(plane: Plane, segment: Segment, curve: Curve) -> None:
    if (plane.rows + plane.columns) * curve.rank > package.MAX_FACTORS:
        _refuse(f"{plane.name!r} has too many factors")
    if len(segment.factor_tables) not in (1, package.MAX_FACTOR_RANK):
        _refuse(f"{plane.name!r} has a wrong number of factor contexts")


def _check_parts(parts: list[package.Part]) -> None:
    for part in parts:
        if part.scales_end > parts[0].file_offset:
            _refuse(f"{part.plane.name!r} needs scales that are made after it")
