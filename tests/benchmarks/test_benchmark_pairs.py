"""Pairs of weights come from real training, go on after a kill, and have the layout of releases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainer
from gpt import Shape
from kquants import QUANTISERS, quantise
from pairs import ADAPTER_BORN, PAIRS, Maker, Pair, runs
from quantised import int8, q4

TINY = Shape(256, num_layers=1, hidden=256, batch=1, context=16)
TEXTS = (b"def one(): return 1\n" * 50, b"    import two  # self\n" * 50)
SAFE = [pair for pair in PAIRS if pair.suffix == ".safetensors" and pair.name != ADAPTER_BORN]
GGUF = [pair for pair in PAIRS if pair.suffix == ".gguf"]


def maker(directory: Path) -> Maker:
    plan = [replace(run, steps=1, rate=1e-3) for run in runs(TINY)]
    return Maker(directory, TINY, plan, TEXTS, lambda *_: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return maker(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("pair", SAFE, ids=lambda pair: pair.name)
def test_a_pair_is_a_base_and_what_a_real_update_made_of_it(tiny: Maker, pair: Pair) -> None:
    """Both files have the same tensors of the same types, and differ unless nothing was to change."""
    made = tiny.make(pair)
    old, new = load_file(made / "old.safetensors"), load_file(made / "new.safetensors")
    assert {name: w.dtype for name, w in old.items()} == {name: w.dtype for name, w in new.items()}
    same = (made / "old.safetensors").read_bytes() == (made / "new.safetensors").read_bytes()
    assert same == (pair.run == "")


@pytest.mark.parametrize("pair", GGUF, ids=lambda pair: pair.name)
def test_a_gguf_pair_holds_blocks_of_its_type(tiny: Maker, pair: Pair) -> None:
    """Every matrix of both files has the GGML type that the pair names, and its vectors are floats."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    made = tiny.make(pair)
    for side in ("old", "new"):
        tensors = gguf.GGUFReader(made / f"{side}.gguf").tensors
        assert {t.tensor_type.name for t in tensors if len(t.shape) > 1} == {pair.form}
        assert {t.tensor_type.name for t in tensors if len(t.shape) == 1} == {"F32"}


def test_one_layer_of_the_one_layer_pair_moves(tiny: Maker) -> None:
    """The tables and the last norm of the update are the base's."""
    (pair,) = (pair for pair in PAIRS if pair.name == "bf16-one-layer")
    made = tiny.make(pair)
    old, new = load_file(made / "old.safetensors"), load_file(made / "new.safetensors")
    moved = {name for name in old if not old[name].equal(new[name])}
    assert moved and all(name.startswith("layers.0.") for name in moved)


def test_a_grown_vocabulary_keeps_the_rows_it_had(tiny: Maker) -> None:
    """The tables get rows, and the old rows stay close to what they were."""
    (pair,) = (pair for pair in PAIRS if pair.run == "vocabulary")
    made = tiny.make(pair)
    old, new = load_file(made / "old.safetensors"), load_file(made / "new.safetensors")
    rows = len(old["embed.weight"])
    assert len(new["embed.weight"]) > rows
    assert torch.allclose(old["embed.weight"].float(), new["embed.weight"][:rows].float(), atol=5e-3)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state on the disk is all that a run needs to go on."""
    monkeypatch.setattr(trainer, "SAVE_STEPS", 2)
    run = trainer.Run("base", 5, 1e-3)
    tokens = torch.frombuffer(bytearray(TEXTS[0]), dtype=torch.uint8)

    def kill(name: str, step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole = trainer.train(run, TINY, tokens, {}, tmp_path / "whole.state", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(run, TINY, tokens, {}, tmp_path / "killed.state", kill)
    resumed = trainer.train(run, TINY, tokens, {}, tmp_path / "killed.state", lambda *_: None)
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert not (tmp_path / "killed.state").exists()


def test_int4_puts_the_even_column_into_the_low_half() -> None:
    """Codes are offset by 8, and a weight is its code less 8 times its group's scale."""
    weights = torch.linspace(-0.7, 0.7, 64).reshape(1, 64)
    codes, scale = q4(weights, None)
    low, high = (codes & 15).float() - 8, (codes >> 4).float() - 8
    restored = torch.stack([low, high], 2).flatten(1) * scale.float().repeat_interleave(32, 1)
    assert codes.shape == (1, 32) and scale.shape == (1, 2)
    assert torch.allclose(restored, weights, atol=0.06)


def test_kept_scales_are_the_bases() -> None:
    """A quantiser that is given scales returns them and codes that fit them."""
    weights = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    codes, scale = int8(weights, None)
    again, kept = int8(weights * 1.01, scale)
    assert kept is scale
    assert (again.int() - codes.int()).abs().max() <= 2


@pytest.mark.parametrize(("kind", "worst"), [("Q4_K", 0.08), ("Q5_K", 0.04), ("Q6_K", 0.02)])
def test_k_quants_are_read_back_by_gguf(kind: str, worst: float) -> None:
    """gguf's own dequantisation gives the weights back, to the accuracy of the type; zeros stay zeros."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    weights = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    weights[3, :256] = 0
    blocks = quantise(weights, kind)
    back = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert kind in QUANTISERS
    assert np.sqrt(np.square(back - weights).mean()) < worst
    assert not back[3, :256].any()
