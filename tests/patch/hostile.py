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
    SCALE_DTYPES,
    Curve,
    Dtype,
    Mode,
    Part,
    Plane,
    Scales,
    Segment,
    allowed,
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


KINDS = [(mode, dtype) for mode in Mode if mode.coded for dtype in Dtype if allowed(mode, dtype)]


def random_part(rng: random.Random, num_tables: int) -> tuple[Part, core.Inputs]:
    mode, dtype = rng.choice(KINDS)
    columns = rng.choice((1, 3, 600, 5000))
    count = rng.choice((1, 5, 70)) if dtype.is_record else rng.choice((1, 5, 2047, 2048, 2049, 6001))
    start = rng.randrange(9)
    rows = -(-(start + count) // columns)
    contexts = rng.choice((1, num_contexts(mode, dtype)))
    tables = bytes(rng.randrange(num_tables) for _ in range(contexts))
    scales, curve, factors = None, None, None
    if mode is Mode.SCALED or (mode > Mode.SCALED and dtype is not Dtype.BF16 and rng.random() < 0.5):
        group = columns if mode is Mode.PREDICTED or columns < 600 else rng.choice((columns, columns // 20))
        scales = Scales(rng.choice(sorted(SCALE_DTYPES)), group, 0, 0)
    if mode is Mode.PREDICTED:
        scales = scales if dtype is Dtype.I8 else None
        curve = random_curve(rng)
        factors = core.new_factors(rows, columns, curve.rank)
        for numbers in (factors.left, factors.right):
            for at in range(0, len(numbers), 2):
                numbers[at : at + 2] = rng.randint(-2047, 2047).to_bytes(2, "little", signed=True)
    segment = Segment(
        mode, rows * columns, 0, top=rng.randrange(256), tables=tables, scales=scales, curve=curve
    )
    part = Part(Plane("", dtype, (rows, columns), (segment,)), segment, start, count, 0)
    if mode is Mode.FULL:
        return part, core.Inputs()
    base = rng.randbytes(count * dtype.size)
    first, past = part.groups
    width = scales.dtype.size if scales else 0
    before, after = (rng.randbytes((past - first) * width) for _ in range(2))
    return part, core.Inputs(base, before, after, factors)


def random_curve(rng: random.Random) -> Curve:
    slope = rng.randint(-65535, 65535)
    bend = rng.randint(abs(slope) - 65535, 65535 - abs(slope))
    return Curve(
        rank=rng.choice((1, 2, 5, 64)),
        drop=rng.choice((0, 3, 31)),
        limit=rng.choice((1, 900, 32767)),
        classes=rng.choice((0, 40, 65535)),
        slope=slope,
        bend=bend,
        shift=rng.choice((-31, -4, 0, 9, 31)),
    )


def attack(rng: random.Random) -> bool:
    """Decode a block that was changed after it was made, or never was one; tell whether it decoded."""
    tables = [random_table(rng) for _ in range(rng.randint(1, 4))]
    parts, inputs = zip(*(random_part(rng, len(tables)) for _ in range(rng.randint(1, 3))), strict=True)
    words = rng.choice((0, 1, 17, 3000))
    states = b"".join(rng.randrange(1 << 15, 1 << 31).to_bytes(4, "little") for _ in range(32))
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
    for need in schedule(header.files[0], iter(header.blocks)):
        offset, parts = next(offsets), need.parts
        if parts and all(part.segment.mode in (Mode.FULL, Mode.DIFFERENCE) for part in parts):
            inputs = [core.Inputs(_base_of(part, base_bytes)) for part in parts]
            tables = core.decoding_tables(header.tables)
            return RealBlock(tables, content[offset:][: need.block.length], parts, inputs)
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
    real = real_block(base, vectors / "full.wpatch")
    for _ in range(rounds):
        attack(rng)
        damage(rng, real)
    print("clean")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
