"""The lessons' rows: slots are the template's conversations, truths and targets are where they belong."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from autoglm.model.config import NANO
from autoglm.model.prompt import Message, Processor
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.transcription import TRANSCRIBE
from autoglm.training.actions import is_valid_action
from autoglm.training.circuits import FINE, Circuits
from autoglm.training.classroom import soft_cross_entropy, whole_answers
from autoglm.training.dialogue import training_examples
from autoglm.training.lexicon import build_lexicon
from autoglm.training.needles import draw_needles
from autoglm.training.recordings import Recording
from autoglm.training.rows import IGNORED, Batch
from autoglm.training.scenes.labels import CLASSES
from autoglm.training.teaching import PLAIN, VARIED, Manner, Teacher

pytestmark = pytest.mark.needs("wqy-zenhei", "dejavu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_lexicon(NANO.vocab_size).encode())


@pytest.fixture(scope="module")
def teacher(tokenizer: Tokenizer) -> Teacher:
    return Teacher(tokenizer, NANO, "v1.2")


def visible(batch: Batch, row: int, index: int) -> list[int]:
    return (batch.bias[row, 0, index] == 0).nonzero()[:, 0].tolist()


def spoken(kind: str = "command", seconds: float = 1.0) -> Recording:
    sound = np.random.default_rng(0).integers(-3000, 3000, int(16_000 * seconds), dtype=np.int16)
    return Recording(kind, "打开地图", 'do(action="Launch", app="地图")', "zh", "", sound)  # pyright: ignore


def test_labels_are_spelt_and_coordinates_are_bins(tokenizer: Tokenizer) -> None:
    """No Chinese label is one token, text comes back as it was, a place comes back within half a bin."""
    for label in CLASSES[1:]:
        ids = tokenizer.encode(label.chinese)
        assert tokenizer.decode(ids) == label.chinese
        assert not label.is_chinese or len(ids) >= len(label.chinese)
    action = tokenizer.decode(tokenizer.encode('do(action="Tap", element=[500,999])'))
    assert is_valid_action(action) and action == 'do(action="Tap", element=[506,993])'


def test_the_same_generator_gives_the_same_batch(teacher: Teacher) -> None:
    """A batch depends on the generator's state alone, which is what makes a run resumable."""
    one, two = (teacher.screens(random.Random(1), 2, VARIED) for _ in range(2))
    assert torch.equal(one.ids, two.ids)
    assert one.media is not None and two.media is not None and torch.equal(one.media, two.media)


