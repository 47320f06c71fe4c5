"""The scales of a quantised tensor are found under the names that quantisers give them."""

from __future__ import annotations

import pytest

from autoglm.patch.companions import companion
from autoglm.patch.layouts import Span
from autoglm.patch.package import Dtype

Shape = tuple[int, ...]


def find(
    name: str, dtype: Dtype, shape: Shape, scales: str, of_scales: Shape, scale_dtype: Dtype = Dtype.F16
) -> int | None:
    """Return how many elements share a scale, None without a companion."""
    codes = Span(name, dtype, shape, 0)
    spans = {name: codes, scales: Span(scales, scale_dtype, of_scales, codes.end)}
    found = companion(spans, codes)
    assert found is None or found.span is spans[scales]
    return found and found.elements_per_scale


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "scales", "of_scales", "group"),
    [
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (6,), 40),
        ("l.w", Dtype.U8, (6, 20), "l.w.scale", (6, 5), 4),
        ("l.weight", Dtype.I8, (6, 40), "l.weight_scale", (6, 1), 40),
        ("l.weight", Dtype.F8_E4M3, (6, 40), "l.weight_scale", (), 240),
        ("l.weight", Dtype.F8_E4M3, (6, 40), "l.weight_scale_inv", (6, 1), 40),
        ("l.weight_packed", Dtype.I32, (6, 16), "l.weight_scale", (6, 4), 4),
        ("l._weight_qdata", Dtype.I8, (6, 40), "l._weight_scale", (6,), 40),
        ("l.weight._data", Dtype.I8, (6, 40), "l.weight._scale", (6, 1), 40),
        ("l.weight", Dtype.U32, (6, 16), "l.scales", (6, 2), 8),
        ("l.qweight", Dtype.I32, (6, 16), "l.scales", (6, 16), 1),
        ("l.weight", Dtype.I8, (6, 40), "l.SCB", (6,), 40),
        ("l.weight", Dtype.U8, (128, 1), "l.weight.absmax", (4,), 32),
        ("experts", Dtype.I8, (3, 6, 40), "experts.scale", (3, 6), 40),
        ("experts", Dtype.I8, (3, 6, 40), "experts.scale", (3, 6, 1), 40),
        ("experts", Dtype.I8, (3, 6, 40), "experts.scale", (3, 6, 4), 10),
        ("one", Dtype.I8, (1, 40), "one.scale", (1,), 40),
    ],
)
def test_scales_that_fit_are_found(
    name: str, dtype: Dtype, shape: Shape, scales: str, of_scales: Shape, group: int
) -> None:
    """By name and by shape: for a group, a row, or all."""
    for scale_dtype in (Dtype.F16, Dtype.BF16, Dtype.F32):
        assert find(name, dtype, shape, scales, of_scales, scale_dtype) == group


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "scales", "of_scales"),
    [
        ("blocks of 128 x 128", Dtype.F8_E4M3, (256, 256), "blocks of 128 x 128_scale_inv", (2, 2)),
        ("l.qweight", Dtype.I32, (16, 40), "l.scales", (1, 40)),
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (5,)),
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (6, 7)),
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (6, 0)),
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (40,)),
        ("l.w", Dtype.I8, (6, 40), "l.w.scale", (6, 40, 1, 1)),
        ("l.w", Dtype.I8, (0, 40), "l.w.scale", (0,)),
        ("l.w", Dtype.BF16, (6, 40), "l.w.scale", (6,)),
        ("l.w", Dtype.I8, (6, 40), "l.v.scale", (6,)),
        ("l.weight", Dtype.U8, (128, 1), "l.weight.absmax", (5,)),
        ("l.weight", Dtype.U8, (128, 1), "l.weight.absmax", (0,)),
        ("scalar", Dtype.I8, (), "scalar.scale", ()),
        ("scalar", Dtype.I8, (), "scalar.scale", (5,)),
    ],
)
def test_scales_that_do_not_fit_are_none(
    name: str, dtype: Dtype, shape: Shape, scales: str, of_scales: Shape
) -> None:
    """Blocks over several rows, scales of columns, other counts, codes that are none."""
    assert find(name, dtype, shape, scales, of_scales) is None


def test_scales_that_are_codes_themselves_are_none() -> None:
    """Only floats are scales; doubly quantised ones are not understood."""
    assert find("w", Dtype.U8, (64, 1), "w.absmax", (2,), Dtype.U8) is None


def test_the_first_name_that_fits_is_taken() -> None:
    """A tensor of a fitting name and a wrong shape does not hide the right one."""
    codes = Span("l.weight", Dtype.I8, (6, 40), 0)
    wrong = Span("l.weight_scale", Dtype.F32, (7,), 240)
    right = Span("l.SCB", Dtype.F32, (6,), 268)
    found = companion({span.name: span for span in (codes, wrong, right)}, codes)
    assert found is not None
    assert found.span is right
