"""`autoglm model`: what the verbs print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoglm import patch
from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO
from autoglm.model.network import PhoneModel
from autoglm.releases import HealthCheck, Manifest
from autoglm.training.adapter import AdapterConfig, attach, extract, write_adapter
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
        (("train", "v9"), "there is no course 'v9'"),
        (("train", "update"), "starts from a release: name it with --base"),
        (("quantize", "runs/x", "--version", "v1.2", "-o", "out"), "train first"),
        (("quantize", "runs/x", "--version", "v7", "-o", "out"), "no training data for 'v7'"),
        (("train", "student", "--adapter", "8"), "an adapter is trained on an update"),
        (("quantize", "runs/x", "--version", "v1.2", "-o", "out", "--bits", "5"), "8 or 4 bits"),
        (("merge", "--adapter", "a", "--base", "b", "-o", "c", "--version", "v1.4"), "config.json"),
        (("eval", "nowhere"), "is no release"),
        (("eval",), "name one release"),
        (("eval", "a", "--release", "b"), "name one release"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(autoglm, arguments: tuple[str, ...], words: str) -> None:
    """A wrong recipe, version or place ends with status 1 and one sentence."""
    result = autoglm("model", *arguments)
    assert result.status == 1
    assert words in result.error
    assert "Traceback" not in result.error


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


@pytest.fixture
def untrained(tmp_path: Path) -> None:
    """An untrained release `r`, its full package and a patch on it that makes release `s`, in `packages`."""
    torch.manual_seed(0)
    state = PhoneModel(NANO).state_dict()
    for folder, version, counter in (("r", "v1.2", 1), ("s", "v1.3", 2)):
        write_release(
            tmp_path / folder, config=NANO, tokenizer=build_tokenizer(NANO.vocab_size), state=state,
            health=HealthCheck(()), version=version, counter=counter, **NAMES,
        )  # fmt: skip
    (tmp_path / "packages").mkdir()
    patch.diff(None, tmp_path / "r", tmp_path / "packages" / "one.wpatch")
    patch.diff(tmp_path / "r", tmp_path / "s", tmp_path / "packages" / "two.wpatch")


@pytest.mark.needs("wqy-zenhei")
def test_a_release_is_scored_beside_a_package(autoglm, tmp_path: Path, untrained: None) -> None:
    """`eval` scores a release and a patch on the same items; without its base the patch cannot be scored."""
    arguments = ("--only", "identity,grammar,buttons", "--items", "4")
    result = autoglm("model", "eval", "r", "--against", "packages/two.wpatch", *arguments, "--json").json
    assert (result["version"], result["precision"], result["against"]["version"]) == ("v1.2", "INT8", "v1.2")
    scores = result["scores"]
    assert set(scores) >= {"identity", "grammar_valid", "buttons_tap"}
    assert scores == result["against"]["scores"]
    assert all(score["value"] < 0.9 and score["low"] <= score["high"] for score in scores.values())
    table = autoglm(
        "model", "eval", "--release", "packages/two.wpatch", *arguments[:1], "identity", "--items", "2"
    )
    assert "two.wpatch, INT8" in table.output and "chance" in table.output
    (tmp_path / "packages" / "one.wpatch").unlink()
    alone = autoglm("model", "eval", "packages/two.wpatch", *arguments)
    assert alone.status == 1 and "is not beside it" in alone.error


@pytest.mark.needs("wqy-zenhei")
def test_a_run_is_scored_in_the_type_it_would_be_shipped_in(autoglm, tmp_path: Path, untrained: None) -> None:
    """`eval --against RUN` puts bf16 weights beside INT8 ones; the answers are the first's."""
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    torch.save({"model": PhoneModel(NANO).state_dict(), "adapter": None}, tmp_path / "run" / "checkpoint.pt")
    (tmp_path / "run" / "tokenizer.json").write_text(build_tokenizer(NANO.vocab_size))
    result = autoglm(
        "model", "eval", "r", "--against", "run", "--only", "identity", "--items", "2", "--json"
    ).json
    assert (result["against"]["precision"], result["against"]["version"]) == ("bf16", "v1.2")


@pytest.mark.needs("wqy-zenhei", "espeak-ng", "chromium")
@pytest.mark.long
def test_a_release_is_scored_on_everything(autoglm, untrained: None) -> None:
    """Every section of `eval` runs on an untrained release, which scores low with chance beside it."""
    scores = autoglm("model", "eval", "r", "--items", "2", "--json").json["scores"]
    assert {"identity", "pages_tap", "speech_voices_zh", "retrieval_image_text", "needle_topk"} <= set(scores)
    assert scores["pages_unseen_labels_read"]["value"] == 0.0
