"""A release goes on learning what it was made from: its weights first read by fresh heads, then moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.training.continuing import ContinuedClassroom
from autoglm.training.course import HEADS, Course, course_named
from autoglm.training.lexicon import build_lexicon
from autoglm.training.loop import Loop
from autoglm.training.sources import Source
from tiny_course import ROWS, SMALL, lesson, untaught

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")
SILENT = ("screen", "copy", "text")
READ_ONLY = replace(HEADS, steps=2, warmup=1, mix=("screen",), rows=ROWS)
FURTHER = Course(
    "further", "nano", "v1.2", (READ_ONLY, lesson(3, SILENT, place_weight=0.3, fine_tune=True)), follows=True
)


@pytest.fixture(scope="module")
def base() -> Source:
    return replace(untaught(build_lexicon(SMALL.vocab_size)), circuits={}, alphabet="")


@pytest.fixture
def make(tmp_path: Path, base: Source) -> Callable[..., Loop]:
    def made(name: str = "run", start: Source = base) -> Loop:
        room = ContinuedClassroom(tmp_path / name, FURTHER, base=start)
        return Loop(tmp_path / name, room, room.course.lessons)

    return made


def test_heads_learn_before_any_weight_moves(make: Callable[..., Loop], base: Source) -> None:
    """After the first lesson the model is the release's to the bit, and what reads it has moved."""
    loop = make()
    heads = {name: value.clone() for name, value in loop.task.modules["circuits"].state_dict().items()}
    loop.lessons = loop.lessons[:1]
    loop.run()
    model = loop.task.modules["model"].state_dict()
    assert all(torch.equal(model[name], value) for name, value in base.state.items())
    read = loop.task.modules["circuits"].state_dict()
    assert {"place.weight", "stem.weight", "turns"} <= {
        name for name in heads if not torch.equal(heads[name], read[name])
    }


def test_then_all_weights_learn(make: Callable[..., Loop], base: Source) -> None:
    """The second lesson moves the blocks and tells how well places are known; statistics stay."""
    loop = make()
    measures = loop.run()
    model = loop.task.modules["model"].state_dict()
    moved = {name for name, value in base.state.items() if not torch.equal(model[name], value)}
    assert {"blocks.0.qkv.weight", "blocks.1.out.weight", "table.weight"} <= moved
    assert not any(re.search(r"running_(mean|var)", name) for name in moved)
    assert {"place", "copy_loss", "text_loss", "screen_loss"} <= set(measures)


def test_a_base_with_heads_keeps_them(make: Callable[..., Loop], base: Source) -> None:
    """Where the auxiliary heads are known, the lesson that teaches fresh ones is left out."""
    heads = make("first").task.modules["circuits"].state_dict()
    loop = make("second", replace(base, circuits=heads))
    assert [each.name for each in loop.lessons] == [FURTHER.lessons[1].name]
    own = loop.task.modules["circuits"].state_dict()
    assert all(torch.equal(own[name], value) for name, value in heads.items())


def test_heads_that_lack_a_part_are_refused(make: Callable[..., Loop], base: Source) -> None:
    """Heads from before one of them was there are named, with what to do."""
    heads = make("first").task.modules["circuits"].state_dict()
    older = {name: value for name, value in heads.items() if not name.startswith("place")}
    with pytest.raises(ConfigError, match=r"no place\.bias, .* go on from the release alone"):
        make("second", replace(base, circuits=older))


def test_a_run_goes_on_from_one_release(make: Callable[..., Loop], base: Source) -> None:
    """A run that began from one release does not go on from another, nor with another's tokens."""
    make().save()
    moved = {**base.state, "table.weight": base.state["table.weight"] + 1}
    with pytest.raises(ConfigError, match="another run"):
        make(start=replace(base, state=moved))
    with pytest.raises(ConfigError, match="another tokenizer"):
        make(start=replace(base, tokenizer=base.tokenizer + "\n"))


def test_a_first_course_takes_no_base(tmp_path: Path, base: Source) -> None:
    """A course that starts from nothing is refused weights to start from."""
    with pytest.raises(ConfigError, match="starts from nothing"):
        ContinuedClassroom(tmp_path / "run", course_named("student"), base=base)
