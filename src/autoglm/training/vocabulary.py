"""Build the tokenizer of the small model from the project's own training text.

Fixed ids first (control tokens, pieces of the action grammar, whole app labels, coordinate bins), then the
256 bytes, then merges. A Chinese character is never merged with its neighbour: sentences made from templates
would otherwise become single tokens, and new wordings would look like nothing seen before. Labels of later
releases have their tokens from the start, so that an update never changes the tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from autoglm.errors import ConfigError
from autoglm.model.tokenizer import CONTROLS, LABEL_TOKEN, NUM_BINS, X_TOKEN, Y_TOKEN
from autoglm.training.actions import AGENT_SYSTEM_PROMPT, ALL_LABELS
from autoglm.training.dialogue import agent_examples, training_examples
from autoglm.training.screens import questions, render

GRAMMAR_TOKEN = 32
GRAMMAR = (
    'do(action="Tap", element=',
    'do(action="Launch", app="',
    'do(action="Close", app="',
    'finish(message="',
    '")',
)
_BYTES_TOKEN = 256
MERGE_TOKEN = 512
_NUM_EXAMPLES = 20_000
_NUM_SCREENS = 200
# Each Chinese character alone; other text by GPT-2's rule (words with their leading space, numbers, marks).
_HAN = Regex(r"[\u4e00-\u9fff]")


def corpus(seed: int = 0) -> Iterator[str]:
    """Yield the text that the merges are learnt from: training wordings only, nothing held out."""
    rng = random.Random(seed)
    for example in (
        *training_examples(rng, _NUM_EXAMPLES, release="v1.3"),
        *agent_examples(rng, _NUM_EXAMPLES // 10, release="v1.3"),
    ):
        yield from (example.question, example.answer, example.thought, example.system)
    for _ in range(_NUM_SCREENS):
        yield from (question.prompt for question in questions(rng, render(rng, num_elements=(8, 8))))
    yield AGENT_SYSTEM_PROMPT


def pre_tokenizer() -> Any:
    """Return how text is cut before merging: Chinese characters alone, the rest by GPT-2's rule."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_HAN, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _learn_merges(num_merges: int) -> list[tuple[str, str]]:
    """Return at most ``num_merges`` merges over the byte-level alphabet."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    texts = [text for text in corpus() if text]
    for fixed in sorted((*ALL_LABELS, *GRAMMAR), key=len, reverse=True):
        texts = [text.replace(fixed, " ") for text in texts]
    learner.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def build_tokenizer(vocab_size: int) -> str:
    """Return the text of ``tokenizer.json`` with ids below ``vocab_size``.

    Raises:
        ConfigError: ``vocab_size`` leaves no room for merges.
    """
    if vocab_size <= MERGE_TOKEN:
        raise ConfigError(f"vocab_size {vocab_size} must be more than {MERGE_TOKEN}")
    fixed: dict[str, int] = {token: i for i, token in enumerate(CONTROLS)}
    plain = {token: GRAMMAR_TOKEN + i for i, token in enumerate(GRAMMAR)}
    plain |= {label: LABEL_TOKEN + i for i, label in enumerate(ALL_LABELS)}
    for i in range(NUM_BINS):
        fixed |= {f"<x_{i}>": X_TOKEN + i, f"<y_{i}>": Y_TOKEN + i}
    merges = _learn_merges(vocab_size - MERGE_TOKEN)
    vocabulary = fixed | plain
    for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())):
        vocabulary[letter] = _BYTES_TOKEN + i
    kept: list[tuple[str, str]] = []
    for left, right in merges:
        if left + right in vocabulary:  # an ASCII label spelt by merges: its own token serves
            continue
        if left in vocabulary and right in vocabulary and len(kept) < vocab_size - MERGE_TOKEN:
            vocabulary[left + right] = MERGE_TOKEN + len(kept)
            kept.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=kept))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in fixed])
    # Not as whole words only: in "点击Maps" a Chinese character, a word character, stands before the label.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return tokenizer.to_str(pretty=True)
