"""Packed rows: each slot is exactly the conversation that the chat template would build."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from autoglm.model.config import NANO
from autoglm.model.prompt import Message, Processor
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import AGENT_SYSTEM_PROMPT, APPS, is_valid_action
from autoglm.training.batches import PLAIN, VARIED, Batch, Batches, Variety
from autoglm.training.dialogue import training_examples
from autoglm.training.speech import Clip
from autoglm.training.vocabulary import build_tokenizer

AGENT = Variety(agent=1.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_tokenizer(NANO.vocab_size).encode())


@pytest.fixture(scope="module")
def batches(tokenizer: Tokenizer) -> Batches:
    return Batches(tokenizer, NANO)


def screens(batches: Batches, variety: Variety = PLAIN) -> Batch:
    return batches.screens(random.Random(1), 3, num_elements=(3, 6), labels=APPS, variety=variety)


def visible(batch: Batch, row: int, index: int) -> list[int]:
    """Return the indices that a token sees."""
    return (batch.bias[row, 0, index] == 0).nonzero()[:, 0].tolist()


@pytest.mark.needs("wqy-zenhei")
def test_the_same_generator_gives_the_same_batch(batches: Batches) -> None:
    """A batch depends on the generator's state alone, which is what makes a run resumable."""
    first, second = screens(batches, VARIED), screens(batches, VARIED)
    assert torch.equal(first.ids, second.ids)
    assert first.media is not None and second.media is not None
    assert torch.equal(first.media, second.media)


@pytest.mark.needs("wqy-zenhei")
def test_a_slot_sees_the_prefix_and_itself_only(batches: Batches, tokenizer: Tokenizer) -> None:
    """No question on a screen sees another one's tokens, and all of them see the whole image."""
    batch = screens(batches)
    for row in range(3):
        ends = (batch.ids[row] == tokenizer.eos).nonzero()[:, 0].tolist()
        assert len(ends) == 8
        begin = batch.media_at + 129
        for start, end in zip([begin, *(e + 1 for e in ends)], ends, strict=False):
            assert visible(batch, row, end) == [*range(begin), *range(start, end + 1)]
            assert batch.positions[row, start, 0] == batch.positions[row, begin, 0]


def test_a_text_slot_is_the_templates_conversation(batches: Batches, tokenizer: Tokenizer) -> None:
    """What training shows for a dialogue is, id by id, what the chat template builds for it."""
    processor = Processor(tokenizer, NANO)
    for example in training_examples(random.Random(5), 20):
        slot = batches.example_slot([example], thinks=False)
        system = [Message("system", example.system)] if example.system else []
        prompt = processor.prompt([*system, Message("user", example.question)], enable_thinking=False)
        given = prompt.token_ids.tolist()[1:]
        assert slot.ids[: len(given)] == given
        assert tokenizer.decode(slot.ids[len(given) : -1]) == example.answer
        assert slot.ids[-1] == tokenizer.eos
        assert not any(slot.loss[: len(given)])
        assert all(slot.loss[len(given) + 1 :])  # the first may be an action of a one-sided answer


@pytest.mark.needs("wqy-zenhei")
def test_under_the_agents_prompt_every_answer_is_a_thought_and_an_action(
    batches: Batches, tokenizer: Tokenizer
) -> None:
    """Under the action grammar reading and presence end in finish(), and every turn thinks first."""
    batch = screens(batches, AGENT)
    row = batch.ids[0].tolist()
    prompt = tokenizer.encode(AGENT_SYSTEM_PROMPT)
    assert row[1 : 2 + len(prompt)] == [tokenizer.system, *prompt]
    turns = [i for i, token in enumerate(row) if token == tokenizer.answer]
    assert len(turns) == 8 == row.count(tokenizer.think) == row.count(tokenizer.end_think)
    for start in turns:
        assert is_valid_action(tokenizer.decode(row[start + 1 : row.index(tokenizer.eos, start)]))


@pytest.mark.needs("wqy-zenhei")
def test_targets_are_the_next_tokens_of_answers(batches: Batches) -> None:
    """Every target is the token that follows, or the early answer at the question's key token."""
    batch = screens(batches)
    asked = batch.targets >= 0
    following = torch.roll(batch.ids, -1, 1)
    early = asked & (batch.targets != following)
    assert int(early.sum()) == 3 * 8
    assert bool((batch.weights[early] == 0.5).all())
    assert bool((batch.weights[~asked] == 0).all())


def test_sound_keeps_its_place_in_the_span(batches: Batches, tokenizer: Tokenizer) -> None:
    """A clip's batch has frames for exactly its span, and one or two turns after it."""
    noise = (np.random.default_rng(1).standard_normal(20_000) * 0.1).astype(np.float32)
    clip = Clip("打开地图", 'do(action="Launch", app="地图")', "", noise)
    batch = batches.speech(random.Random(2), 4, [clip], VARIED)
    assert batch.media is not None
    assert batch.media.shape == (4, NANO.audio.min_tokens * 4, NANO.audio.mels)
    span = batch.ids == tokenizer.audio_pad
    assert span.sum(1).tolist() == [NANO.audio.min_tokens] * 4
    assert bool(span[:, batch.media_at].all()) and not bool(span[:, batch.media_at - 1].any())
    assert batch.transcripts == ("打开地图",) * 4


def test_rows_of_text_are_filled(batches: Batches, tokenizer: Tokenizer) -> None:
    """A text row packs several conversations and little padding."""
    batch = batches.text(random.Random(3), 6, "v1.2")
    used = (batch.ids != tokenizer.pad).float().mean()
    assert used > 0.7
    assert int((batch.ids == tokenizer.user).sum(1).min()) >= 4
