"""The counts that carry the 4.2 GB claim, from the real modules."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.model.config import CONFIGS
from autoglm.model.network import PhoneModel
from autoglm.model.sizes import RECIPES, Recipe, count, size_table, stored_bytes
from autoglm.model.weights import stored_tensors


@pytest.mark.parametrize("name", ["9b-int8-pruned", "9b-int4-pruned"])
def test_both_phone_recipes_fit_the_budget(name: str) -> None:
    """The literal recipe (INT8 and pruning) and the better one (INT4, light pruning) take 4.2 GB at most."""
    assert size_table(name).bytes <= 4.2e9


@pytest.mark.parametrize(
    "name, parameters, stored",
    [
        ("9b", 9_459_721_472, 18_919_442_944),
        ("9b-int8", 9_459_721_472, 9_464_456_192),
        ("9b-int4", 9_459_721_472, 5_509_747_712),
        ("9b-int8-pruned", 4_153_536_768, 4_156_427_264),
        ("9b-int4-pruned", 6_880_224_512, 4_179_694_592),
    ],
)
def test_the_documented_counts_are_the_modules_counts(name: str, parameters: int, stored: int) -> None:
    """Every figure of the size table is what the modules sum to, to the byte."""
    report = size_table(name)

    assert (report.parameters, report.bytes) == (parameters, stored)


def test_a_shallow_wide_pruning_fits_as_well() -> None:
    """Keeping the width and pruning FFN and depth instead gives the table's other INT8 variant."""
    config = dataclasses.replace(CONFIGS["9b"], ffn_width=5504, num_layers=28)

    report = count("shallow", config, Recipe("int8", "int8"))

    assert (report.parameters, report.bytes) == (4_193_520_896, 4_196_121_600)


@pytest.mark.parametrize("name", list(RECIPES))
def test_parts_sum_to_the_totals_and_leave_no_tensor_out(name: str) -> None:
    """The report adds up, and its parameters are those that torch counts in the network."""
    report = size_table(name)

    with torch.device("meta"):
        model = PhoneModel(CONFIGS[name])
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters == sum(part.parameters for part in report.parts)
    assert report.bytes == sum(part.bytes for part in report.parts)
    assert {part.name for part in report.parts} == {key.partition(".")[0] for key in model.state_dict()}


def test_tied_embeddings_are_counted_once() -> None:
    """A model whose head is its token table stores that table once."""
    config = CONFIGS["nano"]
    untied = dataclasses.replace(config, tie_embeddings=False)

    difference = (
        count("u", untied, RECIPES["nano"]).parameters - count("t", config, RECIPES["nano"]).parameters
    )

    assert difference == config.vocab_size * config.width


@pytest.mark.parametrize(
    "shape, storage, expected",
    [
        ((3, 10), "bf16", 60),
        ((3, 10), "int8", 3 * (10 + 2)),
        ((3, 256), "int4", 3 * (128 + 2 * 2)),
        ((3, 129), "int4", 3 * (65 + 2 * 2)),
        ((4, 5, 3), "int8", 4 * (15 + 2)),
    ],
)
def test_one_matrix_costs_its_values_and_its_scales(
    shape: tuple[int, ...], storage: str, expected: int
) -> None:
    """Scales are float16, one a row for INT8, one a started group of 128 for INT4."""
    assert stored_bytes(shape, storage) == expected  # pyright: ignore[reportArgumentType]


def test_the_shipped_size_is_what_the_weights_file_holds() -> None:
    """The small model's report is the sum of the tensors that a release really stores."""
    stored = sum(tensor.nbytes for _, tensor in stored_tensors(PhoneModel(CONFIGS["nano"]).state_dict()))

    assert size_table("nano").bytes == stored


def test_an_unknown_name_lists_those_there_are() -> None:
    """A mistyped size is answered with the names to choose from."""
    with pytest.raises(ConfigError, match=r"'10b'.*9b-int8-pruned.*nano"):
        size_table("10b")


def test_the_report_is_plain_values_for_scripts() -> None:
    """``to_dict`` survives JSON and carries the totals, the parts and the bits a parameter."""
    report = size_table("9b-int4")

    plain = json.loads(json.dumps(report.to_dict()))

    assert plain["bytes"] == report.bytes
    assert plain["parts"][0]["name"] == report.parts[0].name
    assert plain["bits_per_parameter"] == pytest.approx(4.66, abs=0.01)
    assert plain["cache_bytes_per_token"] == 40 * 2 * 2 * 128 * 2
