"""The native core against a plain reading of the format, and both against the golden vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm import patch
from autoglm.patch import core
from autoglm.patch.package import Dtype, Mode, Part, Plane, Segment, num_contexts
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
    """Packages written by the first version of the format give the same bytes, by core and by reference."""
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


KINDS = [
    (mode, dtype)
    for mode in (Mode.FULL, Mode.DIFFERENCE, Mode.SCALED)
    for dtype in (Dtype.I8, Dtype.U8, Dtype.F8_E4M3, Dtype.F8_E5M2, Dtype.F16, Dtype.BF16, Dtype.F32)
    if mode is not Mode.SCALED or dtype is Dtype.I8
]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), start=st.integers(0, 11), count=st.integers(1, 40))
def test_core_and_reference_agree_on_arbitrary_blocks(
    data: st.DataObject, kind: tuple[Mode, Dtype], start: int, count: int
) -> None:
    """Any elements against any base, any scales, any top exponent, from any place in a row."""
    mode, dtype = kind
    columns, size = 7, dtype.size
    rows = -(-(start + count) // columns)
    total = rows * columns * size
    old, new, after = (data.draw(st.binary(min_size=n, max_size=n)) for n in (total, total, 4 * rows))
    before = data.draw(st.binary(min_size=4 * rows, max_size=4 * rows))
    scale = data.draw(st.sampled_from([Dtype.F16, Dtype.BF16, Dtype.F32]))
    width = scale.size * rows
    top = data.draw(st.integers(0, 255))
    segment = Segment(mode, total, 0, top=top, scale_dtype=scale, base_scale=total)
    plane = Plane("t", dtype, (rows, columns), (segment,))
    part = Part(plane, segment, start, count, 0)
    given_ = core.Inputs() if mode is Mode.FULL else core.Inputs(old[start * size :][: count * size])
    if mode is Mode.SCALED:
        first, past = part.rows
        cut = slice(first * scale.size, past * scale.size)
        given_ = core.Inputs(given_.base, before[:width][cut], after[:width][cut])
    elements = new[start * size :][: count * size]
    histogram = core.new_histogram(mode, dtype)
    core.count_tokens(part, given_, elements, histogram)
    counts = np.array(histogram, np.int64).reshape(num_contexts(mode, dtype), 64)
    found = pool([counts])
    segment = Segment(mode, total, 0, top=top, tables=found.maps[0], scale_dtype=scale, base_scale=total)
    part = Part(plane, segment, start, count, 0)
    block = core.encode_block(found.tables, [part], [given_], [elements])
    assert core.decode_block(core.decoding_tables(found.tables), block, [part], [given_]) == elements
    reader = BlockReader(found.tables, block)
    assert decode_part(reader, part, old + before[:width], after[:width]) == elements
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
