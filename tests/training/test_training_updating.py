"""The update's course: what is new, which weights move, and that a release follows with kept scales."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoglm.errors import ConfigError
from autoglm.model.checkpoint import write_release
from autoglm.model.codes import unpack
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import WEIGHTS_NAME, read_scales, read_stored
from autoglm.releases import HealthCheck, Manifest
from autoglm.training import quantize
from autoglm.training.actions import NEW_APPS, is_valid_action
from autoglm.training.adapter import AdapterConfig, extract
from autoglm.training.classroom import embedded
from autoglm.training.course import ADAPTER, Course, course_named
from autoglm.training.evaluation.sources import new_task_items
from autoglm.training.intents import knowledge, new_intents
from autoglm.training.lesson_loss import LessonLoss
from autoglm.training.lexicon import build_lexicon
from autoglm.training.loop import Loop
from autoglm.training.news import NewsTeacher, draw_new_task, teacher_of, whats_new
from autoglm.training.recordings import Recording
from autoglm.training.rounding import round_weight, rounded
from autoglm.training.rows import IGNORED, Batch
from autoglm.training.scenes.asking import questions
from autoglm.training.scenes.labels import NEW_WORDS
from autoglm.training.scenes.scene import draw_scene, icons, words_known
from autoglm.training.sources import read_run, read_source, write_source
from autoglm.training.teaching import Manner, Teacher
from autoglm.training.updating import UpdateClassroom, mixed, new_tokens
from autoglm.training.utterances import spoken_answers
from tiny_course import ROWS, SMALL, lesson, short_course, untaught, write_untaught

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")
SILENT = ("screen", "text")
NEWS = course_named("update").lessons[1]
UPDATE = Course(
    "update", "nano", "v1.3",
    (lesson(4, SILENT, learning_rate=3e-3, warmup=1, trained=NEWS.trained, rates=NEWS.rates, anchor=10.0,
            fine_tune=True, adam_eps=1e-7),),
    follows=True, shards=1, new_shards=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return build_lexicon(SMALL.vocab_size)


@pytest.fixture
def release(tmp_path: Path, tokenizer: str) -> Path:
    """A tiny release of random weights."""
    source = untaught(tokenizer)
    write_release(
        tmp_path / "v1.2", config=SMALL, tokenizer=tokenizer, state=source.state, health=HealthCheck(()),
        model="m", variant="nano-int8", name="nano", version="v1.2", counter=120,
    )  # fmt: skip
    return tmp_path / "v1.2"


@pytest.fixture
def make(tmp_path: Path, release: Path) -> Callable[..., Loop]:
    def made(name: str = "run", course: Course = UPDATE) -> Loop:
        scales = read_scales(release / WEIGHTS_NAME)
        room = UpdateClassroom(tmp_path / name, course, base=read_source(release), scales=scales)
        return Loop(tmp_path / name, room, course.lessons)

    return made


def test_only_chosen_weights_and_rows_move(make, tokenizer: str) -> None:
    """Queries and keys of the first blocks stay, and so do rows of tokens that no news needs."""
    loop = make()
    before = {name: value.clone() for name, value in loop.task.model.state_dict().items()}
    loop.run()
    after = loop.task.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"blocks.0.out.weight", "blocks.3.qkv.weight", "table.weight", "norm.weight"} <= moved
    assert not moved & {"blocks.0.qkv.weight", "blocks.2.gate_up.weight", "image.layers.0.weight"}
    assert not any("running" in name for name in moved)
    rows = (after["table.weight"] != before["table.weight"]).any(1).nonzero()[:, 0].tolist()
    assert rows and set(rows) <= new_tokens(Tokenizer.from_bytes(tokenizer.encode()), "v1.3")


def test_the_anchor_holds_weights_back(make) -> None:
    """The same steps with an anchor end nearer to the release than without."""
    (step,) = UPDATE.lessons
    free = dataclasses.replace(UPDATE, lessons=(dataclasses.replace(step, anchor=0.0),))
    far: list[float] = []
    for name, course in (("held", UPDATE), ("free", free)):
        loop = make(name, course)
        before = loop.task.model.state_dict()["blocks.1.out.weight"].clone()
        loop.run()
        after = loop.task.model.state_dict()["blocks.1.out.weight"]
        far.append(float((after - before).abs().sum()))
    assert far[0] < far[1]


def test_what_the_release_says_rightly_it_goes_on_saying(make, monkeypatch) -> None:
    """Where the release is right, an update that keeps drifts less; where it is wrong, it still learns."""
    (step,) = UPDATE.lessons
    plain = dataclasses.replace(step, mix=("text",), steps=12, anchor=0.0)
    drift: dict[float, float] = {}
    learnt: dict[float, float] = {}
    for keep in (0.0, 30.0):
        lessons = (dataclasses.replace(plain, keep=keep),)
        loop = make(f"keep-{keep:g}", dataclasses.replace(UPDATE, lessons=lessons))
        room = loop.task
        batch = room.draw(plain, 0)
        asked = batch.targets != IGNORED
        before = said(room, batch)
        targets = batch.targets.clone()
        known = torch.arange(int(asked.sum())) % 2 == 0
        targets[asked] = torch.where(known, before.argmax(-1), targets[asked])
        monkeypatch.setattr(room, "draw", lambda *_, b=dataclasses.replace(batch, targets=targets): b)
        loop.run()
        after = said(room, batch)
        drift[keep] = float((before.exp() * (before - after)).sum(-1)[known].mean())
        learnt[keep] = float((after - before).gather(1, targets[asked][:, None])[~known].mean())
    assert 0 <= drift[30.0] < drift[0.0]
    assert min(learnt.values()) > 0


@torch.no_grad()
def said(room: UpdateClassroom, batch: Batch) -> torch.Tensor:
    """The log-probabilities (N, V) of all tokens where something is asked."""
    hidden, _ = room.model(embedded(room.model, batch)[2], batch.positions, batch.bias)
    return room.model.logits(hidden[batch.targets != IGNORED]).log_softmax(-1)


def test_an_adapter_is_all_that_its_run_changes(make, tmp_path: Path, release: Path) -> None:
    """Beside an adapter in training no weight of the release moves; such a run has nothing to quantise."""
    course = dataclasses.replace(UPDATE, lessons=(dataclasses.replace(ADAPTER, steps=2, rows=ROWS),))
    room = UpdateClassroom(
        tmp_path / "run", course, base=read_source(release), adapter=AdapterConfig(2, alpha=4.0)
    )
    Loop(tmp_path / "run", room, course.lessons).run()
    after, before = room.model.state_dict(), read_source(release).state
    for name, value in before.items():
        own = re.sub(r"\.(qkv|out|gate_up|down)\.", r".\1.base.", name)
        assert torch.equal(value, after[own]), name
    assert any(bool(factors.delta.any()) for factors in extract(room.model, room.adapter).factors.values())
    with pytest.raises(ConfigError, match="trained an adapter"):
        read_run(tmp_path / "run")


def test_an_update_goes_on_after_a_stop(make) -> None:
    """Resumed from its checkpoint, an update ends with the weights of one that was never stopped."""

    def stop(_: object, step: int, __: object) -> None:
        if step == 2:
            stopped.save()
            raise InterruptedError

    whole, stopped = make("whole"), make("stopped")
    whole.run()
    with pytest.raises(InterruptedError):
        stopped.run(stop)
    resumed = make("stopped")
    assert resumed.step == 2
    resumed.run()
    theirs = resumed.task.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in whole.task.model.state_dict().items())


@pytest.fixture
def unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases without a self-test, which random weights would fail."""
    monkeypatch.setattr(quantize, "health_check", lambda _: HealthCheck(()))


