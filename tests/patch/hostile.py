"""Run the core over golden packages and hostile blocks; meant for a build with sanitizers.

Usage: ``hostile.py LIBRARY VECTORS ROUNDS``. A sanitizer that finds something ends the process.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from autoglm import patch
from autoglm.errors import PackageError
from autoglm.patch import core
from autoglm.patch.header import read_header
from autoglm.patch.package import (
    CODED_DTYPES,
    SCALE_DTYPES,
    Dtype,
    Mode,
    Part,
    Plane,
    Segment,
    num_contexts,
    schedule,
)


def random_table(rng: random.Random) -> list[int]:
    table = [0] * 64
    left = 2048
    while left:
        share = min(left, rng.choice((1, 1, 7, 100, 1000, 2048)))
        table[rng.randrange(64)] += share
        left -= share
    return table


def random_part(rng: random.Random, num_tables: int) -> tuple[Part, core.Inputs]:
    mode = rng.choice((Mode.FULL, Mode.DIFFERENCE, Mode.SCALED))
    dtype = Dtype.I8 if mode is Mode.SCALED else rng.choice(sorted(CODED_DTYPES))
    columns, count, start = (
        rng.choice((1, 3, 600, 5000)),
        rng.choice((1, 5, 2047, 2048, 2049, 6001)),
        rng.randrange(9),
    )
    rows = -(-(start + count) // columns)
    contexts = rng.choice((1, num_contexts(mode, dtype)))
    tables = bytes(rng.randrange(num_tables) for _ in range(contexts))
    scale = rng.choice(sorted(SCALE_DTYPES))
    top = rng.randrange(256)
    segment = Segment(mode, rows * columns, 0, top=top, tables=tables, scale_dtype=scale)
    part = Part(Plane("", dtype, (rows, columns), (segment,)), segment, start, count, 0)
    if mode is Mode.FULL:
        return part, core.Inputs()
    base = rng.randbytes(count * dtype.size)
    if mode is Mode.DIFFERENCE:
        return part, core.Inputs(base)
    first, past = part.rows
    scales = [rng.randbytes((past - first) * scale.size) for _ in range(2)]
    return part, core.Inputs(base, *scales)


def attack(rng: random.Random) -> bool:
    """Decode a block that was changed after it was made, or never was one; tell whether it decoded."""
    tables = [random_table(rng) for _ in range(rng.randint(1, 4))]
    parts, inputs = zip(*(random_part(rng, len(tables)) for _ in range(rng.randint(1, 3))), strict=True)
    words = rng.choice((0, 1, 17, 3000))
    states = b"".join(rng.randrange(1 << 15, 1 << 31).to_bytes(4, "little") for _ in range(4))
    block = (
        states + words.to_bytes(4, "little") + rng.randbytes(rng.choice((0, 5, 2 * words, 2 * words + 9000)))
    )
    if rng.random() < 0.2:
        block = rng.randbytes(rng.randrange(40))
    try:
        core.decode_block(core.decoding_tables(tables), block, parts, inputs)
    except PackageError:
        return False
    return True


@dataclass(frozen=True)
class RealBlock:
    """A coded block of a real package, with what it decodes from."""

    tables: core.DecodingTables
    content: bytes
    parts: list[Part]
    inputs: list[core.Inputs]


def real_block(base: Path, package: Path) -> RealBlock:
    """Return the first block of a package whose parts need no scales."""
    header = read_header(package)
    content, base_bytes = package.read_bytes(), base.read_bytes()
    offsets = iter(header.block_offsets())
    for block, segment, parts in schedule(header.files[0], iter(header.blocks)):
        offset = next(offsets)
        if segment is None and all(part.segment.mode is not Mode.SCALED for part in parts):
            inputs = [core.Inputs(_base_of(part, base_bytes)) for part in parts]
            tables = core.decoding_tables(header.tables)
            return RealBlock(tables, content[offset:][: block.length], parts, inputs)
    raise SystemExit("the package has no such block")


def _base_of(part: Part, base: bytes) -> bytes:
    if part.segment.mode is Mode.FULL:
        return b""
    size = part.plane.dtype.size
    return base[part.segment.base_offset + part.start * size :][: part.count * size]


def damage(rng: random.Random, real: RealBlock) -> None:
    """Decode a real block with a few of its bits changed."""
    broken = bytearray(real.content)
    for _ in range(rng.randint(1, 4)):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    with contextlib.suppress(PackageError):
        core.decode_block(real.tables, bytes(broken), real.parts, real.inputs)


def main(library: Path, vectors: Path, rounds: int) -> None:
    core.find_library = lambda: library
    base = vectors / "old.safetensors"
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "new.safetensors"
        patch.apply(base, vectors / "patch.wpatch", out)
        patch.diff(base, out, Path(directory) / "p")
        patch.diff(None, out, Path(directory) / "f")
        patch.apply(base, Path(directory) / "p", Path(directory) / "again")
        assert (Path(directory) / "again").read_bytes() == out.read_bytes()
    rng = random.Random(1)
    real = real_block(base, vectors / "patch.wpatch")
    for _ in range(rounds):
        attack(rng)
        damage(rng, real)
    print("clean")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
