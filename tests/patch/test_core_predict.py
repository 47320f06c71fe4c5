"""SCALED and PREDICTED in the core against a plain reading of the format document, at every CPU level."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from patch import native_core as native
from patch import prediction_reference as reference
from patch.native_core import (
    BF16,
    DIFFERENCE,
    F8_E4M3,
    F8_E5M2,
    F16,
    F32,
    I8,
    PREDICTED,
    SCALED,
    Part,
    make_part,
)
from patch.prediction_reference import Curve, Guess

HERE = Path(__file__).parent
FLOATS = (F8_E4M3, F8_E5M2, F16, BF16, F32)
UNSIGNED = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
CURVES = (
    Curve(16, 4, 32767, 30000, 8000, -3, 30),
    Curve(1, 0, 32767, 65535, 0, 0, 65535),
    Curve(2, 0, 32767, -1, 65534, 31, 1),
    Curve(3, 31, 1, -65535, 0, 31, 0),
    Curve(5, 3, 32767, 0, -65535, 14, 9),
    Curve(64, 9, 1000, 40000, 25535, -31, 500),
    Curve(7, 0, 1, 1, 0, 0, 65535),
    Curve(4, 2, 20000, 12345, -6789, 2, 21),
)
SCALE_WIDTHS = {F16: 2, BF16: 2, F32: 4}
NAMES = {F8_E4M3: "e4m3", F8_E5M2: "e5m2", F16: "f16", BF16: "bf16", F32: "f32", I8: "i8"}


@cache
def core(level: int) -> native.Core:
    """The core with the probe in it; the widest level as it is shipped, with vectors made of plain loops."""
    directory = Path(tempfile.mkdtemp(prefix="wpatch-probe-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    probe_source = str(HERE / "predict_probe.c")
    optimised = "-O3" if level == max(native.LEVELS) else "-O1"
    return native.Core(
        native.build(directory / "probe.so", level, optimised, f"-I{native.NATIVE}", probe_source)
    )


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def probe(part: Part, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return contexts, predictions (floats ordered), turns and values of a part's elements."""
    kinds = (np.uint16, np.uint32, np.uint8, np.uint32)
    arrays = tuple(np.zeros(part.count, kind) for kind in kinds)
    assert core(level).library.probe(ctypes.byref(part), *map(pointer, arrays)) == native.OK
    return arrays


def expected(part: Part, guesses: list[Guess]) -> tuple[list[int], list[int], list[int], list[int]]:
    size, is_float = native.SIZES[part.dtype], part.dtype in reference.FLOATS
    width, elements = 8 * size, part.arrays["elements"].view(UNSIGNED[size]).tolist()
    ordered = [reference.order(g.prediction, width) if is_float else g.prediction for g in guesses]
    values = [reference.value(u, g, width, is_float=is_float) for u, g in zip(elements, guesses, strict=True)]
    return [g.context for g in guesses], ordered, [int(g.turned) for g in guesses], values


def agree(part: Part, guesses: list[Guess]) -> None:
    """Core and reference say the same about every element, and the elements come back."""
    wanted, elements = expected(part, guesses), part.arrays["elements"].copy()
    contexts = core(0).num_contexts(part.mode, part.dtype)
    maps = np.arange(contexts, dtype=np.uint32).astype(np.uint8) * 37 % 64
    for level in native.LEVELS:
        names = ("context", "prediction", "turn", "value")
        for name, got, want in zip(names, probe(part, level), wanted, strict=True):
            wrong = np.flatnonzero(got != np.array(want, got.dtype))
            assert wrong.size == 0, (level, name, wrong[:3], got[wrong[:3]], [want[i] for i in wrong[:3]])
        tables = np.zeros(part.count, np.uint8)
        part.tables, part.num_contexts = maps.ctypes.data, contexts
        assert core(level).library.probe_tables(ctypes.byref(part), pointer(tables)) == native.OK
        part.num_contexts = 1
        assert np.array_equal(tables, maps[np.array(wanted[0])])
        assert np.array_equal(part.arrays["elements"], elements)


