"""Weights as INT8 and INT4 codes: near, packed as documented, with scales kept while they fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoglm.model.codes import multiply_out, pack, quantize_groups, quantize_rows, scales_fit, unpack


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 64, generator=torch.Generator().manual_seed(0))


def test_int8_codes_are_within_half_a_step(weight: Tensor) -> None:
    """Every value, zero rows and kernels of convolutions included, is off by half a step at most."""
    weight[3] = 0
    codes, scale = quantize_rows(weight.view(6, 16, 4))
    assert codes.shape == (6, 64)
    assert bool(((multiply_out(codes, scale) - weight).abs() <= 0.501 * scale.float()[:, None]).all())


def test_int4_codes_are_packed_as_documented(weight: Tensor) -> None:
    """The low nibble is the even column, 8 stands for zero, and unpacking gives the codes back."""
    packed = pack(torch.tensor([[-8, 7, 0, -1]]))
    assert packed.tolist() == [[0xF0, 0x78]]
    assert unpack(packed).tolist() == [[-8, 7, 0, -1]]
    every = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(pack(unpack(every)), every)
    codes, scale = quantize_groups(weight, 16)
    assert codes.shape == (6, 32) and codes.dtype == torch.uint8
    assert scale.shape == (6, 4) and scale.dtype == torch.float16


def test_int4_values_are_near(weight: Tensor) -> None:
    """Inside a group's range every value is off by half a step at most, and the squared error is small."""
    codes, scale = quantize_groups(weight, 16)
    values = multiply_out(unpack(codes), scale)
    step = scale.float().repeat_interleave(16, 1)
    inside = weight.abs() <= 7 * step
    assert float(inside.float().mean()) > 0.9
    assert bool(((values - weight).abs() <= 0.501 * step)[inside].all())
    assert float((values - weight).square().mean()) < 0.01


@pytest.mark.parametrize("bits", [8, 4])
def test_a_small_step_keeps_every_scale(weight: Tensor, bits: int) -> None:
    """A fine-tune that stays inside the ranges keeps all scales, and hardly moves a code."""
    _, scale, quantize = setup(weight, bits)
    codes, kept = quantize(weight * 0.99, scale)
    assert torch.equal(kept, scale)
    assert float((codes != quantize(weight, scale)[0]).float().mean()) < 0.6


@pytest.mark.parametrize("bits", [8, 4])
def test_an_outgrown_scale_is_replaced_and_no_other(weight: Tensor, bits: int) -> None:
    """Where the weights leave a scale's range far behind, it is replaced by their own; others are kept."""
    _, scale, quantize = setup(weight, bits)
    grown = weight.clone()
    grown[2] *= 3
    codes, new = quantize(grown, scale)
    differs = (new != scale).reshape(6, -1)
    assert bool(differs[2].all()) and int(differs.sum()) == differs.shape[1]
    values = multiply_out(codes if bits == 8 else unpack(codes), new)
    assert float((values - grown).square().mean()) < (0.01 if bits == 8 else 0.04)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_has_no_hysteresis(weight: Tensor, bits: int) -> None:
    """A code is the nearest one whatever it was before: a third of a step moves a third of them."""
    codes, scale, quantize = setup(weight, bits)
    step = scale.float()[:, None] if bits == 8 else scale.float().repeat_interleave(16, 1)
    moved, _ = quantize(weight + step / 3, scale)
    before, after = (unpack(c) if bits == 4 else c for c in (codes, moved))
    assert float((before != after).float().mean()) == pytest.approx(1 / 3, abs=0.06)


def setup(weight: Tensor, bits: int):
    """Codes, scales, and the function that quantises with given scales."""
    if bits == 8:
        return *quantize_rows(weight), quantize_rows
    return *quantize_groups(weight, 16), lambda w, scale: quantize_groups(w, 16, scale)


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_a_broken_scale_is_never_the_reason_for_a_crash(weight: Tensor, broken: float) -> None:
    """Kept scales that are zero, infinite or not a number are replaced."""
    _, scale = quantize_rows(weight)
    scale[1] = broken
    codes, kept = quantize_rows(weight, scale)
    assert float((multiply_out(codes, kept) - weight).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("codes", "scale", "fits"),
    [
        (torch.zeros(6, 64, dtype=torch.int8), torch.ones(6).half(), True),
        (torch.zeros(6, 32, dtype=torch.uint8), torch.ones(6, 4).half(), True),
        (torch.zeros(6, 64, dtype=torch.int8), torch.ones(6), False),
        (torch.zeros(6, 64, dtype=torch.int8), torch.ones(6, 4).half(), False),
        (torch.zeros(6, 64, dtype=torch.uint8), torch.ones(6, 4).half(), False),
        (torch.zeros(6, 32, dtype=torch.uint8), torch.ones(6).half(), False),
        (torch.zeros(6, 32, dtype=torch.uint8), torch.ones(6, 5).half(), False),
        (torch.zeros(6, 32, dtype=torch.uint8), torch.ones(5, 4).half(), False),
        (torch.zeros(6, 32, dtype=torch.uint8), torch.ones(6, 0).half(), False),
        (torch.zeros(6, 32, dtype=torch.int32), torch.ones(6, 4).half(), False),
    ],
)
def test_only_codes_and_scales_of_the_matrix_fit(codes: Tensor, scale: Tensor, fits: bool) -> None:
    """Shapes and types other than the two documented ones do not fit."""
    assert scales_fit(codes, scale, 6, 64) is fits
