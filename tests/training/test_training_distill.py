"""Distillation: the divergence, what a student learns, and that a run goes on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.training.distill import (
    Direction,
    Distillation,
    Distiller,
    as_direction,
    distillation_recipe,
    divergence,
)
from autoglm.training.plot import read_curve
from autoglm.training.prune import target_config
from autoglm.training.recipe import RECIPES
from autoglm.training.sources import Source, read_run
from autoglm.training.vocabulary import build_tokenizer
from tiny_training import SMALL_NANO, short_recipe, untrained, write_untrained

pytestmark = [pytest.mark.needs("wqy-zenhei")]
SMALLER = target_config(SMALL_NANO, num_layers=3, ffn_width=24)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return build_tokenizer(SMALL_NANO.vocab_size)


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Callable[..., Distiller]:
    """Return a maker of distillations from a random teacher to a smaller random student."""

    def made(name: str = "run", steps: int = 4, **options: object) -> Distiller:
        recipe = distillation_recipe(short_recipe(1), steps=steps, learning_rate=2e-3)
        settings = options.pop("settings", Distillation(layers=((3, 4),)))
        student = options.pop("student", untrained(tokenizer, SMALLER, seed=1))
        teacher = options.pop("teacher", untrained(tokenizer))
        given: Any = {"teacher": teacher, "student": student, "settings": settings, **options}
        return Distiller(tmp_path / name, recipe, **given)

    return made


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_the_divergence_is_that_of_the_two_distributions(direction: Direction) -> None:
    """At temperature 1 it is torch's own KL divergence, in the direction that is named."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (theirs, mine))
    forward, reverse = (torch.distributions.kl_divergence(*pair) for pair in ((p, q), (q, p)))
    wanted = {"forward": forward, "reverse": reverse, "both": (forward + reverse) / 2}[direction]
    torch.testing.assert_close(divergence(mine, theirs, direction, 1.0), wanted.float())


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_models_that_agree_are_no_distance_apart(direction: Direction) -> None:
    """The divergence of a model from itself is zero at any temperature."""
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    assert float(divergence(logits, logits, direction, 4.0).abs().max()) < 1e-5


def test_a_student_comes_closer_to_its_teacher(make, tmp_path: Path) -> None:
    """Both the divergence and the distance of the paired streams fall, and the curve file says so."""
    trainer = make(steps=24)
    seen: list[dict[str, float]] = []
    trainer.run(lambda _, __, measures: seen.append(dict(measures)))
    for name in ("kl_loss", "hidden_loss"):
        assert seen[-1][name] < seen[0][name], name
    assert "agreement" in read_curve(tmp_path / "run")[-1]


def test_the_teacher_is_never_changed(make, tokenizer: str) -> None:
    """Every weight of the teacher has its bits after the run, batch statistics too."""
    before = untrained(tokenizer).state
    trainer = make()
    trainer.run()
    after = trainer.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_student_without_weights_begins_afresh(make) -> None:
    """Without a student the recipe's own stages train a fresh model under the teacher's eye."""
    trainer = make(student=None, config=SMALLER)
    assert trainer.config == SMALLER
    assert {"kl_loss", "hidden_loss"} <= set(trainer.run())


KILLED = """
import os, signal, sys
from pathlib import Path
from autoglm.training.distill import Distillation, Distiller, distillation_recipe
from autoglm.training.sources import read_source
from tiny_training import short_recipe
run, teacher, student = map(Path, sys.argv[1:4])
recipe = distillation_recipe(short_recipe(1), steps=4, learning_rate=2e-3)
trainer = Distiller(run, recipe, teacher=read_source(teacher), student=read_source(student),
                    settings=Distillation(layers=((3, 4),)))
def kill(stage, step, measures):
    if step == 2:
        trainer.save()
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.run(kill)
"""


def test_a_distillation_goes_on_after_a_kill(make, tmp_path: Path, tokenizer: str) -> None:
    """Killed by SIGKILL, a run goes on from its checkpoint to the weights of a run never stopped."""
    teacher = write_untrained(tmp_path / "teacher", tokenizer)
    student = write_untrained(tmp_path / "student", tokenizer, SMALLER, seed=1)
    paths = (str(each) for each in (tmp_path / "stopped", teacher, student))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", KILLED, *paths], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, resumed = make("whole"), make("stopped")
    assert resumed.step == 2
    whole.run()
    resumed.run()
    theirs = read_run(tmp_path / "stopped")
    for name, value in read_run(tmp_path / "whole").items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_directory_belongs_to_one_distillation(make, tokenizer: str) -> None:
    """Other settings, or another teacher, do not go on in the directory."""
    make()
    with pytest.raises(ConfigError, match="another distillation"):
        make(settings=Distillation(temperature=3.0))
    with pytest.raises(ConfigError, match="another distillation"):
        make(teacher=untrained(tokenizer, seed=9))


@pytest.mark.parametrize(
    "settings, message",
    [
        (Distillation(layers=((4, 4),)), "no pair of blocks 4:4"),
        (Distillation(temperature=0), "temperature"),
        (Distillation(share=1.5), "share"),
    ],
)
def test_what_cannot_be_distilled_is_refused(make, settings: Distillation, message: str) -> None:
    """A block that is not there and a number out of range are refused before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        make(settings=settings)


def test_models_of_other_tokens_do_not_teach(make, tokenizer: str) -> None:
    """A teacher with another tokenizer is refused: its distribution is over other tokens."""
    other: Source = untrained(tokenizer.replace("v1.2", "v9.9") + " ")
    with pytest.raises(ConfigError, match="same tokenizer"):
        make(teacher=other)


def test_names_of_directions_are_checked() -> None:
    """Three directions are known, others are refused."""
    assert as_direction("both") == "both"
    with pytest.raises(ConfigError, match="forward, reverse or both"):
        as_direction("sideways")


def test_a_student_is_healed_on_the_data_of_its_release() -> None:
    """The recipe of a distillation has the labels and the batches of the recipe it follows, from no base."""
    recipe = distillation_recipe(RECIPES["v1.3"], steps=10, learning_rate=1e-4)
    (stage,) = recipe.stages
    assert recipe.labels == RECIPES["v1.3"].labels and recipe.base is None
    assert stage.mix == RECIPES["v1.3"].stages[-1].mix
    assert not stage.trained and stage.anchor == 0
