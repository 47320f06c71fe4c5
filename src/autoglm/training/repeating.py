"""Random tokens that come back: what makes a network look up what followed something before.

Names, numbers and needles can be copied only by heads that find the earlier place of a token and bring on
what stood behind it (induction heads, arXiv:2209.11895). Sentences from templates never ask for them: nearly
all of their tokens can be known by heart. Tokens drawn at random cannot.

    >>> slot = draw_repetition(random.Random(1), tokenizer, config)                    # doctest: +SKIP
    >>> sum(weight > 0 for weight in slot.loss) < len(slot.ids) / 2                    # doctest: +SKIP
    True
"""

from __future__ import annotations

import random

from autoglm.model.config import ModelConfig
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.lexicon import MERGE_TOKEN
from autoglm.training.rows import Slot

_SHORTEST, _LONGEST = 2, 48  # tokens that come twice
_FEWEST_PAIRS, _MOST_PAIRS = 2, 14
_BESIDE = 24  # at most so many tokens before and behind what is repeated
_PAIRED = 0.5  # share that looks up values of keys


def draw_repetition(rng: random.Random, tokenizer: Tokenizer, config: ModelConfig) -> Slot:
    """Draw tokens of which some come again: a stretch as it stood, or the values of keys in another order."""
    slot = Slot()
    draw = _recalled if rng.random() < _PAIRED else _again
    draw(rng, slot, tokenizer, config)
    return slot


def _again(rng: random.Random, slot: Slot, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Let a stretch of strange tokens be written once more."""
    repeated = _strange(rng, config, round(_SHORTEST * (_LONGEST / _SHORTEST) ** rng.random()))
    before, behind = (_strange(rng, config, rng.randint(0, _BESIDE)) for _ in range(2))
    slot.given([tokenizer.user, *before, *repeated, *behind, tokenizer.assistant, tokenizer.answer])
    slot.given(repeated[:1])  # which stretch is meant
    slot.written([*repeated[1:], tokenizer.eos], [1.0] * (len(repeated) - 1) + [0.0])


def _recalled(rng: random.Random, slot: Slot, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Name keys, each with one to four tokens behind it, and ask for them in another order."""
    number = rng.randint(_FEWEST_PAIRS, _MOST_PAIRS)
    keys = rng.sample(range(MERGE_TOKEN, config.vocab_size), number)
    values = [_strange(rng, config, rng.randint(1, 4)) for _ in keys]
    slot.given([tokenizer.user])
    for key, value in zip(keys, values, strict=True):
        slot.given([key, *value])
    slot.given([tokenizer.assistant, tokenizer.answer])
    for place in rng.sample(range(number), number):
        slot.given([keys[place]])
        slot.written(values[place], [1.0] * len(values[place]))


def _strange(rng: random.Random, config: ModelConfig, count: int) -> list[int]:
    return [rng.randrange(MERGE_TOKEN, config.vocab_size) for _ in range(count)]
