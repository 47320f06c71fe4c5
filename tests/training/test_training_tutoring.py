"""Distillation in a course: what the student learns from its teacher, from which weights, through a kill."""

from __future__ import annotations

import dataclasses
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
from autoglm.model.config import CONFIGS, NANO, TEACHER_NANO
from autoglm.model.weights import build_model, expected_tensors, is_matrix
from autoglm.training.course import course_named
from autoglm.training.distill import Distillation
from autoglm.training.lexicon import build_lexicon
from autoglm.training.loop import Loop
from autoglm.training.plot import read_curve
from autoglm.training.prune import check_target, prune_source
from autoglm.training.sources import read_run, read_source
from autoglm.training.tutoring import TutoredClassroom, course_importance, healing_course
from tiny_course import SMALL, SMALLER, lesson, short_course, untaught, write_untaught

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")
TUTORED = Distillation(layers=((2, 3),))


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return build_lexicon(SMALL.vocab_size)


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Callable[..., Loop]:
    """Return a maker of distillations from a random teacher to a smaller random student."""

    def made(name: str = "run", steps: int = 4, **options: object) -> Loop:
        course = healing_course(short_course(lesson(1)), steps=steps, learning_rate=2e-3)
        given: dict[str, Any] = {"settings": TUTORED, "student": untaught(tokenizer, SMALLER, seed=1)}
        given |= {"teacher": untaught(tokenizer), **options}
        room = TutoredClassroom(tmp_path / name, given.pop("course", course), **given)
        return Loop(tmp_path / name, room, room.course.lessons)

    return made


def test_a_student_comes_closer_to_its_teacher_and_keeps_the_courses_losses(make, tmp_path: Path) -> None:
    """Divergence and the distance of paired streams fall; patches, names and pairs are still taught."""
    loop, seen = make(steps=16), []
    loop.run(lambda _, __, measures: seen.append(dict(measures)))
    for name in ("kl_loss", "hidden_loss", "patch_loss"):
        assert seen[-1][name] < seen[0][name], name
    assert {"agreement", "name", "screen_pair", "text_loss"} <= set(read_curve(tmp_path / "run")[-1])


def test_a_teacher_teaches_itself_nothing(make, tokenizer: str) -> None:
    """A student that is its teacher's copy diverges from it by rounding alone."""
    measures = make(student=untaught(tokenizer), settings=Distillation(), steps=1).run()
    assert measures["kl_loss"] < 1e-2 and measures["agreement"] > 0.9


def test_a_student_that_takes_nothing_from_its_teacher_does_not_wait_for_it(make) -> None:
    """With a share of 0 and no paired blocks the course goes on, and the teacher never runs."""
    loop = make(settings=Distillation(share=0.0), steps=2)
    loop.task.tutor.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    measures = loop.run()
    assert "text_loss" in measures and "kl_loss" not in measures


def test_the_teacher_is_never_changed(make, tokenizer: str) -> None:
    """After a run every weight of the teacher is what it was; norms are held in the streams' precision."""
    loop = make()
    loop.run()
    after = loop.task.tutor.state_dict()
    for name, value in untaught(tokenizer).state.items():
        assert torch.equal(value.to(after[name].dtype), after[name]), name


def test_the_students_auxiliary_heads_go_on(make, tokenizer: str) -> None:
    """The heads that came with the student's weights are those that training begins with."""
    student = untaught(tokenizer, SMALLER, seed=5)
    heads = make(student=student).task.circuits.state_dict()
    assert all(torch.equal(value, heads[name]) for name, value in student.circuits.items())


def test_a_student_without_weights_takes_the_whole_course(make, tmp_path: Path) -> None:
    """Without a student a fresh model of given sizes takes the lessons, under the teacher's eye."""
    loop = make(student=None, config=SMALLER, course=short_course(lesson(2), lesson(2, ("text",))))
    assert loop.task.config == SMALLER and len(loop.lessons) == 2
    assert {"kl_loss", "hidden_loss"} <= set(loop.run())


_KILLED = """
import os, signal, sys
from pathlib import Path
from autoglm.training import loop as loops
from autoglm.training.loop import Loop
from autoglm.training.sources import read_source
from autoglm.training.tutoring import TutoredClassroom, healing_course
from test_training_tutoring import TUTORED
from tiny_course import lesson, short_course
run, teacher, student = map(Path, sys.argv[1:4])
course = healing_course(short_course(lesson(1)), steps=4, learning_rate=2e-3)
room = TutoredClassroom(run, course, settings=TUTORED,
                        teacher=read_source(teacher), student=read_source(student))
loop = Loop(run, room, course.lessons)
def kill(lesson, step, measures):
    if step == 2:
        loop.save()
    if step == int(sys.argv[4]):
        os.kill(os.getpid(), getattr(signal, sys.argv[5]))
loop.run(kill)
"""


