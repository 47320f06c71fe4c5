"""What a package says of itself: read from the header alone, nothing is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoglm.patch.header import read_header
from autoglm.patch.package import BaseFile, Header, Mode, OutputFile, Plane, unchanged_base


@dataclass(frozen=True)
class FileInfo:
    """A file that the package makes; ``mode`` is ``same``, ``patch`` (reads the base) or ``full``."""

    path: str
    size: int
    sha256: str
    mode: str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that the package makes.

    Attributes:
        file: the path of the file it lies in.
        name, dtype, shape: as in that file.
        mode: ``same``, ``raw``, ``full``, ``difference``, ``scaled``, ``predicted`` or ``pairs``; several
            joined by ``+``.
        rank: of the factors that predict it, 0 for none.
        bytes: of the tensor.
        package_bytes: what it takes in the package.
        entropy_bytes: what the context model could not go below: the entropy of the tokens in their contexts.
        changed: share of its elements that differ from the base, from 0 to 1; 1 without a base.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    mode: str
    rank: int
    bytes: int
    package_bytes: int
    entropy_bytes: int
    changed: float


@dataclass(frozen=True)
class PackageInfo:
    """A package at a glance.

    Attributes:
        kind: ``patch`` when it reads a base, else ``full``.
        single: it makes one file, not a directory.
        files: what it makes.
        base_files: what it reads.
        tensors: the tensors in ``files``.
        num_blocks, num_tables: blocks and frequency tables.
        header_length, header_sha256: the pin that ``apply`` takes.
        package_bytes, output_bytes: the package's size, and that of all it makes.
    """

    kind: str
    single: bool
    files: tuple[FileInfo, ...]
    base_files: tuple[BaseFile, ...]
    tensors: tuple[TensorInfo, ...]
    num_blocks: int
    num_tables: int
    header_length: int
    header_sha256: str
    package_bytes: int
    output_bytes: int


def inspect(package: Path) -> PackageInfo:
    """Read what the package at ``package`` makes, and from what.

    Raises:
        PackageError: it breaks the format.
        StorageError: it cannot be read.
    """
    header = read_header(package)
    return PackageInfo(
        kind="patch" if header.base_files else "full",
        single=header.single,
        files=tuple(_file(header, file) for file in header.files),
        base_files=header.base_files,
        tensors=tuple(_tensor(file, plane) for file in header.files for plane in file.planes if plane.name),
        num_blocks=len(header.blocks),
        num_tables=len(header.tables),
        header_length=header.length,
        header_sha256=header.sha256,
        package_bytes=header.package_bytes,
        output_bytes=header.output_bytes,
    )


def _file(header: Header, file: OutputFile) -> FileInfo:
    if unchanged_base(header, file):
        mode = "same"
    else:
        reads = any(segment.base >= 0 for plane in file.planes for segment in plane.segments)
        mode = "patch" if reads else "full"
    return FileInfo(file.path, file.size, file.sha256, mode)


def _tensor(file: OutputFile, plane: Plane) -> TensorInfo:
    modes = dict.fromkeys(segment.mode.name.lower() for segment in plane.segments)
    changed = sum(_changed(segment.mode, segment.changed_ppm) * segment.length for segment in plane.segments)
    return TensorInfo(
        file=file.path,
        name=plane.name,
        dtype=plane.dtype.name,
        shape=plane.shape,
        mode="+".join(modes) or "same",
        rank=max((segment.curve.rank for segment in plane.segments if segment.curve), default=0),
        bytes=plane.length,
        package_bytes=sum(segment.coded_bytes for segment in plane.segments),
        entropy_bytes=sum(segment.coded_bytes - segment.slack_bytes for segment in plane.segments),
        changed=changed / plane.length if plane.length else 0.0,
    )


def _changed(mode: Mode, ppm: int) -> float:
    return 0.0 if mode is Mode.SAME else 1.0 if mode is Mode.FULL else ppm / 1e6