def test_an_update_keeps_the_scales_of_its_base(
    make, tmp_path: Path, tokenizer: str, unhealthy: None
) -> None:
    """Quantised on its base, an update has most of its scales, and a counter beyond those shipped."""
    base = write_untaught(tmp_path / "first", tokenizer)
    quantize.quantize_run(base, tmp_path / "base", "v1.2")
    make().run()
    manifest = quantize.quantize_run(tmp_path / "run", tmp_path / "made", "v1.3", base=tmp_path / "base")
    assert manifest.counter > Manifest.read(tmp_path / "base").counter > 13
    change = quantize.compare_codes(tmp_path / "base", tmp_path / "made")["all"]
    assert change.rescaled < 0.2 and 0 < change.changed < 0.5


def test_four_bits_in_groups_of_128_keep_their_scales(
    tmp_path: Path, tokenizer: str, unhealthy: None
) -> None:
    """INT4 with a scale for 128 columns: weights that moved by a thousandth keep scales and most codes."""
    wide = dataclasses.replace(SMALL, width=128, num_heads=4, head_dim=32, ffn_width=256, num_layers=1)
    run = write_untaught(tmp_path / "first", tokenizer, wide)
    quantize.quantize_run(run, tmp_path / "base", "v1.2", bits=4, group=128)
    source = read_source(run)
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: value * (1 + 1e-3 * torch.randn(value.shape, generator=generator))
        for name, value in source.state.items()
    }
    (tmp_path / "second").mkdir()
    write_source(tmp_path / "second", wide, moved, tokenizer)
    quantize.quantize_run(tmp_path / "second", tmp_path / "made", "v1.3", base=tmp_path / "base", bits=4)
    change = quantize.compare_codes(tmp_path / "base", tmp_path / "made")["blocks.0"]
    assert change.rescaled == 0 and 0 < change.changed < 0.02
    stored = read_stored(tmp_path / "made" / WEIGHTS_NAME)
    assert stored["blocks.0.down.weight"].dtype == torch.uint8
    assert stored["blocks.0.down.weight.scale"].shape == (128, 2)


