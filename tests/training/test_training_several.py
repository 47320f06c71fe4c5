"""Courses on two processes under torchrun: one's losses, replicated or sharded, and shared checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.model.tokenizer import Tokenizer
from autoglm.training import distributed
from autoglm.training.classroom import Classroom
from autoglm.training.distill import Distillation
from autoglm.training.lexicon import build_lexicon
from autoglm.training.loop import Loop
from autoglm.training.plot import read_curve
from autoglm.training.rows import Batch
from autoglm.training.sources import read_run, read_source
from autoglm.training.teaching import Teacher
from autoglm.training.tutoring import TutoredClassroom, healing_course
from tiny_course import SMALL, SMALLER, lesson, short_course, write_untaught

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")

_SCRIPT = """
import sys
from pathlib import Path
from autoglm.training.distributed import joined
from autoglm.training import loop
from autoglm.training.threads import use_threads
from test_training_several import loop_in
use_threads(1)
loop._REPORT_STEPS = 1
with joined():
    made = loop_in(*map(Path, sys.argv[1:4]), shard=sys.argv[4] == "sharded")
    def stop(lesson, step, measures):
        if lesson.name == "second" and step == 2:
            made.save()
            raise SystemExit(0)
    made.run(stop)
"""


def loop_in(directory: Path, teacher: Path, student: Path, *, shard: bool = False) -> Loop:
    """A distillation of a few steps over screens and text; the second lesson begins a look-up."""
    first = healing_course(short_course(lesson(1, pair_weight=0.0)), steps=3, learning_rate=2e-3).lessons[0]
    second = lesson(4, pair_weight=0.0, look_up=True, fine_tune=True, name="second")
    room = TutoredClassroom(
        directory,
        short_course(first, second),
        teacher=read_source(teacher),
        student=read_source(student),
        settings=Distillation(layers=((2, 3),)),
        shard=shard,
    )
    return Loop(directory, room, room.course.lessons)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return build_lexicon(SMALL.vocab_size)


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_processes_have_the_losses_of_one(
    tmp_path: Path, tokenizer: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, weights whole or spread, have one's losses; one goes on from their checkpoint."""
    monkeypatch.setattr("autoglm.training.loop._REPORT_STEPS", 1)
    teacher = write_untaught(tmp_path / "teacher", tokenizer)
    student = write_untaught(tmp_path / "student", tokenizer, SMALLER, seed=1)
    (tmp_path / "script.py").write_text(_SCRIPT)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    places = [str(each) for each in (tmp_path / "two", teacher, student)]
    command = [*launch, str(tmp_path / "script.py"), *places, how]
    subprocess.run(command, env=environment, check=True, timeout=300)
    loops = [loop_in(tmp_path / name, teacher, student) for name in ("one", "two")]
    assert [(each.lesson_index, each.step) for each in loops] == [(0, 0), (1, 2)]
    for each in loops:
        each.run()
    curves = [read_curve(tmp_path / name) for name in ("one", "two")]
    assert [len(curve) for curve in curves] == [7, 7]
    for one, two in zip(*curves, strict=True):
        for name in one.keys() & {"screen_loss", "text_loss", "kl_loss", "patch_loss", "hidden_loss"}:
            assert float(two[name]) == pytest.approx(float(one[name]), rel=5e-3), (name, one["step"])
    mine, theirs = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    moved = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine if "blocks" in name])
    assert float(moved.abs().mean()) < 2e-4


def test_rows_and_the_names_in_them_are_shared_without_loss(tokenizer: str) -> None:
    """The processes' rows together are the batch; a name's row is counted anew in each part."""
    import random

    teacher = Teacher(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.2")
    batch = teacher.screens(random.Random(1), 3)
    assert distributed.share_rows(batch) is batch
    parts: list[Batch] = [batch.part(rank, 2) for rank in (0, 1)]
    assert [len(part.ids) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([parts[0].ids, parts[1].ids])[[0, 2, 1]], batch.ids)
    found = [(part.ids[row, at].item(), number) for part in parts for row, at, number in part.names.tolist()]
    whole = [(batch.ids[row, at].item(), number) for row, at, number in batch.names.tolist()]
    assert sorted(found) == sorted(whole)


def test_a_batch_must_have_a_row_for_everyone(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes than rows are refused, and said so."""
    import random

    teacher = Teacher(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.2")
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="start fewer"):
        distributed.share_rows(teacher.text(random.Random(1), 1))


def test_a_lesson_draws_a_row_for_everyone(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lesson has fewer rows of a kind than there are processes, each has one all the same."""
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    short = lesson(3, ("screen", "text", "long"))
    room = Classroom(tmp_path, short_course(short), config=SMALL)
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    assert [len(room.draw(short, step).ids) for step in range(3)] == [3, 3, 3]


def test_one_process_has_nobody_to_spread_weights_over(tmp_path: Path, tokenizer: str) -> None:
    """Sharding without torchrun is refused with what to do."""
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(ConfigError, match="torchrun"):
        Classroom(tmp_path, short_course(), config=SMALL, shard=True)
