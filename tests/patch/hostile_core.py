"""Damaged blocks for a core built with sanitizers: ``hostile_core.py LIBRARY ROUNDS`` prints ``clean``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import native_core as nc

KINDS = [(mode, dtype) for mode in (nc.DIFFERENCE, nc.FULL) for dtype in (nc.I8, nc.F8_E5M2, nc.BF16, nc.F32)]


def damaged(block: bytes, rng: np.random.Generator) -> bytes:
    """Return a block cut, extended, or with some of its bytes changed."""
    raw, way = bytearray(block), rng.integers(4)
    if way == 0:
        del raw[int(rng.integers(len(raw))) :]
    elif way == 1:
        raw += rng.bytes(int(rng.integers(1, 700)))
    elif way == 2:
        raw[128:132] = int(rng.integers(len(raw))).to_bytes(4, "little")
    for _ in range(int(rng.integers(0, 4))):
        if raw:
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return bytes(raw)


def random_tables(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return tables of few or many tokens, always with token 0."""
    histogram = rng.integers(0, 1000, (count, 64)) * (rng.random((count, 64)) < rng.random())
    histogram[:, 0] += 1
    return nc.make_tables(histogram)


def try_elements(core: nc.Core, rng: np.random.Generator) -> None:
    """Encode some elements and decode the block, whole and damaged."""
    mode, dtype = KINDS[rng.integers(len(KINDS))]
    count = int(rng.choice([1, 30, 64, 500, 3000]))
    base = rng.integers(0, 256, count * nc.SIZES[dtype]).astype(np.uint8)
    new = np.where(rng.random(base.size) < 0.9, base, rng.integers(0, 256, base.size)).astype(np.uint8)
    contexts = core.num_contexts(mode, dtype)
    fields = {"tables": np.arange(contexts, dtype=np.uint8), "num_contexts": contexts, "top": 255}
    fields |= {"base": base} if mode == nc.DIFFERENCE else {}
    source = nc.make_part(mode, dtype, count, elements=new, **fields)
    tables = nc.make_tables(core.count(source)[0])
    block = core.encode(tables, source)
    target = nc.make_part(mode, dtype, count, **fields)
    core.decode(tables, block, target)
    assert (target.arrays["elements"] == new).all()
    core.decode_status(tables, damaged(block, rng), target)
    core.decode_status(random_tables(rng, contexts), damaged(block, rng), target)


def try_factors(core: nc.Core, rng: np.random.Generator) -> None:
    """The same with factors."""
    shape = (int(rng.integers(1, 90)), int(rng.integers(1, 90)), int(rng.integers(1, 9)))
    left, right = (rng.integers(-2047, 2048, (lines, shape[2])) for lines in shape[:2])
    left, right = nc.pack_factors(left, right)
    tables = nc.make_tables(core.count_factors(shape, left, right))
    block = core.encode_factors(tables, np.arange(64), shape, left, right)
    made = core.decode_factors(tables, block, np.arange(64), shape)
    assert (made[0] == left).all()
    assert (made[1] == right).all()
    with suppress(nc.CoreError):
        core.decode_factors(random_tables(rng, 64), damaged(block, rng), np.arange(64), shape)


def main(library: str, rounds: int) -> None:
    """Run the rounds; a sanitizer ends the process at the first fault."""
    core, rng = nc.Core(Path(library)), np.random.default_rng(0)
    for _ in range(rounds):
        try_elements(core, rng)
        try_factors(core, rng)
    print("clean")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
