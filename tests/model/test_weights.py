"""Weights on disk: what is written comes back, and what is damaged never runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoglm.errors import AutoGLMError, ConfigError, EngineError, FormatError, StorageError
from autoglm.model.checkpoint import convert_checkpoint, save_checkpoint, write_release
from autoglm.model.network import PhoneModel
from autoglm.model.weights import load_release, read_scales
from autoglm.releases import HealthCheck, HealthPrompt, Manifest

NAMES = {
    "model": "autoglm-phone-9b", "variant": "tiny", "name": "tiny", "version": "v1.0", "counter": 1
}  # fmt: skip
HEALTH = HealthCheck((HealthPrompt(({"role": "user", "content": "你是谁?"},), "我", False, 8),), 1.0)


@pytest.fixture
def release(tmp_path: Path, model: PhoneModel, tokenizer_text: str) -> Path:
    target = tmp_path / "release"
    write_release(
        target,
        config=model.config,
        tokenizer=tokenizer_text,
        state=model.state_dict(),
        health=HEALTH,
        **NAMES,
    )
    return target


def rewrite(release: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = release / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_release_runs_as_the_model_it_was_made_of(release: Path, model: PhoneModel, conversations) -> None:
    """Loading gives every weight back to within half a step of its row's scale."""
    loaded = load_release(release)
    scales = read_scales(release / "model.safetensors")
    for name, value in loaded.model.state_dict().items():
        if name in scales:
            error = (value - model.state_dict()[name]).flatten(1).abs().amax(1)
            assert bool((error <= 0.51 * scales[name].float()).all()), name
    prompt = loaded.processor.prompt(conversations["all"], enable_thinking=False)
    cache = loaded.model.new_cache(1, 128)
    hidden = loaded.model.prefill(prompt, cache, cache.slot(0))
    assert hidden.isfinite().all()
    assert loaded.health == HEALTH
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_release_describes_its_own_files(release: Path) -> None:
    """The manifest lists every file but itself, with the right hashes."""
    manifest = Manifest.read(release)
    assert {file.path for file in manifest.files} == {
        *("config.json", "health.json", "model.safetensors", "tokenizer.json")
    }
    assert manifest == Manifest.of_directory(release, **NAMES)


def test_saving_a_loaded_release_gives_the_same_bytes(release: Path, tokenizer_text: str) -> None:
    """With its scales kept, an unchanged model is stored in exactly the same bytes."""
    loaded = load_release(release)
    again = release.parent / "again"
    write_release(
        again,
        config=loaded.config,
        tokenizer=tokenizer_text,
        state=loaded.model.state_dict(),
        health=HEALTH,
        scales=read_scales(release / "model.safetensors"),
        **NAMES,
    )
    assert Manifest.read(again).sha256 == Manifest.read(release).sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("norm.weight"), "lacks 1 weights, 'norm.weight'"),
        (lambda t: t.update(evil=torch.zeros(1)), "unknown weights, 'evil'"),
        (lambda t: t.update({"evil.scale": torch.zeros(1)}), "scales without a weight: evil.scale"),
        (lambda t: t["norm.weight"].__setitem__(3, float("nan")), "not finite"),
        (lambda t: t["table.weight.scale"].__setitem__(3, float("inf")), "not finite"),
        (lambda t: t.update({"norm.weight": torch.zeros(33)}), "not float"),
        (lambda t: t.update({"norm.weight": torch.zeros(32, dtype=torch.int32)}), "not float"),
        (lambda t: t.update({"table.weight": t["table.weight"].float()}), "as int8 or packed int4"),
        (
            lambda t: t.update({"table.weight": t["table.weight"][:, :-1].contiguous()}),
            "as int8 or packed int4",
        ),
        (lambda t: t.update({"table.weight.scale": torch.ones(640)}), "as int8 or packed int4"),
        (lambda t: t.pop("table.weight.scale"), "not float"),
    ],
)
def test_weights_that_do_not_fit_are_refused(release: Path, change, words: str) -> None:
    """A missing, unknown, misshapen, mistyped or non-finite weight raises, naming the weight."""
    rewrite(release, change)
    with pytest.raises(EngineError, match=words):
        load_release(release)


