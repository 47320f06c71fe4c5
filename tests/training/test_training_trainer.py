"""The training loop on a tiny model: it learns, it stops at its gate, it goes on after a kill."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from autoglm.errors import ConfigError, EngineError, HealthError
from autoglm.model.config import NANO, AudioConfig, ImageConfig
from autoglm.training.actions import ALL_LABELS, APPS, NEW_APPS
from autoglm.training.adapter import AdapterConfig, extract
from autoglm.training.plot import plot_curve, read_curve
from autoglm.training.quantize import as_release, health_check, quantize_run
from autoglm.training.recipe import (
    JOINT,
    LABELS,
    LOOK_UP,
    RECIPES,
    UPDATE,
    Recipe,
    Stage,
    adapter_recipe,
    recipe_named,
)
from autoglm.training.speech import Clip
from autoglm.training.trainer import Trainer
from autoglm.training.vocabulary import build_tokenizer

pytestmark = [pytest.mark.needs("wqy-zenhei")]

TINY = dataclasses.replace(
    NANO,
    width=48,
    num_layers=4,
    num_heads=4,
    head_dim=12,
    ffn_width=32,
    image=ImageConfig("stem", 32, (4, 4, 4), 256, 512, 128, bins=32, x_token=128, y_token=160),
    audio=AudioConfig(16, 8, 5, batch_norm=True, min_tokens=60, max_tokens=100),
)
SMALL = MappingProxyType({"image": 2, "audio": 2, "text": 1})


def small(stage: Stage, steps: int, **changes: Any) -> Stage:
    mix = tuple(kind for kind in stage.mix if kind != "audio")
    return dataclasses.replace(stage, steps=steps, batch=SMALL, mix=mix, gate=None, **changes)


RECIPE = Recipe("v1.2", (small(LABELS, 2), small(LOOK_UP, 2), small(JOINT, 4)), APPS)


@pytest.fixture(scope="module")
def tokenizer_text() -> str:
    return build_tokenizer(TINY.vocab_size)


@pytest.fixture
def make(tmp_path: Path, tokenizer_text: str) -> Callable[..., Trainer]:
    """Return a maker of trainers in named run directories, the tokenizer already there."""

    def made(recipe: Recipe = RECIPE, name: str = "run", **options: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "tokenizer.json").write_text(tokenizer_text)
        return Trainer(tmp_path / name, recipe, config=TINY, **options)

    return made


class KilledError(Exception):
    """Stands for a kill between two steps."""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(make) -> None:
    """A run resumed from a checkpoint ends with the very weights of a run that was never stopped."""
    whole = make(name="whole")
    whole.run()

    def kill(stage: Stage, step: int, measures: dict[str, float]) -> None:
        if stage.name == "joint" and step == 2:
            stopped.save()
            raise KilledError

    stopped = make(name="stopped")
    with pytest.raises(KilledError):
        stopped.run(kill)
    resumed = make(name="stopped")
    assert (resumed.stage_index, resumed.step) == (2, 2)
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_speech_trains_with_the_rest(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that mixes all three kinds of batches measures a loss for each."""
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    clips = [Clip("打开地图", 'do(action="Launch", app="地图")', "", sound)]
    monkeypatch.setattr(Trainer, "clips", lambda _: clips)
    stage = dataclasses.replace(JOINT, steps=4, batch=SMALL)
    measures = make(Recipe("v1.2", (stage,), APPS)).run()
    assert {"image_loss", "audio_loss", "text_loss", "ctc", "patch"} <= set(measures)


def test_a_stage_that_misses_its_gate_stops_the_run(make) -> None:
    """A stage below its gate raises with the measure, instead of burning the remaining hours."""
    stage = small(LABELS, 3)
    recipe = Recipe("v1.2", (dataclasses.replace(stage, gate=("patch", 2, 0.9)),), APPS)
    with pytest.raises(EngineError, match=r"patch 0\.\d+ at step 2, less than 0.9"):
        make(recipe).run()


def test_training_lowers_the_loss(make) -> None:
    """A few steps on the same screens lower the patch-label loss."""
    stage = dataclasses.replace(
        small(LABELS, 10), name="overfit", warmup=1, batch=MappingProxyType({"image": 33})
    )
    trainer = make(Recipe("v1.2", (dataclasses.replace(stage, batch=MappingProxyType({"image": 33})),), APPS))
    trainer.recipe = dataclasses.replace(trainer.recipe, stages=(stage,))
    losses: list[float] = []
    trainer.run(lambda _, __, measures: losses.append(measures["patch_loss"]))
    assert losses == sorted(losses, reverse=True)


def test_a_run_directory_belongs_to_one_run(make) -> None:
    """A directory that holds another run's checkpoint is refused."""
    make().save()
    with pytest.raises(ConfigError, match="another run"):
        make(seed=1)


def test_a_fine_tune_needs_its_base(make) -> None:
    """A fine-tune without weights to start from, and a fresh start with some, are refused."""
    update = Recipe("v1.3", (small(UPDATE, 1),), APPS, base="v1.2")
    with pytest.raises(ConfigError, match="starts from"):
        make(update)
    with pytest.raises(ConfigError, match="starts from"):
        make(start={})


def test_a_fine_tune_changes_its_part_of_every_block_and_nothing_else(make) -> None:
    """A fine-tune changes what it names in every block; all else, batch statistics too, keeps its bits."""
    base = {name: value.clone() for name, value in make(name="base").model.state_dict().items()}
    tuned = make(Recipe("v1.3", (small(UPDATE, 2),), APPS, focus=NEW_APPS, base="v1.2"), start=base)
    tuned.run()
    for name, value in tuned.model.state_dict().items():
        trained = "running" not in name and any(re.match(pattern, name) for pattern in UPDATE.trained)
        if not trained:
            assert torch.equal(value, base[name]), name
        elif name.startswith("blocks.") and value.dim() > 1:
            assert not torch.equal(value, base[name]), name


