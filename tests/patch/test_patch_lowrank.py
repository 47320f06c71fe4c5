"""The search for factors: what it finds, what it refuses, and that it is the same every time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from autoglm.patch.costs import residual_bits
from autoglm.patch.lowrank import find, from_hint
from autoglm.patch.package import Curve, Dtype
from autoglm.patch.products import balanced, gather, leading, project, spread
from patch.matrices import Moved, floats, planted

FLOATS = [Dtype.F8_E4M3, Dtype.F8_E5M2, Dtype.F16, Dtype.BF16, Dtype.F32]


def plain_bits(moved: Moved) -> float:
    """Return what the matrix costs without a prediction."""
    return residual_bits(moved.count(None, None, 0, len(moved.old)), moved.dtype)


def tuned(dtype: Dtype, shape: tuple[int, int] = (192, 256), noise: float = 0.0, rank: int = 4) -> Moved:
    """Return a matrix that moved in a few directions, and at random by a share of that."""
    rng = np.random.default_rng(1)
    size = 2e-2 if dtype.size == 1 else 2e-4
    old = rng.standard_normal(shape) * (1.0 if dtype.size == 1 else 0.02)
    change = planted(rng, shape, rank, size) + noise * size * rng.standard_normal(shape)
    return floats(dtype, old, old + change)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_planted_update_is_found_in_every_float_type(dtype: Dtype) -> None:
    """A change of low rank costs far less with the factors that are found than without."""
    moved = tuned(dtype)
    bits = plain_bits(moved)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert found is not None and found.curve.rank >= 4
    assert found.bits < {1: 0.95, 2: 0.6, 4: 0.8}[dtype.size] * bits


def test_counts_are_those_of_the_factors_that_are_returned() -> None:
    """What the search says about tokens is what coding the whole matrix will use."""
    moved = tuned(Dtype.BF16, noise=0.2)
    found = find(moved.matrix, moved.count, best_bits=plain_bits(moved))
    assert found is not None
    again = moved.count(found.curve, found.factors, 0, len(moved.old))
    assert (found.counts == again).all()
    assert found.counts.sum() == moved.old.size
    assert found.factor_counts.sum() == found.factors.tokens


def test_saturated_updates_get_a_bent_curve() -> None:
    """Where large changes stay behind the product of the factors, as an optimiser makes them, curves bend."""
    rng = np.random.default_rng(2)
    old = rng.standard_normal((256, 256)) * 0.02
    moved = floats(Dtype.BF16, old, old + 3e-4 * np.tanh(planted(rng, old.shape, 3, 2.0)))
    found = find(moved.matrix, moved.count, best_bits=plain_bits(moved))
    assert found is not None and found.curve.bend > 0


def test_codes_with_new_scales_are_predicted() -> None:
    """Codes of INT8 whose rows got other scales are compared in units of the new ones."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((192, 256)) * 0.02
    after = weights + planted(rng, weights.shape, 4, 5e-4)
    scales = [(np.abs(w).max(axis=1) / 127).astype(np.float16) for w in (weights, after)]
    codes = [
        np.clip(np.rint(w / s[:, None]), -127, 127).astype(np.int8)
        for w, s in zip((weights, after), scales, strict=True)
    ]
    moved = Moved(Dtype.I8, *codes, *scales)
    bits = plain_bits(moved)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert found is not None and found.bits < 0.75 * bits


@pytest.mark.parametrize("shape", [(256, 256), (300, 4096), (3, 4000), (4096, 1)])
def test_noise_is_refused_before_anything_is_counted(shape: tuple[int, int]) -> None:
    """A matrix that moved at random costs only the first look."""
    rng = np.random.default_rng(4)
    old = rng.standard_normal(shape) * 0.02
    moved = floats(Dtype.BF16, old, old + 1e-4 * rng.standard_normal(shape))
    assert find(moved.matrix, moved.count, best_bits=1e9) is None
    assert moved.num_counts == 0


def test_what_did_not_move_is_refused() -> None:
    """Equal versions give no factors."""
    moved = tuned(Dtype.BF16)
    moved.new = moved.old
    assert find(moved.matrix, moved.count, best_bits=1e9) is None


def test_what_is_cheap_already_is_refused() -> None:
    """Factors that cost more than they save are not returned."""
    moved = tuned(Dtype.BF16)
    assert find(moved.matrix, moved.count, best_bits=10_000) is None


