"""Evaluation: judges, chance and intervals; sources apart from training's; sections on a tiny real model."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoglm.errors import ConfigError
from autoglm.model.config import NANO, AudioConfig, ImageConfig, TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import AudioPart, ImagePart, Message, Processor, Prompt, TextPart
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import LoadedModel
from autoglm.releases import HealthCheck
from autoglm.training import evaluation
from autoglm.training.actions import ALL_LABELS
from autoglm.training.evaluation import Score, evaluate, examiner, gate, sources
from autoglm.training.evaluation.examiner import Examiner
from autoglm.training.evaluation.items import (
    Item,
    best_constant,
    blanked,
    characters_of,
    exactly,
    share,
    tap_inside,
    wilson,
)
from autoglm.training.evaluation.kept import KeptScores
from autoglm.training.generate import Output
from autoglm.training.vocabulary import build_tokenizer

TINY = dataclasses.replace(
    NANO,
    width=32,
    num_layers=2,
    num_heads=4,
    head_dim=8,
    ffn_width=32,
    max_context=640,
    image=ImageConfig("stem", 32, (4, 4, 4), 64, 64, 4, bins=32, x_token=128, y_token=160),
    audio=AudioConfig(8, 8, 5, batch_norm=True, min_tokens=3, max_tokens=150),
    topk=TopKConfig(page=32, keep=4, dense_below=4096),
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_bytes(build_tokenizer(NANO.vocab_size).encode())
    model = PhoneModel(TINY).eval().requires_grad_(False)
    return LoadedModel(TINY, model, tokenizer, Processor(tokenizer, TINY), HealthCheck(()))


@pytest.fixture
def taken(loaded: LoadedModel, tmp_path: Path) -> Examiner:
    return Examiner(loaded, seed=5, cache=tmp_path, items=8)


# Judges, chance, intervals


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ('do(action="Tap", element=[500,430])', True),
        ('do(action="Tap", element=[400,400])', True),
        ('do(action="Tap", element=[399,430])', False),
        ('do(action="Tap", element=[500,500])', False),
        ('do(action="Tap", element=[500,430]) ok', False),
        ('do(action="Long Press", element=[500,430])', False),
        ('do(action="Back")', False),
        ("", False),
    ],
)
def test_a_tap_is_right_inside_its_box_only(given: str, right: bool) -> None:
    """One tap of the grammar counts where its point lies in the box; everything else is wrong."""
    assert tap_inside((0.4, 0.4, 0.2, 0.1))(given) == float(right)


@pytest.mark.parametrize(
    ("given", "value"),
    [("打开地图", 1.0), ("打开地图。", 1.0), ("打开 地", 0.75), ("", 0.0), ("x" * 100_000, 0.0)],
)
def test_a_transcription_is_judged_by_its_characters(given: str, value: float) -> None:
    """The score is 1 minus the character error rate, never below 0, whatever is said."""
    assert characters_of("打开地图")(given) == value


def test_an_interval_is_that_of_wilson() -> None:
    """The textbook's values come out, and the ends stay within 0 and 1."""
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1.0, 200) == pytest.approx((0.9812, 1.0), abs=1e-4)
    assert wilson(0.0, 5)[0] == 0.0
    assert share([]).count == 0


def test_chance_is_what_the_best_single_answer_scores() -> None:
    """Of answers that fit one, two and three of six items, the one that fits three counts."""
    answers = ["a", "b", "b", "c", "c", "c"]
    items = [Item((), answer, exactly(answer), "kind") for answer in answers]
    assert best_constant(items) == 0.5


def test_blanking_takes_what_is_seen_and_heard_and_nothing_else() -> None:
    """Pictures become grey and clips silent, of the same size; words stay."""
    picture = Image.new("RGB", (30, 50), (200, 10, 10))
    sound = np.ones(700, np.float32)
    (message,) = blanked(
        [Message("user", [ImagePart(picture), TextPart("tap it"), AudioPart((sound, 16_000))])]
    )
    seen, said, heard = message.parts
    assert isinstance(seen, ImagePart) and isinstance(heard, AudioPart)
    assert isinstance(seen.image, Image.Image) and isinstance(heard.audio, tuple)
    assert (seen.image.size, seen.image.getextrema()) == ((30, 50), ((128, 128),) * 3)
    assert said == TextPart("tap it")
    assert heard.audio[0].shape == (700,) and not heard.audio[0].any()


