"""`autoglm model`: what the verbs print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO
from autoglm.model.network import PhoneModel
from autoglm.releases import HealthCheck
from autoglm.training.vocabulary import build_tokenizer

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
        (("eval", "nowhere"), "manifest"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(autoglm, arguments: tuple[str, ...], words: str) -> None:
    """A wrong recipe, version or place ends with status 1 and one sentence."""
    result = autoglm("model", *arguments)
    assert result.status == 1
    assert words in result.error
    assert "Traceback" not in result.error


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