def random_floats(rng: np.random.Generator, dtype: int, count: int) -> np.ndarray:
    """Bits of any floats: all of a byte's, and near the weights of a model, and special ones."""
    size = native.SIZES[dtype]
    x, m = reference.FLOATS[dtype]
    kind = UNSIGNED[size]
    bits = rng.integers(0, 1 << (8 * size), count, np.uint64)
    exponents = np.clip(rng.normal((1 << x) * 0.45, 3, count), 0, (1 << x) - 1).astype(np.uint64)
    usual = bits & np.uint64(1 << (x + m) | ((1 << m) - 1)) | exponents << np.uint64(m)
    bits = np.where(rng.random(count) < 0.8, usual, bits)
    special = [0, 1, (1 << m) - 1, 1 << m, ((1 << x) - 1) << m, (((1 << x) - 1) << m) + 1, (1 << (x + m)) - 1]
    special += [s | 1 << (x + m) for s in special]
    bits[rng.random(count) < 0.03] = rng.choice(np.array(special, np.uint64))
    return bits.astype(kind)


def random_factors(
    rng: np.random.Generator, rows: int, columns: int, rank: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    left = rng.integers(-limit, limit + 1, (rows, rank))
    right = rng.integers(-limit, limit + 1, (columns, rank))
    left[rng.random(rows) < 0.1] = 0
    return left, right


def predicted_part(
    rng: np.random.Generator, dtype: int, curve: Curve, columns: int, count: int, top: int
) -> Part:
    """A part that begins and ends somewhere in a row."""
    first = int(rng.integers(0, columns))
    rows = (first + count + columns - 1) // columns
    limit = int(rng.choice([1, 20, 300, 2047]))
    left, right = random_factors(rng, rows, columns, curve.rank, limit)
    packed = native.pack_factors(left, right)
    if dtype == I8:
        base = rng.integers(0, 256, count, np.uint64).astype(np.uint8)
        elements = base + rng.integers(0, 3, count, np.uint8)
    else:
        base = random_floats(rng, dtype, count)
        elements = np.where(
            rng.random(count) < 0.7, base + rng.integers(0, 3, count).astype(base.dtype), base
        )
        elements = np.where(rng.random(count) < 0.1, random_floats(rng, dtype, count), elements)
    part = make_part(
        PREDICTED, dtype, count, top=top, columns=columns, first_column=first, num_rows=rows,
        curve=(curve.rank, curve.drop, curve.limit, curve.slope, curve.bend, curve.shift, curve.classes),
        base=base.view(np.uint8), elements=elements.astype(base.dtype).view(np.uint8),
        left=packed[0], right=packed[1],
    )  # fmt: skip
    part.factors = left, right
    return part


def products(part: Part) -> list[int]:
    left, right = (factor.tolist() for factor in part.factors)
    places = range(part.first_column, part.first_column + part.count)
    return [reference.product(left[i // part.columns], right[i % part.columns]) for i in places]


def scales(part: Part) -> list[int]:
    """The ratio of each element's scales."""
    if not part.scale_dtype:
        return [reference.ONE] * part.count
    kind = UNSIGNED[SCALE_WIDTHS[part.scale_dtype]]
    old, new = (part.arrays[name].view(kind).tolist() for name in ("old_scales", "new_scales"))
    ratios = [reference.ratio(a, b, part.scale_dtype) for a, b in zip(old, new, strict=True)]
    return [ratios[i // part.group] for i in range(part.first, part.first + part.count)]


def add_scales(rng: np.random.Generator, part: Part, scale_dtype: int, group: int, first: int) -> None:
    """Scales of which some stay, some move a little, and some are anything."""
    kind = UNSIGNED[SCALE_WIDTHS[scale_dtype]]
    count = (first + part.count + group - 1) // group
    old = random_floats(rng, scale_dtype, count) & kind.type((1 << (8 * kind.itemsize - 1)) - 1)
    moved = old + rng.integers(0, 40, count).astype(kind)
    new = np.where(rng.random(count) < 0.4, old, moved)
    new = np.where(rng.random(count) < 0.15, random_floats(rng, scale_dtype, count), new).astype(kind)
    for name, array in (("old_scales", old), ("new_scales", new)):
        part.arrays[name] = np.ascontiguousarray(array).view(np.uint8)
        setattr(part, name, part.arrays[name].ctypes.data)
    part.scale_dtype, part.group, part.first, part.num_scales = scale_dtype, group, first, count


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
def test_floats_are_predicted_as_the_document_says(dtype: int, curve: Curve) -> None:
    """Any base, any top, any allowed curve: context, prediction, turn and value agree at every level."""
    rng = np.random.default_rng([dtype, *map(abs, (curve.slope, curve.bend, curve.rank))])
    usual = round((1 << reference.FLOATS[dtype][0]) * 0.45) + 5
    for top, columns, count in ((usual, 700, 2600), (usual, 33, 130), (0, 64, 70), (255, 5, 90), (1, 1, 40)):
        part = predicted_part(rng, dtype, curve, columns, count, top)
        guesses = [
            reference.predicted_float(b, dtype, top, acc, curve)
            for b, acc in zip(
                part.arrays["base"].view(UNSIGNED[native.SIZES[dtype]]).tolist(), products(part), strict=True
            )
        ]
        agree(part, guesses)


@pytest.mark.parametrize(
    ("columns", "count", "rank"), ((900, 4000, 16), (900, 5000, 64), (17_000, 40_000, 1))
)
def test_products_of_large_factors_are_as_the_document_says(columns: int, count: int, rank: int) -> None:
    """Factors too large for a near cache serve two rows at a time, but for very long rows."""
    rng = np.random.default_rng([columns, rank])
    curve = Curve(rank, 3, 32767, 20000, 3000, -6, 20)
    part = predicted_part(rng, BF16, curve, columns, count, 125)
    base = part.arrays["base"].view("<u2").tolist()
    left, right = part.factors
    places = np.arange(part.first_column, part.first_column + count)
    sums = (left @ right.T)[places // columns, places % columns].tolist()
    agree(part, [reference.predicted_float(b, BF16, 125, n, curve) for b, n in zip(base, sums, strict=True)])


@pytest.mark.parametrize("scale_dtype", (0, F16, BF16, F32), ids=lambda d: NAMES.get(d, "none"))
@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_codes_are_predicted_as_the_document_says(curve: Curve, scale_dtype: int) -> None:
    """With scales, kept, moved or senseless, and without: I8 agrees at every level."""
    rng = np.random.default_rng([scale_dtype, *map(abs, (curve.slope, curve.bend, curve.rank))])
    for columns, count in ((700, 2600), (33, 700), (1, 40)):
        part = predicted_part(rng, I8, curve, columns, count, 0)
        if scale_dtype:
            add_scales(rng, part, scale_dtype, columns, part.first_column)
        base = part.arrays["base"].tolist()
        guesses = [
            reference.predicted_code(b, r, acc, curve)
            for b, r, acc in zip(base, scales(part), products(part), strict=True)
        ]
        agree(part, guesses)


@pytest.mark.parametrize("group", (1, 2, 32, 37, 512, 5000))
@pytest.mark.parametrize("scale_dtype", (F16, BF16, F32), ids=NAMES.get)
def test_scaled_groups_are_as_the_document_says(scale_dtype: int, group: int) -> None:
    """Groups of any size, begun anywhere: those that kept their scale have contexts of their own."""
    rng = np.random.default_rng([scale_dtype, group])
    count = 4500
    base = rng.integers(0, 256, count, np.uint64).astype(np.uint8)
    part = make_part(SCALED, I8, count, base=base, elements=base + rng.integers(0, 3, count, np.uint8))
    add_scales(rng, part, scale_dtype, group, int(rng.integers(0, group)))
    guesses = [reference.scaled(b, r) for b, r in zip(base.tolist(), scales(part), strict=True)]
    assert group == 5000 or {g.context < 9 for g in guesses} == {True, False}
    agree(part, guesses)


def difference_guess(b: int, dtype: int, top: int) -> Guess:
    if dtype not in reference.FLOATS:
        return Guess(b, reference.magnitude_class(b), b >= 128)
    x, m = reference.FLOATS[dtype]
    return Guess(b, min(19, max(0, top - (b >> m & ((1 << x) - 1)))), bool(b >> (x + m)))


@pytest.mark.parametrize("dtype", (*FLOATS, I8), ids=NAMES.get)
def test_differences_are_as_the_document_says(dtype: int) -> None:
    """Contexts by exponent or magnitude, and the base itself as the prediction."""
    rng = np.random.default_rng(dtype)
    kind = UNSIGNED[native.SIZES[dtype]]
    for top, count in ((0, 33), (9, 100), (70, 2500), (255, 64)):
        base = (
            random_floats(rng, dtype, count) if dtype != I8 else rng.integers(0, 256, count).astype(np.uint8)
        )
        elements = (base + rng.integers(0, 5, count).astype(kind)).astype(kind)
        part = make_part(
            DIFFERENCE, dtype, count, top=top, base=base.view(np.uint8), elements=elements.view(np.uint8)
        )
        guesses = [difference_guess(b, dtype, top) for b in base.tolist()]
        wanted = expected(part, guesses)
        for level in native.LEVELS:
            contexts, _, _, values = probe(part, level)
            assert contexts.tolist() == wanted[0]
            assert values.tolist() == wanted[3]


def round_trip(part: Part, level: int) -> None:
    histogram, changed = core(level).count(part)
    elements = part.arrays["elements"].copy()
    used = np.flatnonzero(histogram.sum(1))
    contexts = len(histogram)
    # as many tables as there may be: contexts share them in turn
    shared = np.zeros((min(64, contexts), 64), np.uint64)
    maps = (np.arange(contexts) % 64).astype(np.uint8)
    np.add.at(shared, maps, histogram)
    part.tables, part.num_contexts = maps.ctypes.data, contexts
    tables = native.make_tables(shared)
    block = core(level).encode(tables, part)
    assert used.size
    assert changed == np.count_nonzero(
        (part.arrays["base"] != elements).reshape(-1, native.SIZES[part.dtype]).any(axis=1)
    )
    part.arrays["elements"][:] = 0
    core(level).decode(tables, block, part)
    assert np.array_equal(part.arrays["elements"], elements)


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("dtype", (*FLOATS, I8), ids=NAMES.get)
def test_a_predicted_part_comes_back_from_its_block(dtype: int, level: int) -> None:
    """Counted, encoded with 64 tables, decoded: the elements are what they were."""
    rng = np.random.default_rng([dtype, level])
    for curve, columns in itertools.product(CURVES[:3], (1, 100, 3000)):
        round_trip(predicted_part(rng, dtype, curve, columns, 5000, 60), level)


def test_the_histogram_holds_the_contexts_and_tokens_of_the_document() -> None:
    """Counting says what the plain reading says."""
    rng = np.random.default_rng(5)
    curve = CURVES[0]
    part = predicted_part(rng, BF16, curve, 100, 3000, 125)
    base = part.arrays["base"].view("<u2").tolist()
    guesses = [
        reference.predicted_float(b, BF16, 125, acc, curve)
        for b, acc in zip(base, products(part), strict=True)
    ]
    contexts, _, _, values = expected(part, guesses)
    wanted = np.zeros((640, 64), np.uint64)
    np.add.at(wanted, (contexts, [reference.token(z, 16) for z in values]), 1)
    for level in native.LEVELS:
        assert np.array_equal(core(level).count(part)[0], wanted)


# fields of a PREDICTED part, and values that break a limit
HOSTILE = (
    *(("rank", 0), ("rank", 65), ("drop", 32), ("limit", 0), ("limit", 32768), ("classes", 65536)),
    *(("shift", 32), ("shift", -32), ("slope", 65536), ("slope", -(1 << 31)), ("bend", 65536)),
    *(("bend", -(1 << 31)), ("slope", 57536), ("columns", 0), ("columns", 1 << 31), ("num_rows", 0)),
    *(("num_rows", 4), ("num_rows", (1 << 32) - 1), ("first_column", 300), ("first_column", (1 << 32) - 1)),
    *(("left", 0), ("right", 0), ("base", 0), ("elements", 0), ("count", 0), ("count", (1 << 19) + 1)),
    *(("top", 256), ("num_contexts", 0), ("num_contexts", 20), ("scale_dtype", F16), ("dtype", 2)),
)


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_a_predicted_part_beyond_a_limit_is_refused(name: str, value: int) -> None:
    """Each limit of the curve, of the factors' shape and of the part has its check."""
    rng = np.random.default_rng(1)
    part = predicted_part(rng, BF16, CURVES[0], 300, 1300, 125)
    part.first_column = 0
    part.num_rows = 5
    setattr(part.curve if hasattr(part.curve, name) else part, name, value)
    histogram, changed = np.zeros((640, 64), np.uint64), ctypes.c_uint64()
    status = core(0).library.wpatch_count(ctypes.byref(part), pointer(histogram), ctypes.byref(changed))
    assert status == native.BAD_ARGUMENT


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("group", 0), ("group", (1 << 28) + 1), ("first", 32), ("first", (1 << 32) - 1), ("num_scales", 4),
        ("num_scales", 0), ("scale_dtype", 0), ("scale_dtype", F8_E4M3), ("old_scales", 0), ("new_scales", 0),
        ("dtype", native.U8), ("base", 0),
    ),
)  # fmt: skip
def test_a_scaled_part_beyond_a_limit_is_refused(name: str, value: int) -> None:
    """Groups must be sound, and their scales must cover the elements."""
    rng = np.random.default_rng(1)
    base = np.zeros(160, np.uint8)
    part = make_part(SCALED, I8, 160, base=base, elements=base.copy())
    add_scales(rng, part, F16, 32, 0)
    setattr(part, name, value)
    histogram, changed = np.zeros((18, 64), np.uint64), ctypes.c_uint64()
    status = core(0).library.wpatch_count(ctypes.byref(part), pointer(histogram), ctypes.byref(changed))
    assert status == native.BAD_ARGUMENT


def test_predicted_codes_need_a_group_that_is_the_row() -> None:
    """Other groups, or a group that does not begin with the row, are refused."""
    rng = np.random.default_rng(1)
    for group, first in ((150, 0), (300, 7), (600, 0)):
        part = predicted_part(rng, I8, CURVES[0], 300, 900, 0)
        part.first_column, part.num_rows = 0, 3
        add_scales(rng, part, F16, group, first)
        with pytest.raises(native.CoreError):
            core(0).count(part)


def clean(directory: Path, rounds: int) -> None:
    """Build the core's halves that model elements with sanitizers, and give them parts of any kind."""
    program = directory / "fuzz"
    flags = ("-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sources = [str(path) for path in (HERE / "predict_fuzz.c", *sorted(native.NATIVE.glob("*.c")))]
    build = ["cc", *flags, f"-I{native.NATIVE}", *sources, "-o", str(program)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program), str(rounds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > rounds // 2


def test_parts_of_any_kind_are_clean_under_sanitizers(tmp_path: Path) -> None:
    """Refused, or read and written back without a bad access or undefined behaviour."""
    clean(tmp_path, 1500)


@pytest.mark.long
def test_very_many_parts_are_clean_under_sanitizers(tmp_path: Path) -> None:
    """The same with a hundred thousand parts."""
    clean(tmp_path, 100_000)