# Sources


def test_any_seed_is_apart_from_training() -> None:
    """A part's source depends on seed and name, equals no source seeded with a number, and repeats."""
    drawn = {sources.stream(seed, name).random() for seed in (0, 1, 90_001) for name in ("screens", "pages")}
    assert len(drawn) == 6
    assert not drawn & {random.Random(seed).random() for seed in range(2000)}
    assert sources.stream(7, "x").random() == sources.stream(7, "x").random()
    assert sources.whole_seed(-3, "speech") >= 1 << 62


def test_unseen_labels_are_in_no_training_data() -> None:
    """No label that is asked for as unseen is one of the trained ones."""
    assert len(sources.unseen_labels()) >= 12
    assert not set(sources.unseen_labels()) & {*ALL_LABELS, *sources.known_labels(), *sources.new_labels()}


# Sections


class Oracle:
    """Generation that knows the answers by the last question, and thinks aloud when it is asked to."""

    def __init__(self, answers: dict[str, str], leak: bool = False) -> None:
        self.answers, self.leak = answers, leak

    def __call__(
        self, _model: object, tokenizer: Tokenizer, prompts: Sequence[Prompt], _limit: int
    ) -> list[Output]:
        return [self._turn(tokenizer, prompt) for prompt in prompts]

    def _turn(self, tokenizer: Tokenizer, prompt: Prompt) -> Output:
        text = tokenizer.decode(prompt.token_ids.tolist())
        answer = max((a for q, a in self.answers.items() if text.endswith(q)), key=len, default="")
        thinks = int(prompt.token_ids[-1]) == tokenizer.think
        return Output("a thought" if thinks else "", answer, self.leak, finished=True)


@pytest.mark.parametrize("leak", [False, True])
def test_thinking_is_scored_by_its_switch_and_its_leaks(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leak: bool
) -> None:
    """Right answers, a thought that comes with the switch alone, and a tag in an answer are all seen."""
    items = sources.topic_items(5, 40, "v1.2")
    answers = {str(item.messages[-1].content): item.answer for item in items}
    monkeypatch.setattr(examiner, "generate", Oracle(answers, leak))
    scores = evaluate(loaded, release="v1.2", cache=tmp_path, seed=5, only=["thinking", "topics"], items=40)
    assert scores["topics"].value > 0.9 and scores["topics"].count == 40
    assert scores["thinking_differs"].value == 1.0
    assert scores["thinking_kept_out"].value == float(not leak)
    assert 0 < (scores["topics"].chance or 0) < 0.5


