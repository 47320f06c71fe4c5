"""The native core against a plain reading of the format, and both against the golden vectors."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm import patch
from autoglm.patch import core
from autoglm.patch.package import (
    Curve,
    Dtype,
    Mode,
    Part,
    Plane,
    Scales,
    Segment,
    allowed,
    num_contexts,
)
from autoglm.patch.tables import pool
from patch import tensors
from patch.conftest import Pair
from patch.reference import BlockReader, decode_part, decode_single

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "patch"


def test_the_reference_reads_what_the_codec_writes(models: Pair) -> None:
    """A patch and a full package with every mode and type decode to the new file without the core."""
    assert decode_single(models.old, models.package) == models.new.read_bytes()
    assert decode_single(None, models.full) == models.new.read_bytes()


@pytest.mark.parametrize("name", ["patch", "full"])
def test_golden_packages_still_decode(tmp_path: Path, name: str) -> None:
    """Packages written when the format got its version give the same bytes, by core and by reference."""
    base = VECTORS / "old.safetensors" if name == "patch" else None
    digest = json.loads((VECTORS / "digests.json").read_text())["new.safetensors"]
    patch.apply(base, VECTORS / f"{name}.wpatch", tmp_path / "out")
    for content in ((tmp_path / "out").read_bytes(), decode_single(base, VECTORS / f"{name}.wpatch")):
        assert hashlib.sha256(content).hexdigest() == digest


def test_golden_packages_are_still_written(tmp_path: Path) -> None:
    """The encoder is deterministic over machines and versions, or says so by a new vector."""
    patch.apply(None, VECTORS / "full.wpatch", tmp_path / "new.safetensors")
    patch.diff(VECTORS / "old.safetensors", tmp_path / "new.safetensors", tmp_path / "p")
    first, second = patch.inspect(tmp_path / "p"), patch.inspect(VECTORS / "patch.wpatch")
    assert first.tensors == second.tensors


KINDS = [(mode, dtype) for mode in Mode if mode.coded for dtype in Dtype if allowed(mode, dtype)]
COLUMNS = 6


def factors_of(rng: random.Random, rows: int, rank: int) -> core.Factors:
    factors = core.new_factors(rows, COLUMNS, rank)
    even = rank + rank % 2
    left = [2 * (row * even + k) for row in range(rows) for k in range(rank)]
    right = [2 * ((k // 2 * COLUMNS + column) * 2 + k % 2) for column in range(COLUMNS) for k in range(rank)]
    for numbers, places in ((factors.left, left), (factors.right, right)):
        for at in places:
            numbers[at : at + 2] = rng.randint(-2047, 2047).to_bytes(2, sys.byteorder, signed=True)
    return factors


CURVES = st.builds(
    lambda rank, drop, limit, classes, slope, part, shift: Curve(
        rank, drop, limit, classes, slope, int(part * (65535 - abs(slope))), shift
    ),
    *(st.sampled_from([1, 2, 5]), st.integers(0, 31), st.integers(1, 32767), st.integers(0, 65535)),
    *(st.integers(-65535, 65535), st.floats(-1, 1), st.integers(-31, 31)),
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), start=st.integers(0, 11), count=st.integers(1, 40))
def test_core_and_reference_agree_on_arbitrary_blocks(
    data: st.DataObject, kind: tuple[Mode, Dtype], start: int, count: int
) -> None:
    """Any elements against any base, scales, factors and top exponent, from any place in a row."""
    mode, dtype = kind
    count = min(count, 3) if dtype.is_record else count
    size, start = dtype.size, 0 if mode is Mode.PREDICTED else start
    rows = -(-(start + count) // COLUMNS)
    count = rows * COLUMNS if mode is Mode.PREDICTED else count
    total = rows * COLUMNS * size
    old, new = (data.draw(st.binary(min_size=total, max_size=total)) for _ in range(2))
    before, after = (data.draw(st.binary(min_size=8 * rows, max_size=8 * rows)) for _ in range(2))
    scales, curve, factors = None, None, None
    if mode is Mode.SCALED or (mode > Mode.SCALED and size == 1 and data.draw(st.booleans())):
        group = COLUMNS if mode is Mode.PREDICTED else data.draw(st.sampled_from([COLUMNS, COLUMNS // 2]))
        scales = Scales(data.draw(st.sampled_from([Dtype.F16, Dtype.BF16, Dtype.F32])), group, total, 0)
    if mode is Mode.PREDICTED:
        scales = scales if dtype is Dtype.I8 else None
        curve = data.draw(CURVES)
        factors = factors_of(data.draw(st.randoms(use_true_random=False)), rows, curve.rank)
    top = data.draw(st.integers(0, 255)) if mode is not Mode.FULL else core.top_exponent(dtype, new)
    segment = Segment(
        mode, total, 0, top=top, scales=scales, curve=curve, factor_tables=b"\0" if curve else b""
    )
    plane = Plane("t", dtype, (rows, COLUMNS), (segment,))
    part = Part(plane, segment, start, count, 0)
    width = scales.dtype.size if scales else 0
    needed = slice(part.groups[0] * width, part.groups[1] * width)
    base = b"" if mode is Mode.FULL else old[start * size :][: part.size]
    given_ = core.Inputs(base, before[needed], after[needed], factors)
    elements = new[start * size :][: part.size]
    histogram = core.new_histogram(num_contexts(mode, dtype))
    core.count_tokens(part, given_, elements, histogram)
    counts = [np.array(histogram, np.int64).reshape(num_contexts(mode, dtype), 64)]
    if factors:
        counts.append(np.array(core.count_factors(factors), np.int64).reshape(64, 64))
    found = pool(counts)
    segment = replace(segment, tables=found.maps[0], factor_tables=found.maps[-1] if factors else b"")
    part = Part(replace(plane, segments=(segment,)), segment, start, count, 0)
    block = core.encode_block(found.tables, [part], [given_], [elements])
    if factors:
        empty = core.new_factors(rows, COLUMNS, factors.rank)
        made = core.decode_block(
            core.decoding_tables(found.tables), block, [part], [replace(given_, factors=empty)]
        )
        assert (empty.left, empty.right) == (factors.left, factors.right)
    else:
        made = core.decode_block(core.decoding_tables(found.tables), block, [part], [given_])
    assert made == elements
    reader = BlockReader(found.tables, block)
    assert decode_part(reader, part, old + before, after) == elements
    reader.close()


def write_vectors() -> None:
    """Write the vectors anew; run by hand when the format gets a new version."""
    VECTORS.mkdir(parents=True, exist_ok=True)
    old, new = tensors.pair(VECTORS, seed=42, rows=12, columns=20)
    patch.diff(old, new, VECTORS / "patch.wpatch")
    patch.diff(None, new, VECTORS / "full.wpatch")
    digest = hashlib.sha256(new.read_bytes()).hexdigest()
    (VECTORS / "digests.json").write_text(json.dumps({new.name: digest}) + "\n")
    new.unlink()
