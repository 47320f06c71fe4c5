"""`autoglm model`: what the verbs print, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO
from autoglm.model.network import PhoneModel
from autoglm.model.weights import expected_tensors
from autoglm.releases import HealthCheck, Manifest
from autoglm.training import recipe
from autoglm.training.adapter import AdapterConfig, attach, extract, read_adapter, write_adapter
from autoglm.training.vocabulary import build_tokenizer
from tiny_model import TINY, random_state, tokenizer_text

NAMES = {"model": "autoglm-phone-9b", "variant": "nano-int8", "name": "autoglm-phone-nano"}


def test_the_size_of_a_model_is_counted(autoglm) -> None:
    """`size` prints every part and the exact totals, as a table and as JSON."""
    table = autoglm("model", "size", "9b-int8-pruned")
    assert table.status == 0
    assert "4,156,427,264" in table.output
    assert "blocks" in table.output
    assert autoglm("model", "size", "nano", "--json").json["parameters"] > 3_000_000
    unknown = autoglm("model", "size", "10b")
    assert (unknown.status, unknown.output) == (1, "")
    assert "9b-int4-pruned" in unknown.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "v9"), "there is no recipe 'v9'"),
        (("train", "v1.3"), "starts from the weights of a release"),
        (("quantize", "runs/x", "--version", "v1.2", "-o", "out"), "train first"),
        (("quantize", "runs/x", "--version", "v7", "-o", "out"), "no training data for 'v7'"),
        (("train", "v1.2", "--adapter", "8"), "follows a release"),
        (("quantize", "runs/x", "--version", "v1.2", "-o", "out", "--bits", "5"), "8 or 4 bits"),
        (("merge", "--adapter", "a", "--base", "b", "-o", "c", "--version", "v1.4"), "config.json"),
        (("eval", "nowhere"), "manifest"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(autoglm, arguments: tuple[str, ...], words: str) -> None:
    """A wrong recipe, version or place ends with status 1 and one sentence."""
    result = autoglm("model", *arguments)
    assert result.status == 1
    assert words in result.error
    assert "Traceback" not in result.error


@pytest.mark.needs("wqy-zenhei")
def test_an_adapter_is_trained(autoglm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train --adapter` leaves an adapter of that rank that fits the release it was trained beside."""
    monkeypatch.setattr(recipe, "ADAPTER", dataclasses.replace(recipe.ADAPTER, steps=1, batch={"text": 1}))
    torch.manual_seed(0)
    write_release(
        tmp_path / "base", config=NANO, tokenizer=build_tokenizer(NANO.vocab_size), health=HealthCheck(()),
        state=PhoneModel(NANO).state_dict(), version="v1.2", counter=12, **NAMES,
    )  # fmt: skip
    result = autoglm("model", "train", "v1.3", "--base", "base", "--adapter", "3", "--run", "run")
    assert result.status == 0, result.error
    adapter = read_adapter(tmp_path / "run" / "adapter")
    adapter.check_fits(expected_tensors(NANO))
    assert {len(factors.a) for factors in adapter.factors.values()} == {3}
    assert any(bool(factors.delta.any()) for factors in adapter.factors.values())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A tiny release and an adapter for it, in the working directory."""
    write_release(
        tmp_path / "base", config=TINY, tokenizer=tokenizer_text(), state=random_state(0),
        health=HealthCheck(()), version="v1.2", counter=12, **NAMES,
    )  # fmt: skip
    model, settings = PhoneModel(TINY), AdapterConfig(rank=2, alpha=4.0)
    attach(model, settings, seed=0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.05)
    write_adapter(tmp_path / "adapter", extract(model, settings))
    return "base", "adapter"


def test_an_adapter_is_merged(autoglm, tmp_path: Path, pair: tuple[str, str]) -> None:
    """`merge` writes a release and its factors, and prints every matrix, the retention and the size."""
    base, adapter = pair
    arguments = (
        "model",
        "merge",
        "--base",
        base,
        "--adapter",
        adapter,
        "--version",
        "v1.4",
        "--base-run",
        "run",
    )
    (tmp_path / "run").mkdir()
    torch.save({"model": random_state(0)}, tmp_path / "run" / "checkpoint.pt")
    result = autoglm(*arguments, "-o", "made")
    assert result.status == 0, result.error
    for words in ("blocks.1.down.weight", "shipped base + adapter", "float base + adapter", "of the release"):
        assert words in result.output
    Manifest.read(tmp_path / "made").verify(tmp_path / "made")
    assert (tmp_path / "made.factors.safetensors").exists()
    quick = autoglm(*arguments[:-2], "-o", "quick", "--no-retention", "--counter", "20", "--json").json
    assert quick["retention"] is None and quick["version"] == "v1.4"
    assert len(quick["matrices"]) == 4 * TINY.num_layers
    assert Manifest.read(tmp_path / "quick").counter == 20
    again = autoglm(*arguments, "-o", "made")
    assert again.status == 1 and "exists" in again.error


@pytest.mark.needs("wqy-zenhei", "espeak-ng")
@pytest.mark.long
def test_a_release_is_scored(autoglm, tmp_path: Path) -> None:
    """`eval` scores an untrained release on every kind of item, with chance beside it."""
    torch.manual_seed(0)
    state = PhoneModel(NANO).state_dict()
    text = build_tokenizer(NANO.vocab_size)
    health = HealthCheck(())
    write_release(
        tmp_path / "r",
        config=NANO,
        tokenizer=text,
        state=state,
        health=health,
        version="v1.2",
        counter=1,
        **NAMES,
    )
    result = autoglm("model", "eval", "r", "--scale", "0.01", "--json")
    scores = json.loads(result.output)
    assert {"identity", "screen_tap", "speech_voices", "agent_grammar", "new_questions"} <= set(scores)
    assert all(score["value"] < 0.6 for name, score in scores.items() if not name.endswith("present"))
