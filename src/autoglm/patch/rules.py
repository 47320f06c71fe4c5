"""The rules that tie the parts of a header together: paths, references into the base, tables, blocks.

What single fields may be is checked where they are read, in :mod:`autoglm.patch.header`.
"""

from __future__ import annotations

from typing import NoReturn

from autoglm.errors import PackageError
from autoglm.patch import package
from autoglm.patch.package import Dtype, Header, Mode, Plane, Segment


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
        for _, _, parts in package.schedule(file, blocks):
            _check_parts(parts)
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
    if mode is Mode.SCALED:
        _check_scaled(header, plane, segment)


def _check_coded(header: Header, plane: Plane, segment: Segment) -> None:
    if plane.dtype not in package.CODED_DTYPES or segment.length % plane.dtype.size:
        _refuse(f"{plane.name!r} cannot be coded in whole elements of its type")
    if len(segment.tables) not in (1, package.num_contexts(segment.mode, plane.dtype)):
        _refuse(f"{plane.name!r} has a wrong number of contexts")
    if max(segment.tables) >= len(header.tables):
        _refuse(f"{plane.name!r} uses a table that is not there")


def _check_scaled(header: Header, plane: Plane, segment: Segment) -> None:
    if plane.dtype is not Dtype.I8 or segment.scale_dtype not in package.SCALE_DTYPES:
        _refuse(f"{plane.name!r}: only int8 with float scales can be scaled")
    if len(plane.segments) != 1 or plane.rows < 1 or not 0 < plane.columns <= package.MAX_COLUMNS:
        _refuse(f"{plane.name!r}: a scaled segment must be a whole plane of rows")
    scales = plane.rows * segment.scale_dtype.size
    if segment.base_scale + scales > header.base_files[segment.base].size:
        _refuse(f"{plane.name!r} reads scales outside its base file")


def _check_parts(parts: list[package.Part]) -> None:
    for part in parts:
        if part.scales_end > parts[0].file_offset:
            _refuse(f"{part.plane.name!r} needs scales that are made after it")