def test_a_slot_sees_the_prefix_and_itself_only(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """No question on a screen sees another one's tokens, and all of them see the whole image."""
    batch = teacher.screens(random.Random(1), 2)
    for row in range(2):
        ends = (batch.ids[row] == tokenizer.eos).nonzero()[:, 0].tolist()
        begin = batch.media_at + 162 + 1
        assert len(ends) == 9
        for start, end in zip([begin, *(e + 1 for e in ends)], ends, strict=False):
            assert visible(batch, row, end) == [*range(begin), *range(start, end + 1)]
            assert batch.positions[row, start, 0] == batch.positions[row, begin, 0]


def test_names_are_marked_where_they_end(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """The text up to a name's mark ends in a name of the marked class."""
    batch = teacher.screens(random.Random(2), 3)
    assert len(batch.names) == 3 * 5
    for row, index, number in batch.names.tolist():
        text = tokenizer.decode(batch.ids[row, max(0, index - 5) : index + 1].tolist())
        assert text.endswith((CLASSES[number].chinese, CLASSES[number].english)), text


def test_a_text_slot_is_the_templates_conversation(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """What training shows for a dialogue is, id by id, what the chat template builds for it."""
    processor = Processor(tokenizer, NANO)
    for example in training_examples(random.Random(5), 20):
        slot = teacher.example_slot([example], PLAIN, thinks=False)
        system = [Message("system", example.system)] if example.system else []
        prompt = processor.prompt([*system, Message("user", example.question)], enable_thinking=False)
        given = prompt.token_ids.tolist()[1:]
        assert slot.ids[: len(given)] == given
        assert tokenizer.decode(slot.ids[len(given) : -1]) == example.answer


def test_an_agents_answers_are_actions_after_a_thought(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """Under an agent's prompt every answer is one valid action, and every turn thinks first."""
    batch = teacher.screens(random.Random(3), 3, Manner(agent=1.0))
    for row in batch.ids.tolist():
        turns = [i for i, token in enumerate(row) if token == tokenizer.assistant]
        assert all(row[i + 1] == tokenizer.think for i in turns)
        for start in (i for i, token in enumerate(row) if token == tokenizer.answer):
            assert is_valid_action(tokenizer.decode(row[start + 1 : row.index(tokenizer.eos, start)]))


def test_clips_are_answered_and_written_down(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """A command is answered by its action and also written down; a dictation is only written down."""
    command = teacher.speech(random.Random(2), 2, [spoken()], Manner(transcribe=1.0))
    text = tokenizer.decode(command.ids[0].tolist())
    assert text.endswith(f'do(action="Launch", app="地图"){TRANSCRIBE}打开地图')
    dictated = teacher.speech(random.Random(2), 2, [spoken("dictation")])
    assert tokenizer.decode(dictated.ids[0].tolist()).endswith(f"{TRANSCRIBE}打开地图")
    assert command.media is not None and command.media.shape[1] == 4 * NANO.audio.min_tokens
    assert command.transcripts == ("打开地图",) * 2


def test_a_long_clip_gets_as_many_tokens_as_it_needs(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """Clips longer than the shortest span are not cut."""
    batch = teacher.speech(random.Random(2), 2, [spoken(seconds=4.0)])
    spans = (batch.ids == tokenizer.audio_pad).sum(1)
    assert batch.media is not None and int(spans[0]) == batch.media.shape[1] // 4 > 80


def test_rows_of_text_are_filled_and_long_rows_are_long(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """A text row packs several conversations; a long one asks many questions after one long opening."""
    batch = teacher.text(random.Random(3), 4)
    assert int((batch.ids == tokenizer.user).sum(1).min()) >= 3
    rng = random.Random(3)
    longs = [teacher.long(rng, 1) for _ in range(12)]
    assert max(each.ids.shape[1] for each in longs) > 900
    for each in longs:
        written = (each.targets[0] != IGNORED).nonzero()[:, 0]
        questions = int((each.targets[0] == tokenizer.eos).sum())
        assert questions >= 1
        assert int(written[0]) > 100  # nothing is asked before the opening has ended


def test_facts_far_back_are_asked_for_one_by_one(teacher: Teacher, tokenizer: Tokenizer) -> None:
    """Every number that a question wants stands once in the text before all questions."""
    for seed in range(5):
        text, asked = draw_needles(random.Random(seed), tokenizer, 300)
        assert asked
        assert all(text.count(answer) >= 1 for _, answer in asked)
        assert abs(len(tokenizer.encode(text)) - 300) < 120


def test_coordinates_forgive_their_neighbours() -> None:
    """The loss of a place next to the right one is far below that of a distant one; words are exact."""
    config = NANO
    right = config.image.x_token + 30

    def loss(guess: int, target: int) -> float:
        logits = torch.zeros(1, config.vocab_size)
        logits[0, guess] = 20.0
        return float(soft_cross_entropy(logits, torch.tensor([target]), config))

    assert loss(right, right) < loss(right + 1, right) < loss(right + 9, right)
    assert loss(600, 600) < 1e-3 < loss(601, 600)


def test_a_finer_blur_punishes_the_neighbour_more() -> None:
    """With a blur of one bin the place beside the right one costs far more than with the usual one."""
    logits = torch.zeros(1, NANO.vocab_size)
    logits[0, NANO.image.x_token + 32] = 20.0
    right, beside = (torch.tensor([NANO.image.x_token + 32 + off]) for off in (0, 2))
    gaps = [
        float(soft_cross_entropy(logits, beside, NANO, blur) - soft_cross_entropy(logits, right, NANO, blur))
        for blur in (FINE, 1.0)
    ]
    assert gaps[0] > 2 * gaps[1] > 0


def test_where_labels_are_is_asked_of_every_patch(tokenizer: Tokenizer) -> None:
    """The loss falls to that of the blur when the heads are right; patches without a label are left out."""
    torch.manual_seed(0)
    heads = Circuits(NANO, tokenizer, "abc")
    hidden = torch.randn(1, 3, NANO.width)
    places = torch.tensor([[[5, 40], [70, 2], [IGNORED, IGNORED]]])
    optimizer = torch.optim.Adam(heads.place.parameters(), 0.03)
    losses: list[float] = []
    for _ in range(200):
        loss, found = heads.place_loss(hidden, places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2 and float(found) == 1.0
    hidden[0, 2] += 100.0
    assert float(heads.place_loss(hidden, places)[0]) == pytest.approx(losses[-1], rel=0.05)


def test_a_turn_counts_as_whole_when_all_its_tokens_are_right() -> None:
    """One wrong token spoils its own turn and no other."""
    right = torch.tensor([True, True, True, False, True, True])
    ends = torch.tensor([False, True, False, False, True, True])
    assert whole_answers(right, ends).item() == pytest.approx(2 / 3)
