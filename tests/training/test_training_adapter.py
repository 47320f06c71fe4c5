"""Adapters: nothing but the change is trained, and files under PEFT's names come and go unharmed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoglm.errors import AutoGLMError, ConfigError, FormatError
from autoglm.model.network import PhoneModel, span_bias
from autoglm.training.adapter import (
    ADAPTER_NAME,
    SETTINGS_NAME,
    Adapter,
    AdapterConfig,
    attach,
    extract,
    read_adapter,
    write_adapter,
)
from tiny_model import TINY, random_state

SETTINGS = AdapterConfig(rank=2, alpha=6.0)


def hidden(model: PhoneModel) -> Tensor:
    """The final stream over a few tokens."""
    ids = torch.arange(20, 32)[None]
    positions = torch.arange(12)[:, None].expand(12, 3)
    return model(model.embed_tokens(ids), positions, span_bias(torch.zeros(12, dtype=torch.long)))[0]


def new_model() -> PhoneModel:
    model = PhoneModel(TINY)
    model.load_state_dict(random_state(0))
    return model


def trained() -> tuple[PhoneModel, Adapter]:
    """A model whose adapter was moved by two real steps."""
    model = new_model()
    attach(model, SETTINGS, seed=3)
    parameters = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        hidden(model)[..., :8].mean().backward()
        optimizer.step()
    return model, extract(model, SETTINGS)


@pytest.fixture
def adapter_files(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", trained()[1])
    return tmp_path / "adapter"


def test_a_new_adapter_changes_nothing() -> None:
    """Attaching leaves the model's answers as they were, to the bit, until it is trained."""
    model, plain = new_model(), new_model()
    attach(model, SETTINGS, seed=3)
    assert torch.equal(hidden(model), hidden(plain))


def test_the_change_is_the_product_of_the_factors() -> None:
    """A model with its adapter computes what the base with the product added computes."""
    model, adapter = trained()
    merged = new_model()
    merged.load_state_dict(adapter.applied_to(random_state(0)))
    assert not torch.allclose(hidden(merged), hidden(new_model()), atol=1e-3)
    assert torch.allclose(hidden(model), hidden(merged), atol=1e-4)
    assert all(factors.scaling == 3.0 for factors in adapter.factors.values())
    assert len(adapter.factors) == 4 * TINY.num_layers


def test_the_same_seed_starts_the_same() -> None:
    """First values depend on the seed alone."""
    starts = []
    for seed in (1, 1, 2):
        model = new_model()
        attach(model, SETTINGS, seed=seed)
        starts.append(extract(model, SETTINGS).factors["blocks.0.qkv.weight"].a)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_layers_that_are_not_there_are_refused() -> None:
    """An adapter for unknown modules raises instead of training nothing."""
    with pytest.raises(ConfigError, match="q_proj"):
        attach(new_model(), AdapterConfig(2, 2.0, targets=("q_proj",)), seed=0)


def test_an_adapter_is_written_as_peft_names_it(adapter_files: Path) -> None:
    """Files, tensors and settings have PEFT's names, and reading gives the factors back."""
    names = set(load_file(adapter_files / "adapter_model.safetensors"))
    assert "base_model.model.blocks.0.qkv.lora_A.weight" in names
    assert "base_model.model.blocks.1.down.lora_B.weight" in names
    settings = json.loads((adapter_files / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 6.0)
    back, wrote = read_adapter(adapter_files), trained()[1]
    assert list(back.factors) == sorted(wrote.factors)
    for name, factors in wrote.factors.items():
        assert torch.equal(back.factors[name].delta, factors.delta)


def edit_settings(directory: Path, **changes: Any) -> None:
    path = directory / SETTINGS_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / ADAPTER_NAME)
    change(tensors)
    save_file(tensors, directory / ADAPTER_NAME)