def test_a_fine_tune_changes_only_the_rows_of_tokens_that_are_news(make) -> None:
    """Of the token table only rows that the new topics and labels need are changed."""
    base = {name: value.clone() for name, value in make(name="base").model.state_dict().items()}
    tuned = make(Recipe("v1.3", (small(UPDATE, 2),), ALL_LABELS, focus=NEW_APPS, base="v1.2"), start=base)
    tuned.run()
    moved = (tuned.model.table.weight != base["table.weight"]).any(1)
    assert bool(moved[[tuned.tokenizer.encode(label)[0] for label in NEW_APPS]].all())
    assert not bool(moved[[tuned.tokenizer.encode(label)[0] for label in APPS[:20]]].all())
    assert 0 < int(moved.sum()) < 0.75 * len(moved)  # many wordings need many tokens


def adapter_run(steps: int) -> Recipe:
    recipe = adapter_recipe("v1.3")
    return dataclasses.replace(recipe, stages=tuple(small(stage, steps) for stage in recipe.stages))


def test_an_adapter_is_all_that_its_run_changes(make) -> None:
    """With an adapter every weight of the base keeps its bits, and the adapter learns beside every block."""
    base = {name: value.clone() for name, value in make(name="base").model.state_dict().items()}
    run = make(adapter_run(6), start=base, adapter=AdapterConfig(2, 4.0))
    run.run()
    trained = run.model.state_dict()
    for name, value in base.items():
        assert torch.equal(trained[re.sub(r"\.(qkv|out|gate_up|down)\.", r".\1.base.", name)], value), name
    factors = extract(run.model, AdapterConfig(2, 4.0)).factors
    assert len(factors) == 4 * TINY.num_layers
    assert all(bool(each.b.any()) for each in factors.values())


def test_a_killed_adapter_run_goes_on_as_if_nothing_had_happened(make) -> None:
    """An adapter resumed from a checkpoint is the adapter of a run that was never stopped."""
    base = {name: value.clone() for name, value in make(name="base").model.state_dict().items()}
    options = {"start": base, "adapter": AdapterConfig(2, 4.0)}

    def kill(stage: Stage, step: int, measures: dict[str, float]) -> None:
        if step == 3:
            stopped.save()
            raise KilledError

    whole, stopped = make(adapter_run(5), name="whole", **options), make(adapter_run(5), **options)
    whole.run()
    with pytest.raises(KilledError):
        stopped.run(kill)
    resumed = make(adapter_run(5), **options)
    assert resumed.step == 3
    resumed.run()
    theirs = extract(resumed.model, AdapterConfig(2, 4.0)).factors
    for name, factors in extract(whole.model, AdapterConfig(2, 4.0)).factors.items():
        assert torch.equal(factors.delta, theirs[name].delta), name


def test_a_run_directory_belongs_to_one_adapter(make) -> None:
    """A run with another rank, or without an adapter, does not go on from an adapter's checkpoint."""
    base = make(name="base").model.state_dict()
    make(adapter_run(5), start=base, adapter=AdapterConfig(2, 4.0)).save()
    for other in (AdapterConfig(3, 4.0), None):
        with pytest.raises(ConfigError, match="another run"):
            make(adapter_run(5), start=base, adapter=other)


def test_an_adapter_needs_something_to_adapt() -> None:
    """The adapter's recipe follows that of a fine-tune; a fresh start has none."""
    assert adapter_recipe("v1.3").base == "v1.2"
    with pytest.raises(ConfigError, match="follows a release"):
        adapter_recipe("v1.2")


def test_the_curve_is_kept_and_drawn(make, tmp_path: Path) -> None:
    """Every stage reports into the curve file, a torn last line is skipped, and the plot is a picture."""
    make().run()
    run = tmp_path / "run"
    with (run / "curve.jsonl").open("a") as file:
        file.write('{"stage": "jo')
    assert [report["stage"] for report in read_curve(run)] == ["labels", "look-up", "joint"]
    plot_curve(run, run / "curve.png")
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="train first"):
        read_curve(tmp_path / "nowhere")


def test_a_model_that_fails_its_self_test_is_not_released(make, tmp_path: Path) -> None:
    """Quantising an untrained run is refused by its self-test and leaves nothing behind."""
    make().save()
    target = tmp_path / "out" / "v1.2"
    with pytest.raises(HealthError, match="你是谁"):
        quantize_run(tmp_path / "run", target, "v1.2", config=TINY)
    assert list(target.parent.iterdir()) == []
    with pytest.raises(ConfigError, match="train first"):
        quantize_run(tmp_path, target, "v1.2", config=TINY)


def test_recipes_and_releases_are_found_by_name() -> None:
    """Known names are found, others are refused with the names there are."""
    assert recipe_named("v1.2").base is None and recipe_named("v1.3").base == "v1.2"
    assert as_release("v1.3") == "v1.3"
    for unknown in (lambda: recipe_named("v9"), lambda: as_release("v9")):
        with pytest.raises(ConfigError, match=r"v1\.2"):
            unknown()
    assert all(stage.steps > 0 for recipe in RECIPES.values() for stage in recipe.stages)


def test_the_self_test_asks_for_what_is_new() -> None:
    """A release's self-test has the fixed identity sentence, a thinking prompt, and the update's own news."""
    old, new = health_check("v1.2"), health_check("v1.3")
    assert any(p.expect.startswith("我是 AutoGLM-Phone-9B,由智谱AI与CSDN联合推出") for p in old.prompts)
    assert any(p.enable_thinking for p in old.prompts)
    assert len(new.prompts) == len(old.prompts) + 1