def test_a_first_release_takes_no_base(tmp_path: Path, release: Path) -> None:
    """A course that starts from nothing is refused as an update."""
    with pytest.raises(ConfigError, match="takes no base"):
        UpdateClassroom(tmp_path / "x", short_course(), base=read_source(release))


def test_news_is_practised_among_old_data(tokenizer: str) -> None:
    """Half of the screens show mostly new words, some tasks are new touches, and half of the talk is new."""
    teacher = teacher_of(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.3")
    assert isinstance(teacher, NewsTeacher)
    rng = random.Random(4)
    shown = [sum(e.label.key in NEW_WORDS for e in scene.elements) for scene in teacher.scenes(rng, 30)]
    assert 5 < sum(count > 0 for count in shown) < 30
    tasks = [teacher.draw_task(rng, scene) for scene in teacher.scenes(rng, 40)]
    assert any("Long Press" in task.answer or "Double Tap" in task.answer for task in tasks)
    assert any('"Tap"' in task.answer for task in tasks)
    batch = teacher.screens(rng, 2, Manner(agent=1.0))
    assert len(batch.ids) == 2
    assert len(teacher.text(rng, 2).ids) == 2


def test_what_is_new_is_missed_as_often_as_it_is_there(tokenizer: str) -> None:
    """A question whether something new is there says nothing about the answer."""
    teacher = teacher_of(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.3")
    rng, manner = random.Random(5), Manner(news=0.5)
    there: list[bool] = []
    for scene in teacher.scenes(rng, 150, manner=manner):
        asked = questions(rng, scene, teacher.asked_for(rng, manner), counts=(0, 0, 8))
        there += [each.element is not None for each in asked if each.label.key in NEW_WORDS]
    assert 0.35 < sum(there) / len(there) < 0.65


def test_commands_are_half_of_the_new_talk(tokenizer: str) -> None:
    """New apps are opened and closed about as often as new topics are asked about."""
    teacher = teacher_of(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.3")
    rng, manner = random.Random(6), Manner(news=1.0)
    said = [teacher.tokenizer.decode(teacher.dialogue_slot(rng, manner).ids) for _ in range(60)]
    commands = sum("do(action=" in text for text in said)
    assert 18 <= commands <= 42


def test_new_tasks_are_valid_and_wordings_held_out(tokenizer: str) -> None:
    """Every new instruction has a valid action; held-out wordings never occur in training."""
    rng = random.Random(1)
    scene = draw_scene(rng, words_known("v1.3"), icons())
    trained, kept = ([draw_new_task(rng, scene, held_out=each) for _ in range(300)] for each in (False, True))
    assert all(is_valid_action(task.answer) for task in trained)
    assert not {task.prompt for task in trained} & {task.prompt for task in kept}


def test_what_is_new_is_listed_and_unknown_before(tokenizer: str) -> None:
    """Apps, commands and questions are listed for v1.3, nothing for v1.2, whose data has none of them."""
    listed = whats_new("v1.3")
    assert {item.kind for item in listed} == {"app", "command", "question"}
    assert sum(item.kind == "app" for item in listed) == len(NEW_APPS)
    assert sum(item.kind == "question" for item in listed) == 2 * len(new_intents("v1.3"))
    assert whats_new("v1.2") == []
    assert type(teacher_of(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.2")) is Teacher


def test_old_recordings_are_answered_anew() -> None:
    """A question asked aloud gets the new release's answer; new commands are as many as is wanted."""
    before = spoken_answers("v1.2")
    text = next(t for t, answer in spoken_answers("v1.3").items() if answer != before[t])
    sound = torch.zeros(4, dtype=torch.int16).numpy()
    old = [Recording("question", text, before[text], "zh", "", sound)]
    old += [Recording("command", "打开微信", "do()", "zh", "", sound)] * 4
    new = [Recording("command", "打开小红书", "do()", "zh", "", sound)] * 2
    together = mixed(old, new, "v1.3")
    assert together[0].answer == spoken_answers("v1.3")[text]
    assert sum("小红书" in each.text for each in together) == 4
    assert sum("小红书" in each.text for each in mixed(old, new, "v1.3", 0.8)) == 16
    assert sum("小红书" in each.text for each in mixed(old, new, "v1.3", 0.25)) == 2
    assert len(mixed(old, new, "v1.3", 0.0)) == len(old)
    with pytest.raises(ConfigError, match="less than 1"):
        mixed(old, new, "v1.3", 1.0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_manner_says_how_much_is_news(tokenizer: str, share: float) -> None:
    """About the wanted share of conversations is about what is new, and of screens few known words."""
    teacher = teacher_of(Tokenizer.from_bytes(tokenizer.encode()), SMALL, "v1.3")
    assert isinstance(teacher, NewsTeacher)
    rng, manner = random.Random(3), Manner(news=share)
    answers = {p.answer for i in knowledge("v1.3") if i.name in teacher.topics for p in i.phrases.values()}
    said = [teacher.tokenizer.decode(teacher.dialogue_slot(rng, manner).ids) for _ in range(60)]
    new = sum(any(words in text for words in (*answers, *NEW_APPS)) for text in said) / len(said)
    few = [teacher._shown(rng, manner) for _ in range(60)]
    focused = sum(len(each) < len(teacher.words) for each in few) / len(few)
    assert abs(focused - share) < 0.2
    assert (new > 0.95) if share == 1.0 else (new < 0.6) if share else (new < 0.35)


def test_a_step_through_rounded_weights_leaves_exact_ones(tokenizer: str) -> None:
    """Inside, matrices are what a release holds, and their gradients land; outside they are as before."""
    from autoglm.model.network import PhoneModel

    torch.manual_seed(0)
    model = PhoneModel(SMALL)
    exact = {name: value.clone() for name, value in model.state_dict().items()}
    with rounded(model, 8, {}):
        weight = model.layers[0].out.weight
        assert torch.equal(weight, round_weight(exact["blocks.0.out.weight"], 8))
        assert not torch.equal(weight, exact["blocks.0.out.weight"])
        model.logits(model.embed_tokens(torch.tensor([[300, 301]]))).sum().backward()
    assert model.table.weight.grad is not None
    assert all(torch.equal(value, exact[name]) for name, value in model.state_dict().items())


def test_rounding_to_four_bits_is_a_releases_own() -> None:
    """INT4 rounding in training is the quantiser's: the same codes with the same kept scales."""
    from autoglm.model.codes import multiply_out, quantize_groups

    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize_groups(weight, 128)
    again = round_weight(weight * 1.01, 4, scale)
    codes, kept = quantize_groups(weight * 1.01, 128, scale)
    assert torch.equal(again, multiply_out(unpack(codes), kept))
    assert float((kept != scale).float().mean()) < 0.3 and packed.shape == (8, 64)


def test_the_held_out_loss_is_the_same_every_time(tokenizer: str) -> None:
    """Items are drawn once from their seed; a better model has a lower loss."""
    words = Tokenizer.from_bytes(tokenizer.encode())
    state = untaught(tokenizer).state
    measure = LessonLoss(words, SMALL, "v1.3", scale=0.05)
    value = measure(state)
    assert value == LessonLoss(words, SMALL, "v1.3", scale=0.05)(state)
    assert measure({**state, "norm.weight": state["norm.weight"] * 0.1}) < value


def test_new_tasks_are_scored_by_touch_and_place() -> None:
    """The right touch in the right place counts, a tap there does not."""
    items = new_task_items(3, 24)
    touches = [item for item in items if "element" in item.answer]
    assert touches and all(item.judge(item.answer) == 1.0 for item in items)
    for item in touches:
        assert item.judge(item.answer.replace("Long Press", "Tap").replace("Double Tap", "Tap")) == 0.0