@pytest.mark.parametrize("name", ["config.json", "health.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_cut_file_is_refused(release: Path, name: str) -> None:
    """Any file missing or cut off raises one of our errors, never a foreign one."""
    content = (release / name).read_bytes()
    for damage in (content[: len(content) // 2], b"", os.urandom(64)):
        (release / name).write_bytes(damage)
        with pytest.raises(AutoGLMError):
            load_release(release)
    (release / name).unlink()
    with pytest.raises(FormatError):
        load_release(release)


def test_a_tokenizer_larger_than_the_table_is_refused(release: Path) -> None:
    """A tokenizer with ids that the model has no vector for is refused."""
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    with pytest.raises(FormatError, match="ids"):
        load_release(release)


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path, make_model, tokenizer_text: str) -> None:
    """A model with a NaN is not written, and nothing is left behind."""
    model = make_model()
    model.norm.weight[0] = float("nan")
    with pytest.raises(EngineError, match=r"norm\.weight"):
        write_release(
            tmp_path / "r", config=model.config, tokenizer=tokenizer_text, state=model.state_dict(),
            health=HEALTH, **NAMES,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_release_may_hold_int4(tmp_path: Path, model: PhoneModel, tokenizer_text: str) -> None:
    """The blocks' matrices in INT4, all others in INT8: it loads, near the model it was made of."""
    parts = {
        "config": model.config,
        "tokenizer": tokenizer_text,
        "state": model.state_dict(),
        "health": HEALTH,
    }
    write_release(tmp_path / "int4", int4_group=8, **parts, **NAMES)
    write_release(tmp_path / "int8", **parts, **NAMES)
    small, large = (Manifest.read(tmp_path / name).total_bytes for name in ("int4", "int8"))
    assert small < large
    made = model.state_dict()
    for name, value in load_release(tmp_path / "int4").model.named_parameters():
        error = float((value - made[name]).square().mean())
        assert error <= 0.02 * float(made[name].square().mean()) + 1e-6, name


def test_kept_scales_say_how_an_update_is_stored(
    tmp_path: Path, model: PhoneModel, tokenizer_text: str
) -> None:
    """An update that keeps INT4 scales is INT4 too, and unchanged weights give the same bytes."""
    parts = {
        "config": model.config,
        "tokenizer": tokenizer_text,
        "state": model.state_dict(),
        "health": HEALTH,
    }
    first = write_release(tmp_path / "a", int4_group=8, **parts, **NAMES)
    scales = read_scales(tmp_path / "a" / "model.safetensors")
    assert write_release(tmp_path / "b", scales=scales, **parts, **NAMES).sha256 == first.sha256


@pytest.mark.parametrize("group", [3, 7, 5])
def test_groups_that_do_not_divide_a_row_are_refused(
    model: PhoneModel, tokenizer_text, tmp_path, group
) -> None:
    """A group size that leaves a rest raises and names the weight."""
    with pytest.raises(ConfigError, match=r"blocks\.0.*groups of"):
        write_release(
            tmp_path / "r", config=model.config, tokenizer=tokenizer_text, state=model.state_dict(),
            health=HEALTH, int4_group=group, **NAMES,
        )  # fmt: skip


def test_a_checkpoint_becomes_a_release(tmp_path: Path, model: PhoneModel, tokenizer_text: str) -> None:
    """A ``.pt`` file of tensors and plain data converts to a release that loads."""
    save_checkpoint(tmp_path / "model.pt", model, tokenizer_text, HEALTH)
    manifest = convert_checkpoint(tmp_path / "model.pt", tmp_path / "out", **NAMES)
    assert load_release(tmp_path / "out").config == model.config
    assert manifest == Manifest.read(tmp_path / "out")
    with pytest.raises(StorageError):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "out", **NAMES)


class Malice:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    """A pickle that would run code is refused in words that say so, and its code does not run."""
    proof = tmp_path / "proof"
    torch.save({"config": {}, "tokenizer": "", "weights": Malice(proof)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malice(proof)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(FormatError, match="refused"):
            convert_checkpoint(tmp_path / name, tmp_path / "out", **NAMES)
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"weights": {}},
        {"config": {}, "tokenizer": "{}", "weights": {}},
        {"config": torch.zeros(1), "tokenizer": "{}", "weights": {}},
        {"config": {}, "tokenizer": "{}", "weights": {}, "extra": 1},
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, content: object) -> None:
    """A checkpoint without the expected parts raises a format error."""
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(FormatError):
        convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", **NAMES)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Random bytes, an empty file and a missing file raise a format error."""
    for name, content in (("empty.pt", b""), ("random.pt", os.urandom(500)), ("zip.pt", b"PK\x03\x04" * 20)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError):
            convert_checkpoint(tmp_path / name, tmp_path / "out", **NAMES)
    with pytest.raises(FormatError, match="cannot be read"):
        convert_checkpoint(tmp_path / "absent.pt", tmp_path / "out", **NAMES)