def test_settings_of_single_modules_are_followed(adapter_files: Path) -> None:
    """alpha_pattern, rank_pattern and rank-stabilised scaling change the factor on the product as in PEFT."""
    edit_settings(adapter_files, alpha_pattern={"0.qkv": 10}, rank_pattern={"blocks.1.down": 2})
    scalings = {name: f.scaling for name, f in read_adapter(adapter_files).factors.items()}
    assert scalings["blocks.0.qkv.weight"] == 5.0 and scalings["blocks.1.qkv.weight"] == 3.0
    edit_settings(adapter_files, use_rslora=True, alpha_pattern={})
    assert read_adapter(adapter_files).factors["blocks.0.qkv.weight"].scaling == pytest.approx(6 / 2**0.5)


def test_the_adapter_of_a_convolution_is_a_matrix(adapter_files: Path) -> None:
    """Four-dimensional factors are read flat, a row an output channel."""
    a, b = torch.randn(2, 3, 8, 8), torch.randn(4, 2, 1, 1)
    edit_tensors(
        adapter_files,
        lambda t: t.update(
            {"base_model.model.image.conv.lora_A.weight": a, "base_model.model.image.conv.lora_B.weight": b}
        ),
    )
    delta = read_adapter(adapter_files).factors["image.conv.weight"].delta
    assert delta.shape == (4, 192)
    expected = 3.0 * torch.einsum("or,rcxy->ocxy", b[..., 0, 0], a).flatten(1)
    assert torch.allclose(delta, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 3}, "rank 3"),
        ({"r": "two"}, "not a number"),
        ({"lora_alpha": None}, "not a number"),
        ({"rank_pattern": [1]}, "rank_pattern"),
    ],
)
def test_settings_that_cannot_be_merged_are_refused(adapter_files: Path, change, words: str) -> None:
    """What is more than a low-rank change, or contradicts the factors, raises and says what it is."""
    edit_settings(adapter_files, **change)
    with pytest.raises((ConfigError, FormatError), match=words):
        read_adapter(adapter_files)


QKV = "base_model.model.blocks.0.qkv"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{QKV}.lora_A.weight"), "only lora_B"),
        (lambda t: t.update({"base_model.model.table.lora_embedding_A": torch.zeros(2, 8)}), "table"),
        (lambda t: t.update({"base_model.model.blocks.0.qkv.weight": torch.zeros(2, 8)}), "no low-rank"),
        (lambda t: t[f"{QKV}.lora_A.weight"].__setitem__((0, 0), float("nan")), "not finite"),
        (lambda t: t.update({f"{QKV}.lora_A.weight": torch.zeros(3, 32)}), "rank"),
        (lambda t: t.update({f"{QKV}.lora_A.weight": torch.zeros(2)}), "float matrices"),
        (lambda t: t.update({f"{QKV}.lora_A.weight": torch.zeros(2, 32).int()}), "float matrices"),
        (lambda t: t.clear(), "no adapter"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(adapter_files: Path, change, words: str) -> None:
    """Half a pair, an embedding's, a whole weight, values that are not finite or of no rank raise."""
    edit_tensors(adapter_files, change)
    with pytest.raises((ConfigError, FormatError), match=words):
        read_adapter(adapter_files)


@pytest.mark.parametrize("name", [ADAPTER_NAME, SETTINGS_NAME])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff" * 100, b'{"r": 1e400}', None])
def test_files_that_do_not_parse_are_refused(adapter_files: Path, name: str, content: bytes | None) -> None:
    """Missing, empty, cut and random files raise one of our errors."""
    if content is None:
        (adapter_files / name).unlink()
    else:
        (adapter_files / name).write_bytes(content)
    with pytest.raises(AutoGLMError):
        read_adapter(adapter_files)


def test_an_adapter_of_another_model_does_not_fit() -> None:
    """A matrix that the model lacks, or has in another shape, is named."""
    adapter = trained()[1]
    with pytest.raises(ConfigError, match=r"blocks\.1\.\w+\.weight.*not in the model"):
        adapter.applied_to({name: t for name, t in random_state(0).items() if "blocks.1" not in name})
    wrong = random_state(0) | {"blocks.0.out.weight": torch.zeros(32, 31)}
    with pytest.raises(ConfigError, match=r"blocks\.0\.out\.weight.*\(32, 31\)"):
        adapter.applied_to(wrong)
