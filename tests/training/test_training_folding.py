"""Folding a change into codes: exact by construction, near the change, at the price of a few bits."""

from __future__ import annotations

import numpy as np
import pytest

from autoglm.errors import ConfigError
from autoglm.training.factor_cost import factor_bytes, scale_bytes
from autoglm.training.folding import Change, Folded, fold
from autoglm.training.lowrank import MAX_RANK, Curve, Prediction, predict, scale_ratios

ROWS, COLUMNS, RANK = 96, 160, 6


def base(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales as quantising normal weights gives them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(ROWS, COLUMNS)) * rng.uniform(0.01, 0.1, (ROWS, 1))
    scales = (np.abs(weights).max(1) / 127 * 1.001).astype(np.float16)
    return np.rint(weights / scales.astype(float)[:, None]).clip(-127, 127).astype(np.int8), scales


def change_of(codes_rms: float, scales: np.ndarray, rank: int = RANK) -> Change:
    """A random change of about so many codes."""
    rng = np.random.default_rng(1)
    left = rng.normal(size=(ROWS, rank)) * scales.astype(float)[:, None] * codes_rms / np.sqrt(rank)
    return Change(left, rng.normal(size=(rank, COLUMNS)))


def merged(
    codes_rms: float, factor_error: float = 0.01, rank: int = RANK
) -> tuple[Folded, np.ndarray, np.ndarray]:
    codes, scales = base()
    change = change_of(codes_rms, scales, rank)
    made = fold(codes, scales, change, factor_error=factor_error)
    return made, codes * scales.astype(float)[:, None] + change.rows(slice(None)), codes


@pytest.mark.parametrize("codes_rms", [0.05, 0.3, 3.0, 40.0])
def test_the_codes_are_what_the_format_predicts(codes_rms: float) -> None:
    """From the base, the two sets of scales and the factors alone, the prediction gives the merged codes."""
    made, _, codes = merged(codes_rms)
    again = predict(codes, scale_ratios(base()[1], made.scales), made.prediction)
    assert np.array_equal(again, made.codes)
    assert made.prediction.p.shape == (ROWS, RANK) and made.prediction.q.shape == (RANK, COLUMNS)


@pytest.mark.parametrize("codes_rms", [0.05, 0.3, 3.0, 40.0])
def test_the_change_survives_whatever_its_size(codes_rms: float) -> None:
    """Along its own direction the change is kept to a few per cent, also where it is far below one code."""
    assert merged(codes_rms)[0].gain == pytest.approx(1, abs=0.05 if codes_rms < 0.1 else 0.02)


def test_rounding_alone_would_delete_a_small_change() -> None:
    """With the scales kept, a change of a twentieth of a code is lost: that is what is guarded against."""
    codes, scales = base()
    change = change_of(0.05, scales).rows(slice(None)) / scales.astype(float)[:, None]
    kept = np.rint(codes + change) - codes
    assert abs(float((kept * change).sum() / np.square(change).sum())) < 0.01


def test_a_fine_merge_errs_by_rounding_alone() -> None:
    """With little error allowed to the factors, weights are as near as the nearest codes put them."""
    made, wanted, _ = merged(5.0, factor_error=1e-6)
    error = (made.codes * made.scales.astype(float)[:, None] - wanted) / made.scales.astype(float)[:, None]
    inside = np.abs(made.codes) < 127
    assert float(np.abs(error[inside]).max()) < 0.52
    assert float(np.square(error[inside]).mean()) == pytest.approx(1 / 12, rel=0.05)


def test_a_row_that_outgrows_its_scale_gets_a_larger_one() -> None:
    """Large changes raise scales, a few coarse steps each, and cut off no more than rounding costs."""
    made, wanted, _ = merged(40.0)
    units = made.scales.view(np.uint16).astype(int) - base()[1].view(np.uint16)
    assert units.max() > 0 and set(np.unique(units % 64)) == {0}
    cut = np.maximum(np.abs(wanted / made.scales.astype(float)[:, None]) - 127, 0)
    assert float(np.square(cut).mean(1).max()) <= 1 / 3
    assert 0 < scale_bytes(base()[1], made.scales) < 2 * ROWS


def test_more_error_costs_fewer_bytes() -> None:
    """The estimated size falls as more error is allowed, and the direction of the change stays."""
    folds = [merged(5.0, factor_error=error)[0] for error in (0.001, 0.01, 0.1)]
    sizes = [factor_bytes([each.prediction]) for each in folds]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(abs(each.gain - 1) < 0.05 for each in folds)


def test_the_estimate_is_near_the_entropy() -> None:
    """Factors of a known spread cost their Gaussian entropy and little more."""
    rng = np.random.default_rng(0)
    p, q = (np.rint(rng.normal(size=shape) * 5).astype(np.int16) for shape in ((4000, 8), (8, 100)))
    bits = 8 * factor_bytes([Prediction(p, q, Curve(0, 1, 1, 0, 0))]) / (p.size + q.size)
    assert bits == pytest.approx(np.log2(5 * np.sqrt(2 * np.pi * np.e)), rel=0.02)


def test_a_rank_beyond_the_formats_is_cut() -> None:
    """Of a larger product the strongest 64 components are merged, and their share of the energy is told."""
    made, _, _ = merged(5.0, rank=90)
    assert made.prediction.p.shape[1] <= MAX_RANK
    assert 0.7 < made.kept_energy < 1


def test_no_change_changes_nothing() -> None:
    """An adapter that was never trained leaves codes and scales, and has no factors."""
    codes, scales = base()
    made = fold(codes, scales, Change(np.zeros((ROWS, 2)), np.ones((2, COLUMNS))), factor_error=0.01)
    assert np.array_equal(made.codes, codes) and np.array_equal(made.scales, scales)
    assert made.prediction.p.shape == (ROWS, 0)
    assert factor_bytes([made.prediction]) == 0


def test_what_cannot_be_folded_is_refused() -> None:
    """Scales that are not positive, and changes beyond what a scale can hold, raise."""
    codes, scales = base()
    change = change_of(1.0, scales)
    with pytest.raises(ConfigError, match="not positive"):
        fold(codes, np.where(np.arange(ROWS) == 3, np.float16(0), scales), change, factor_error=0.01)
    with pytest.raises(ConfigError, match="float16"):
        fold(codes, scales, Change(change.left * 1e9, change.right), factor_error=0.01)
