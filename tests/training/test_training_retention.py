"""Retention: held-out items drawn once, a loss that tells weights apart, and the share that is kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO, AudioConfig, ImageConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.releases import HealthCheck
from autoglm.training.lesson_loss import LessonLoss
from autoglm.training.quantize import compare_codes, measure_retention, read_run
from autoglm.training.retention import Retention
from autoglm.training.vocabulary import build_tokenizer

SMALL = dataclasses.replace(
    NANO,
    width=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    ffn_width=32,
    image=ImageConfig("stem", 32, (4, 4, 4), 256, 512, 128, bins=32, x_token=128, y_token=160),
    audio=AudioConfig(16, 8, 5, batch_norm=True, min_tokens=60, max_tokens=100),
)


@pytest.fixture(scope="module")
def text() -> str:
    return build_tokenizer(SMALL.vocab_size)


@pytest.fixture(scope="module")
def tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_bytes(text.encode())


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = PhoneModel(SMALL).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def test_the_share_is_of_the_gain_and_not_of_the_loss() -> None:
    """Retention compares what was gained; where nothing was, there is no share."""
    assert Retention(2.0, 1.0, 2.1, 1.12).retained == 0.98
    assert Retention(2.0, 1.0, 2.0, 2.0).retained == 0.0
    nothing = Retention(1.0, 1.0, 1.0, 1.0)
    assert math.isnan(nothing.retained)
    assert nothing.to_dict()["retained"] is None


@pytest.fixture
def runs(tmp_path: Path, text: str) -> dict[str, Path]:
    """Two runs' checkpoints, and a release of each."""
    made: dict[str, Path] = {}
    for number, name in enumerate(("old", "new")):
        state = weights(0)
        if number:
            torch.manual_seed(5)
            state = {
                key: value + 0.1 * value.abs().mean() * torch.randn_like(value) if value.dim() > 1 else value
                for key, value in state.items()
            }
            state["table.weight"] = state["table.weight"] / 2  # guesses less boldly: a gain beyond chance
        made[name] = tmp_path / name
        made[name].mkdir()
        torch.save({"model": state}, made[name] / "checkpoint.pt")
        made[f"{name}-int8"] = tmp_path / f"{name}-int8"
        write_release(
            made[f"{name}-int8"], config=SMALL, tokenizer=text, state=state, health=HealthCheck(()),
            model="m", variant="nano-int8", name="n", version=f"v1.{number}", counter=number + 1,
        )  # fmt: skip
    return made


def test_quantising_finely_keeps_the_update(runs: dict[str, Path], tokenizer: Tokenizer) -> None:
    """INT8 keeps nearly all of a change of the loss, whichever weights the fine-tune began with."""
    sign = (
        1.0
        if held_out(tokenizer)(read_run(runs["old"])) > held_out(tokenizer)(read_run(runs["new"]))
        else -1.0
    )

    def gained(state: dict[str, Tensor]) -> float:
        return sign * held_out(tokenizer)(state)

    places = (runs["new"], runs["new-int8"], runs["old-int8"])
    from_floats = measure_retention(*places, gained, base_run=runs["old"], config=SMALL)
    from_release = measure_retention(*places, gained, config=SMALL)
    assert from_floats.retained == pytest.approx(1, abs=0.15)
    assert from_release.base_float == from_release.base_shipped == from_floats.base_shipped
    assert from_release.new_float == from_floats.new_float


def held_out(tokenizer: Tokenizer) -> LessonLoss:
    return LessonLoss(tokenizer, SMALL, "v1.2", scale=0.1)


def test_codes_are_compared_by_part(runs: dict[str, Path]) -> None:
    """Every part of the network is told apart; a release beside itself has changed nothing."""
    same = compare_codes(runs["old-int8"], runs["old-int8"])
    assert {"blocks.0", "blocks.1", "table", "all"} <= set(same)
    assert all((c.changed, c.entropy_bits, c.rescaled) == (0, 0, 0) for c in same.values())
    other = compare_codes(runs["old-int8"], runs["new-int8"])["all"]
    assert 0.5 < other.changed <= 1 and other.entropy_bits > 1 and other.rescaled > 0.5


def test_a_run_of_an_adapter_has_no_weights_to_quantise(tmp_path: Path) -> None:
    """A checkpoint that trained an adapter is refused with the command that merges it."""
    torch.save({"model": {}, "adapter": {"rank": 8}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="model merge"):
        read_run(tmp_path)