INFINITE = {Dtype.F16: 0x7C00, Dtype.BF16: 0x7F80, Dtype.F32: 0x7F800000}


@pytest.mark.parametrize("dtype", INFINITE)
def test_wild_elements_do_not_lead_astray(dtype: Dtype) -> None:
    """Infinities and the largest of numbers in the new version leave the rest as predictable as it was."""
    moved = tuned(dtype)
    moved.new = moved.new.copy()
    moved.new[9, :3] = INFINITE[dtype], INFINITE[dtype] - 1, INFINITE[dtype] + 1
    bits = plain_bits(moved)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert found is not None and found.bits < {2: 0.6, 4: 0.8}[dtype.size] * bits


@pytest.mark.parametrize("dtype", INFINITE)
def test_a_base_with_infinities_is_searched_without_an_error(dtype: Dtype) -> None:
    """Where the base's range leaves no room for a prediction, there may be none."""
    moved = tuned(dtype)
    moved.old = moved.old.copy()
    moved.old[5, :3] = INFINITE[dtype], INFINITE[dtype] - 1, INFINITE[dtype] + 1
    bits = plain_bits(moved)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert found is None or found.bits < bits


def test_large_matrices_are_read_in_small_pieces() -> None:
    """A matrix larger than the sample is searched on some rows, then settled on all, a few at a time."""
    moved = tuned(Dtype.BF16, (4500, 256), noise=0.2)
    bits = plain_bits(moved)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert found is not None and found.bits < 0.6 * bits
    assert found.counts.sum() == moved.old.size
    assert moved.most_read <= 1 << 18


def test_the_search_gives_the_same_bytes_on_any_thread() -> None:
    """Factors, curve and counts do not depend on what runs beside the search."""
    moved = tuned(Dtype.BF16, noise=0.3)
    bits = plain_bits(moved)
    alone = find(moved.matrix, moved.count, best_bits=bits)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(find, moved.matrix, moved.count, best_bits=bits) for _ in range(2)]
    assert alone is not None
    for job in jobs:
        found = job.result()
        assert found is not None and found.curve == alone.curve and found.factors == alone.factors


def merged(curve: Curve, left: np.ndarray, right: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Return the codes that the format's own arithmetic predicts, where nothing wraps or saturates."""
    product = left.astype(np.int64) @ right.astype(np.int64)
    size = np.minimum(np.abs(product) >> curve.drop, curve.limit)
    value = size * curve.slope << curve.shift
    total = (old.astype(np.int64) << 20) + np.where(product < 0, -value, value)
    return np.clip(total + (1 << 19) >> 20, -127, 127).astype(np.int8)


@pytest.fixture
def adapter() -> tuple[Moved, Curve, np.ndarray, np.ndarray]:
    """Codes, and what an adapter made of them in the format's own arithmetic."""
    rng = np.random.default_rng(5)
    old = np.clip(np.rint(rng.standard_normal((160, 224)) * 30), -127, 127).astype(np.int8)
    left = np.rint(rng.standard_normal((160, 5)) * 30).astype(np.int16)
    right = np.rint(rng.standard_normal((5, 224)) * 30).astype(np.int16)
    curve = Curve(5, drop=1, limit=32767, classes=20, slope=300, bend=0, shift=2)
    return Moved(Dtype.I8, old, merged(curve, left, right, old)), curve, left, right


def test_a_hint_is_used_to_the_number(adapter: tuple[Moved, Curve, np.ndarray, np.ndarray]) -> None:
    """Codes that the arithmetic itself made leave nothing to code but the factors."""
    moved, curve, left, right = adapter
    found = from_hint(moved.matrix, moved.count, curve, left, right, best_bits=plain_bits(moved))
    assert found is not None and found.curve == curve
    assert found.counts[:, 0].sum() == moved.old.size
    # the factors, and one token in each context
    assert found.bits < 8 * (160 + 224) * 5 + 10_000


def test_a_search_comes_near_a_hint(adapter: tuple[Moved, Curve, np.ndarray, np.ndarray]) -> None:
    """Without being told, the search finds factors that save most of what the adapter's own would."""
    moved, curve, left, right = adapter
    bits = plain_bits(moved)
    told = from_hint(moved.matrix, moved.count, curve, left, right, best_bits=bits)
    found = find(moved.matrix, moved.count, best_bits=bits)
    assert told is not None and found is not None
    assert bits - found.bits > 0.8 * (bits - told.bits)


def test_a_hint_that_does_not_pay_is_not_used(adapter: tuple[Moved, Curve, np.ndarray, np.ndarray]) -> None:
    """Factors that say nothing about the change are worse than none."""
    moved, curve, left, right = adapter
    assert from_hint(moved.matrix, moved.count, curve, left, -right, best_bits=plain_bits(moved)) is None


def test_a_hint_that_does_not_fit_is_an_error(adapter: tuple[Moved, Curve, np.ndarray, np.ndarray]) -> None:
    """Shapes that are not the matrix's, and numbers that the format cannot hold, are refused."""
    moved, curve, left, right = adapter
    with pytest.raises(ValueError, match="fit"):
        from_hint(moved.matrix, moved.count, curve, left, right.T, best_bits=1e9)
    with pytest.raises(ValueError, match="beyond"):
        from_hint(moved.matrix, moved.count, curve, left * 100, right, best_bits=1e9)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(1024, 64, 2), (37, 3001, 8), (301, 5000, 48), (7, 5, 3)]
)
def test_products_in_pieces_are_products(rows: int, columns: int, rank: int) -> None:
    """Cutting a product into pieces changes nothing but the order of sums, whatever is left over."""
    rng = np.random.default_rng(6)
    matrix, left, right = (
        rng.standard_normal(shape, np.float32) for shape in ((rows, columns), (rows, rank), (columns, rank))
    )
    np.testing.assert_allclose(project(matrix, right), matrix @ right, rtol=0, atol=1e-2)
    np.testing.assert_allclose(gather(matrix, left), matrix.T @ left, rtol=0, atol=1e-2)
    np.testing.assert_allclose(spread(left, right), left @ right.T, rtol=0, atol=1e-3)


