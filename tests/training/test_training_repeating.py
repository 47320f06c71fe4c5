"""What teaches a network to copy: tokens drawn at random, of which some come again."""

from __future__ import annotations

import random

import pytest

from autoglm.model.config import NANO
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.lexicon import MERGE_TOKEN, build_lexicon
from autoglm.training.repeating import draw_repetition
from autoglm.training.rows import IGNORED, Slot
from autoglm.training.teaching import Manner, Teacher


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_lexicon(3072).encode())


def _known(slot: Slot) -> list[bool]:
    """Tell of each token to be written whether it once stood behind the one before it."""
    written = [i for i, weight in enumerate(slot.loss) if weight > 0]
    pairs = list(zip(slot.ids, slot.ids[1:], strict=False))
    return [(slot.ids[i - 1], slot.ids[i]) in pairs[: i - 1] for i in written]


def test_what_is_to_be_written_stood_there_before(tokenizer: Tokenizer) -> None:
    """Every token that counts follows the same token as it did earlier: it can be looked up, never known."""
    for seed in range(60):
        slot = draw_repetition(random.Random(seed), tokenizer, NANO)
        known = _known(slot)
        assert known and all(known)
        assert len(slot.ids) == len(slot.loss)


def test_what_comes_again_is_strange(tokenizer: Tokenizer) -> None:
    """No control token, coordinate or piece of the grammar is copied, and hardly a token comes up often."""
    drawn: list[int] = []
    for seed in range(200):
        slot = draw_repetition(random.Random(seed), tokenizer, NANO)
        drawn += [token for token, weight in zip(slot.ids, slot.loss, strict=True) if weight > 0]
    assert min(drawn) >= MERGE_TOKEN and max(drawn) < NANO.vocab_size
    assert max(map(drawn.count, set(drawn))) < len(drawn) / 100


@pytest.mark.parametrize("strange", [0.0, 1.0])
def test_rows_to_copy_hold_as_many_strange_tokens_as_wanted(tokenizer: Tokenizer, strange: float) -> None:
    """All of a row is random tokens, or all of it conversations that end where an answer ends."""
    batch = Teacher(tokenizer, NANO, "v1.2").copies(random.Random(1), 3, Manner(strange=strange))
    assert batch.kind == "copy" and len(batch.ids) == 3
    ends = int((batch.targets == tokenizer.eos).sum())
    assert (ends > 0) == (strange == 0.0)
    assert int((batch.targets != IGNORED).sum()) > 100
