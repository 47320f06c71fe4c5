"""The loop of a course on a tiny model: it learns, stops at its gates, and goes on after a kill."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from autoglm.errors import ConfigError, EngineError
from autoglm.model.config import ModelConfig
from autoglm.training import course as courses
from autoglm.training.ahead import Ahead
from autoglm.training.classroom import Classroom, recording_store
from autoglm.training.course import BY_HEART, JOINT, LABELS, LOOK_UP, Course, Lesson, course_named
from autoglm.training.lexicon import build_lexicon
from autoglm.training.loop import Loop, learning_rate
from autoglm.training.plot import plot_curve, read_curve
from autoglm.training.quantize import read_run
from autoglm.training.recordings import RecordingStore
from tiny_course import SMALL as TINY

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")

ROWS = MappingProxyType({"screen": 2, "name": 4, "speech": 2, "text": 1, "long": 1})


def small(lesson: Lesson, steps: int, **changes: object) -> Lesson:
    return dataclasses.replace(lesson, steps=steps, rows=ROWS, gates=(), **changes)  # pyright: ignore


SILENT = ("screen", "text", "long")
LESSONS = (small(LABELS, 2), small(LOOK_UP, 2), small(JOINT, 3, mix=SILENT))
COURSE = Course("tiny", "nano", "v1.2", LESSONS, shards=1)


@pytest.fixture(scope="module")
def tokenizer_text() -> str:
    return build_lexicon(TINY.vocab_size)


@pytest.fixture
def make(tmp_path: Path, tokenizer_text: str) -> Callable[..., Loop]:
    """Return a maker of loops in named run directories, the tokenizer already there."""

    def made(course: Course = COURSE, name: str = "run", seed: int = 0, config: ModelConfig = TINY) -> Loop:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "tokenizer.json").write_text(tokenizer_text)
        classroom = Classroom(directory, course, seed=seed, config=config)
        return Loop(directory, classroom, course.lessons, seed=seed)

    return made


class KilledError(Exception):
    """Stands for a kill between two steps."""


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value
        for part, module in loop.task.modules.items()
        for name, value in module.state_dict().items()
    }


def test_a_killed_run_goes_on_as_if_nothing_had_happened(make) -> None:
    """A run resumed from a checkpoint ends with the very weights of a run that was never stopped."""
    whole = make(name="whole")
    whole.run()

    def kill(lesson: Lesson, step: int, _: dict[str, float]) -> None:
        if lesson.name == "joint" and step == 2:
            stopped.save()
            raise KilledError

    stopped = make(name="stopped")
    with pytest.raises(KilledError):
        stopped.run(kill)
    resumed = make(name="stopped")
    assert (resumed.lesson_index, resumed.step) == (2, 2)
    resumed.run()
    theirs = weights(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(value, theirs[name]), name


_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from test_training_loop import COURSE, TINY, small, LABELS
import dataclasses
from autoglm.training.classroom import Classroom
from autoglm.training import loop
from autoglm.training.threads import use_threads
use_threads(1)
loop._CHECKPOINT_SECONDS = 0.0
course = dataclasses.replace(COURSE, lessons=(small(LABELS, 40),))
run = Path({run!r})
loop.Loop(run, Classroom(run, course, config=TINY), course.lessons).run(
    lambda lesson, step, measures: print(step, flush=True)
)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_may_be_killed_at_any_moment(make, tmp_path: Path, how: signal.Signals) -> None:
    """After SIGKILL, or SIGTERM, the checkpoint is whole, and the run ends where it would have ended."""
    lessons = (small(LABELS, 40),)
    run = tmp_path / "run"
    make(dataclasses.replace(COURSE, lessons=lessons)).save()
    script = _PROCESS.format(tests=str(Path(__file__).parent), run=str(run))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                process.send_signal(how)
                break
        process.stdout.read()
    assert process.returncode != 0
    resumed = make(dataclasses.replace(COURSE, lessons=lessons))
    assert 2 <= resumed.step < 40


def test_screens_drawn_ahead_are_the_same_screens(make) -> None:
    """With another process that draws, every step sees what it would have seen without."""
    loop, lessons = make(), (small(LABELS, 5), small(LOOK_UP, 5))
    room = loop.task
    with Ahead(1) as pool:
        for lesson in lessons:
            alone = [room._screens(lesson, step) for step in range(3)]
            room.ahead = pool
            helped = [room._screens(lesson, step) for step in range(3)]
            room.ahead = Ahead(0)
            for one, two in zip(alone, helped, strict=True):
                pixels = [each[0] if isinstance(each, tuple) else each.media for each in (one, two)]
                assert torch.equal(*pixels)


def test_a_lesson_that_misses_a_gate_stops_the_run(make) -> None:
    """A lesson below a gate raises with the measure, instead of burning the remaining hours."""
    lesson = dataclasses.replace(small(LABELS, 3), gates=(("patch", 2, 0.9),))
    with pytest.raises(EngineError, match=r"patch 0\.\d+ at step 2, less than 0.9"):
        make(dataclasses.replace(COURSE, lessons=(lesson,))).run()


def test_a_run_directory_belongs_to_one_run(make) -> None:
    """A directory that holds another seed's, or another course's, checkpoint is refused."""
    make().save()
    with pytest.raises(ConfigError, match="another run"):
        make(seed=1)
    with pytest.raises(ConfigError, match="another run"):
        make(dataclasses.replace(COURSE, name="other"))


def test_a_run_goes_on_with_the_lessons_that_it_has_had(make) -> None:
    """A lesson put before those that are done, or taken away, is refused; one put behind them is taught."""
    loop = make(dataclasses.replace(COURSE, lessons=LESSONS[:2]))
    loop.run()
    with pytest.raises(ConfigError, match=f"other lessons, {LESSONS[0].name}, {LESSONS[1].name}"):
        make(dataclasses.replace(COURSE, lessons=LESSONS[1:]))
    longer = make()
    assert (longer.lesson_index, longer.step) == (2, 0)
    longer.run()
    assert longer.lesson_index == 3


def test_a_runs_weights_can_be_read_and_its_curve_drawn(make, tmp_path: Path) -> None:
    """The checkpoint holds the model as other verbs read it; every lesson reports; the plot is a picture."""
    loop = make()
    loop.run()
    run = tmp_path / "run"
    assert set(read_run(run)) == {n for n in loop.task.modules["model"].state_dict() if "tracked" not in n}
    assert ModelConfig.from_json((run / "config.json").read_bytes()) == TINY
    assert [report["stage"] for report in read_curve(run)] == ["labels", "look-up", "joint"]
    plot_curve(run, run / "curve.png")
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.needs("espeak-ng")
def test_speech_is_trained_with_the_rest(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lesson that mixes all kinds measures a loss for each, and the pairs of one meaning."""
    monkeypatch.setattr("autoglm.training.recordings.SHARD_CLIPS", 6)
    lesson = small(JOINT, 4, mix=("screen", "speech", "text", "long"))
    measures = make(dataclasses.replace(COURSE, lessons=(lesson,))).run()
    kinds = {f"{kind}_loss" for kind in ("screen", "speech", "text", "long")}
    assert kinds | {"ctc", "patch", "name", "screen_pair", "speech_pair"} <= set(measures)