@pytest.mark.needs("wqy-zenhei")
def test_screen_scores_have_chance_and_the_blank_score_beside_them(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    """An untrained model scores nothing on screens, with and without the picture."""
    told: list[tuple[str, int, int]] = []
    scores = evaluate(
        loaded, release="v1.2", cache=tmp_path, seed=5, only=["buttons"], items=4,
        report=lambda *progress: told.append(progress),
    )  # fmt: skip
    assert {name: score.count for name, score in scores.items()} == {
        "buttons_tap": 4,
        "buttons_read": 2,
        "buttons_has": 2,
    }
    assert all(score.value < 0.6 and score.without is not None for score in scores.values())
    assert told[-1] == ("buttons", 16, 16)


@pytest.mark.needs("wqy-zenhei", "dejavu")
def test_drawn_screens_are_judged_by_what_may_be_touched() -> None:
    """Every right answer is judged right, for words, icons, unseen labels and an agent's tasks."""
    items = sources.scene_items("screens", 3, 4, sources.known_labels())
    items += sources.scene_items("unseen", 3, 2, sources.unseen_labels(), shapes=False)
    items += sources.task_items(3, 8)
    assert all(item.judge(item.answer) == 1.0 for item in items)
    assert {"screens_tap", "screens_icon_tap", "unseen_read", "tasks"} <= {item.kind for item in items}


def test_a_needle_lies_in_a_context_that_is_full(taken: Examiner) -> None:
    """Fact and question are there once, and hardly a sentence more would fit."""
    for item in gate.needle_items(taken):
        prompt = taken.loaded.processor.prompt(item.messages, enable_thinking=False)
        assert TINY.max_context - 160 < len(prompt) <= TINY.max_context - examiner.MAX_TOKENS
        assert item.messages[0].text.count(item.answer) == 1
        assert item.judge(f"the number is {item.answer}") == 1.0


def test_the_gate_is_lent_for_a_while(taken: Examiner) -> None:
    """Inside the context the gate is forced, after it the model is as it was, errors included."""
    model = taken.loaded.model
    with taken.gate(sparse=True) as topk:
        assert (topk.dense_below, model.config.topk.keep) == (0, 4)
    with pytest.raises(RuntimeError), taken.gate(sparse=False):
        raise RuntimeError
    assert model.config is TINY


@torch.inference_mode()
def test_the_mass_kept_is_all_of_it_when_all_pages_are_kept(taken: Examiner) -> None:
    """With as many pages as there are the share is 1; with fewer it is a share."""
    items = gate.needle_items(taken)[:2]
    some = gate.mass_kept(taken, items)
    taken.loaded.model.config = dataclasses.replace(TINY, topk=TopKConfig(32, 64, 4096))
    try:
        everything = gate.mass_kept(taken, items)
    finally:
        taken.loaded.model.config = TINY
    assert everything == pytest.approx([1.0, 1.0], abs=1e-5)
    assert all(0.05 < each < 0.999 for each in some)


@pytest.mark.needs("wqy-zenhei", "espeak-ng")
def test_retrieval_compares_each_with_all(loaded: LoadedModel, tmp_path: Path) -> None:
    """Chance is one in the number of captions, whatever the model."""
    scores = evaluate(loaded, release="v1.2", cache=tmp_path, seed=5, only=["retrieval"], items=4)
    assert {name: (score.count, score.chance) for name, score in scores.items()} == {
        "retrieval_image_text": (4, 0.25),
        "retrieval_audio_text": (4, 0.25),
    }


def test_an_unknown_section_is_refused_with_the_known_ones(loaded: LoadedModel, tmp_path: Path) -> None:
    """The message names what there is."""
    with pytest.raises(ConfigError, match=r"no section 'taste'.*identity, topics"):
        evaluate(loaded, release="v1.2", cache=tmp_path, only=["taste"])


def test_an_interrupted_evaluation_goes_on_behind_what_is_done(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections that were done are not asked again by the next run; nothing is left when that has ended."""

    def score(digest: str = "a", seed: int = 5) -> dict[str, Score]:
        return evaluate(
            loaded,
            release="v1.2",
            cache=tmp_path,
            seed=seed,
            only=("first", "second"),
            items=2,
            digest=digest,
        )

    asked: list[str] = []

    def first(_examiner: Examiner, _release: str) -> dict[str, Score]:
        asked.append("first")
        return {"one": share([1.0, 0.0], chance=0.25)}

    def second(_examiner: Examiner, _release: str) -> dict[str, Score]:
        asked.append("second")
        if asked.count("second") < 3:
            raise KeyboardInterrupt
        return {"two": share([1.0])}

    monkeypatch.setattr(evaluation, "SECTIONS", {"first": first, "second": second})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            score()
    (left,) = (tmp_path / "interrupted").iterdir()
    whole = score()
    assert asked == ["first", "second", "second", "second"]
    assert whole == {"one": share([1.0, 0.0], chance=0.25), "two": share([1.0])}
    assert not left.exists()
    assert score(digest="b") == score(seed=6) == whole
    assert asked.count("first") == 3


@pytest.mark.parametrize("content", [b"", b"[]", b'{"first": {"one": {"value": 1, "worth": 2}}}', b"\xff"])
def test_a_damaged_note_of_what_is_done_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """The evaluation begins anew instead of failing or of telling nonsense."""
    kept = KeptScores(tmp_path, "a", "v1.2", seed=1, items=None)
    kept.add("first", {"one": share([1.0])})
    assert KeptScores(tmp_path, "a", "v1.2", seed=1, items=None).sections == kept.sections
    kept.path.write_bytes(content)
    assert KeptScores(tmp_path, "a", "v1.2", seed=1, items=None).sections == {}