def test_balanced_factors_have_the_same_product() -> None:
    """Columns become nearly orthogonal and equally long in both, the longest first; the product stays."""
    rng = np.random.default_rng(7)
    left, right = rng.standard_normal((300, 6), np.float32), rng.standard_normal((90, 6), np.float32)
    left *= np.float32(0.7) ** np.arange(6, dtype=np.float32)
    new_left, new_right, lengths = balanced(left, right)
    np.testing.assert_allclose(spread(new_left, new_right), left @ right.T, atol=1e-3)
    np.testing.assert_allclose(lengths, np.linalg.svd(left @ right.T, compute_uv=False)[:6], rtol=2e-2)
    for side in (new_left, new_right):
        np.testing.assert_allclose(np.square(side).sum(axis=0), lengths, rtol=1e-3)
        unit = side / np.linalg.norm(side, axis=0)
        np.testing.assert_allclose(unit.T @ unit, np.eye(6), atol=0.1)


def test_the_leading_part_is_near_the_best_of_its_rank() -> None:
    """The random projection loses little against the singular vectors themselves."""
    rng = np.random.default_rng(8)
    matrix = (planted(rng, (200, 300), 6, 1.0) + 0.3 * rng.standard_normal((200, 300))).astype(np.float32)
    left, right, lengths = leading(matrix, 6)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(lengths, values[:6], rtol=3e-2)
    assert np.linalg.norm(matrix - left @ right.T) < 1.01 * np.linalg.norm(values[6:])


@pytest.mark.parametrize("seed", range(40))
def test_no_content_breaks_the_search(seed: int) -> None:
    """Whatever the bits, and whatever the scales, the search returns factors that pay, or none."""
    rng = np.random.default_rng(seed)
    dtype = [*FLOATS, Dtype.I8][seed % 6]
    kind = np.int8 if dtype is Dtype.I8 else f"u{dtype.size}"
    rows, columns = int(rng.integers(4, 100)), int(rng.integers(4, 200))
    raw = rng.integers(0, 256, (3, rows, columns * dtype.size), np.uint8).view(kind)
    steps = rng.integers(-3, 4, (rows, 2)) @ rng.integers(-3, 4, (2, columns))
    old = [raw[0], raw[0] * 0, raw[0] & 3][seed % 3]
    new = [raw[1], raw[1] & 7, old * 0, old + steps.astype(kind)][seed // 6 % 4]
    scales = rng.integers(0, 1 << 16, (2, rows)).astype(np.uint16).view(np.float16) if seed % 12 > 5 else None
    moved = Moved(dtype, old, new, *(scales if scales is not None and dtype is Dtype.I8 else (None, None)))
    found = find(moved.matrix, moved.count, best_bits=1e6)
    assert found is None or found.bits < 1e6