@pytest.mark.needs("espeak-ng")
def test_recordings_are_prepared_once_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are there stay; a damaged one is made anew, the same as before."""
    monkeypatch.setattr("autoglm.training.recordings.SHARD_CLIPS", 3)
    store = RecordingStore(tmp_path, 7, 2)
    with pytest.raises(ConfigError, match="prepare the data"):
        store.load()
    store.prepare()
    first = store.load()
    shards = sorted(tmp_path.glob("*.npz"))
    ages = [path.stat().st_mtime_ns for path in shards]
    shards[1].write_bytes(b"torn")
    RecordingStore(tmp_path, 7, 2).prepare()
    again = store.load()
    assert len(first) == 6 and shards[0].stat().st_mtime_ns == ages[0]
    assert [(a.text, a.voice, a.audio.tobytes()) for a in first] == [
        (b.text, b.voice, b.audio.tobytes()) for b in again
    ]


@pytest.mark.needs("espeak-ng")
def test_recordings_keep_their_seed_under_a_run_of_another(tmp_path: Path, monkeypatch) -> None:
    """A second stage draws other batches from the same recordings: they are not made anew for its seed."""
    monkeypatch.setattr("autoglm.training.recordings.SHARD_CLIPS", 2)
    course = dataclasses.replace(COURSE, shards=2)
    assert recording_store(tmp_path, course, 7).seed == 7
    recording_store(tmp_path, course, 7).prepare()
    ages = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.npz"))]
    store = recording_store(tmp_path, course, 8)
    store.prepare()
    assert store.seed == 7 and len(ages) == 2
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.npz"))] == ages


def test_easy_screens_turn_into_real_ones() -> None:
    """The share of primers falls from one to none; the rate warms up and then falls to its last share."""
    lesson = dataclasses.replace(LABELS, steps=100, primed=0.4, warmup=10, learning_rate=1.0, last_rate=0.2)
    assert [lesson.primer(step) for step in (0, 20, 40, 99)] == [1.0, 0.5, 0.0, 0.0]
    rates = [learning_rate(lesson, step) for step in range(100)]
    assert rates[0] < rates[9] > rates[50] > rates[99] and rates[99] == pytest.approx(0.2, abs=0.01)
    assert JOINT.primer(0) == 0.0


def test_courses_are_found_by_name() -> None:
    """Known courses are found, others refused with the names there are."""
    assert set(courses.COURSES) == {"teacher", "student", "further", "update", "screens-by-heart"}
    assert course_named("teacher").config == "teacher-nano"
    with pytest.raises(ConfigError, match="teacher, student"):
        course_named("v9")


def test_training_lowers_the_loss_on_fixed_screens(make) -> None:
    """Repeating the same few screens lowers the loss on what their patches show, step after step."""
    lesson = dataclasses.replace(
        BY_HEART, steps=12, warmup=1, rows=MappingProxyType({"screen": 4, "name": 4}), fixed=4,
        labels_only=False, gates=(),
    )  # fmt: skip
    losses: list[float] = []
    loop = make(dataclasses.replace(COURSE, lessons=(lesson,)))
    loop.run(lambda _, __, measures: losses.append(measures["patch_loss"]))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.long
def test_sixty_four_screens_are_learnt_by_heart(tmp_path: Path) -> None:
    """The gate of the whole recipe, at the shipped size."""
    course = course_named("screens-by-heart")
    measures = Loop(tmp_path, Classroom(tmp_path, course), course.lessons).run()
    assert measures["patch"] > 0.9
