"""The codec's integer prediction: the same numbers as a plain loop over Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoglm.errors import ConfigError
from autoglm.training.lowrank import (
    MAX_FACTOR,
    Curve,
    Prediction,
    changes,
    linear_curve,
    predict,
    scale_ratios,
    unit_ratios,
)


def signed(value: int) -> int:
    """The low 32 bits, as two's complement."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def predicted(code: int, ratio: int, p: list[int], q: list[int], curve: Curve) -> int:
    """One element, step by step as docs/wpatch-format.md says."""
    acc = sum(a * b for a, b in zip(p, q, strict=True))
    t = min(abs(acc) >> curve.drop, curve.limit)
    v = t * (curve.slope - ((t * curve.bend) >> 15))
    v = signed(v << curve.shift) if curve.shift >= 0 else v >> -curve.shift
    moved = signed(code * ratio + (-v if acc < 0 else v) + (1 << 19))
    return max(-127, min(127, moved >> 20))


def ratio(old: float, new: float) -> int:
    """One ratio from the exact fractions that two float16 stand for."""
    if not (0 < old < np.inf and 0 < new < np.inf):
        return 1 << 20
    old_parts, new_parts = parts(old), parts(new)
    shift = 20 + old_parts[1] - new_parts[1]
    if shift < 0 or shift > 38:
        return 0 if shift < 0 else 1 << 23
    return min(1 << 23, ((old_parts[0] << shift) + new_parts[0] // 2) // new_parts[0])


def parts(scale: float) -> tuple[int, int]:
    bits = int(np.float16(scale).view(np.uint16))
    field, fraction = bits >> 10, bits & 1023
    return (fraction, -24) if field == 0 else (fraction + 1024, field - 25)


factors = st.integers(-MAX_FACTOR, MAX_FACTOR)
curves = st.builds(
    Curve,
    drop=st.integers(0, 31),
    limit=st.integers(1, 32_767),
    slope=st.integers(-65_535, 65_535),
    bend=st.just(0),
    shift=st.integers(-31, 31),
).flatmap(
    lambda c: st.integers(abs(c.slope) - 65_535, 65_535 - abs(c.slope)).map(
        lambda bend: Curve(c.drop, c.limit, c.slope, bend, c.shift)
    )
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Prediction]:
    rows, columns, rank = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(0, 6))

    def matrix(height: int, width: int, values: st.SearchStrategy[int]) -> list[list[int]]:
        return draw(
            st.lists(st.lists(values, min_size=width, max_size=width), min_size=height, max_size=height)
        )

    codes = np.array(matrix(rows, columns, st.integers(-127, 127)), np.int8).reshape(rows, columns)
    p = np.array(matrix(rows, rank, factors), np.int16).reshape(rows, rank)
    q = np.array(matrix(rank, columns, factors), np.int16).reshape(rank, columns)
    ratios = np.array(draw(st.lists(st.integers(0, 1 << 23), min_size=rows, max_size=rows)), np.int64)
    return codes, ratios, Prediction(p, q, draw(curves))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_prediction_is_that_of_a_plain_loop(case: tuple[np.ndarray, np.ndarray, Prediction]) -> None:
    """Any factors, curve and ratios, those that wrap and clip included, give the loop's codes."""
    codes, ratios, prediction = case
    made = predict(codes, ratios, prediction)
    for i, j in np.ndindex(*codes.shape):
        p, q = prediction.p[i].tolist(), prediction.q[:, j].tolist()
        assert made[i, j] == predicted(int(codes[i, j]), int(ratios[i]), p, q, prediction.curve)


def test_a_prediction_wraps_and_clips() -> None:
    """A change beyond 2^31 comes back from the other end, and codes stop at -127 and 127."""
    p, q = np.array([[1]], np.int16), np.array([[1, 1001, -1001]], np.int16)
    wrapping = Prediction(p, q, Curve(0, 32_767, 32_768, 0, 16))
    assert changes(wrapping).tolist() == [[-(1 << 31), -(1 << 31), -(1 << 31)]]
    clipping = Prediction(p, q, Curve(0, 32_767, 32_768, 0, 5))
    assert predict(np.array([[5, 5, 5]], np.int8), unit_ratios(1), clipping).tolist() == [[6, 127, -127]]


@settings(max_examples=200, deadline=None)
@given(*(st.lists(st.integers(0, 0xFFFF), min_size=3, max_size=3) for _ in range(2)))
@example([0x3C00, 0x0001, 0x7BFF], [0x3C00, 0x7BFF, 0x0001])
@example([0x7C00, 0x8400, 0x0000], [0x3C00, 0x3C00, 0x3C00])
def test_ratios_are_rounded_from_the_exact_scales(old: list[int], new: list[int]) -> None:
    """Normal and subnormal float16 give the exact quotient rounded; others count as kept."""
    first, second = (np.array(bits, np.uint16).view(np.float16) for bits in (old, new))
    expected = [ratio(float(a), float(b)) for a, b in zip(first, second, strict=True)]
    assert scale_ratios(first, second).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 4.0), st.integers(1, 64 * MAX_FACTOR**2))
def test_a_linear_curve_multiplies_by_its_step(step: float, largest: int) -> None:
    """Up to the largest product the change is the step's multiple, to 2^-14 of the largest change."""
    if step * largest > 2000:
        step = 2000 / largest
    curve = linear_curve(step, largest=largest)
    for product in (1, largest // 3, largest):
        t = min(product >> curve.drop, curve.limit)
        v = t * curve.slope
        v = v << curve.shift if curve.shift >= 0 else v >> -curve.shift
        assert abs(v / 2**20 - step * product) <= step * largest * 2**-13 + 2**-20
        assert v < 1 << 31


@pytest.mark.parametrize("step", [0.0, -1.0, float("inf"), float("nan"), 1e-30, 1e30])
def test_a_step_out_of_range_is_refused(step: float) -> None:
    """A step that the format cannot hold raises and names it."""
    with pytest.raises(ConfigError, match="step"):
        linear_curve(step, largest=1)