@pytest.mark.parametrize(("how", "at"), [("SIGKILL", 3), ("SIGTERM", 2)])
def test_a_distillation_goes_on_after_a_kill(make, tmp_path: Path, tokenizer: str, how: str, at: int) -> None:
    """Killed or asked to stop, a run goes on from its checkpoint to the weights of one never stopped."""
    teacher = write_untaught(tmp_path / "teacher", tokenizer)
    student = write_untaught(tmp_path / "student", tokenizer, SMALLER, seed=1)
    places = [str(each) for each in (tmp_path / "stopped", teacher, student)]
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-c", _KILLED, *places, str(at), how]
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == (-signal.SIGKILL if how == "SIGKILL" else -signal.SIGINT), done.stderr
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
        make(teacher=untaught(tokenizer, seed=9))


def test_models_of_other_tokens_do_not_teach(make, tokenizer: str) -> None:
    """A teacher with another tokenizer is refused: its distribution is over other tokens."""
    with pytest.raises(ConfigError, match="same tokenizer"):
        make(teacher=dataclasses.replace(untaught(tokenizer), tokenizer=tokenizer + " "))


def test_the_last_steps_may_see_rounded_weights(make) -> None:
    """The last of the steps are a lesson at a tenth of the rate that sees what INT8 will hold."""
    course = healing_course(short_course(lesson(1)), steps=3, learning_rate=2e-3, rounded=1)
    assert [(each.steps, each.fake_bits) for each in course.lessons] == [(2, 0), (1, 8)]
    make(course=course).run()
    with pytest.raises(ConfigError, match="cannot be the last"):
        healing_course(short_course(lesson(1)), steps=3, learning_rate=2e-3, rounded=3)


def test_a_course_shows_what_a_model_does_not_use(tmp_path: Path, tokenizer: str) -> None:
    """On a course's batches dead channels, a dead head and an idle block go first; the vocabulary stays."""
    source = untaught(tokenizer)
    state = {name: value.clone() for name, value in source.state.items()}
    dim = SMALL.head_dim
    state["blocks.0.gate_up.weight"][:5] = 0
    state["blocks.0.out.weight"][:, dim : 2 * dim] = 0
    for name in ("attention_post_norm", "ffn_post_norm"):
        state[f"blocks.2.{name}.weight"].zero_()
    source = dataclasses.replace(source, state=state)
    target = dataclasses.replace(SMALL, width=36, num_layers=3, num_heads=2, ffn_width=27)
    found = course_importance(short_course(lesson(1)), source, tmp_path / "scratch", batches=2)
    kept = prune_source(source, target, tmp_path / "small", found)
    assert kept.blocks == [0, 1, 3] and kept.ffn[0].tolist() == list(range(5, 32))
    assert kept.heads[0].tolist()[0] == 0
    small = read_source(tmp_path / "small")
    assert small.config == target and small.tokenizer == tokenizer and small.alphabet == source.alphabet
    assert small.state["table.weight"].shape == (SMALL.vocab_size, 36)
    turns = source.circuits["turns"][:, kept.width][:, :, kept.width]
    assert torch.equal(small.circuits["turns"], turns)
    assert small.circuits["stem.weight"].shape == (len(source.circuits["stem.bias"]), 36)
    assert small.circuits["place.weight"].shape == (len(source.circuits["place.bias"]), 36)
    build_model(target, small.state)


def test_the_student_is_a_pruned_teacher_at_a_quarter_of_its_bytes() -> None:
    """Pruning reaches the student's sizes from the teacher's; its INT8 codes, scales and vectors take 1/4."""
    teacher, student = (expected_tensors(config) for config in (TEACHER_NANO, NANO))
    check_target(TEACHER_NANO, dataclasses.replace(NANO, name=TEACHER_NANO.name))
    int8 = sum(
        shape.numel() + 2 * shape[0] if is_matrix(name, shape) else 2 * shape.numel()
        for name, shape in student.items()
    )
    assert int8 + 20_000 <= 2 * sum(shape.numel() for shape in teacher.values()) / 4  # 20,000: file header
    assert CONFIGS[course_named("student").config] == NANO
