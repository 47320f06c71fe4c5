"""Held-out answers are neither trained nor trained against."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import ACTION_LABELS, app_action, is_held_out
from autoglm.training.lexicon import build_lexicon
from autoglm.training.unopposed import Unopposed

_VOCABULARY = 2200  # small, so that names are spelled in pieces, some of which a held-out name shares


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_lexicon(_VOCABULARY).encode())


def _untouched(rule: Unopposed, ids: list[int]) -> set[int]:
    """Return the tokens that get no gradient when the last of ``ids`` is to follow the others."""
    logits = torch.zeros(1, _VOCABULARY, requires_grad=True)
    before, asked = torch.tensor([ids[:-1]]), torch.zeros(1, len(ids) - 1, dtype=torch.bool)
    asked[0, -1] = True
    (-rule(logits, before, asked).log_softmax(-1)[0, ids[-1]]).backward()
    assert logits.grad is not None
    return set((logits.grad[0] == 0).nonzero()[:, 0].tolist())


def _spelled(tokenizer: Tokenizer, action: str) -> tuple[list[list[int]], list[list[int]]]:
    """Return the answers of an action that are held out, and those that are trained."""
    ids = {label: tokenizer.encode(app_action(action, label)) for label in ACTION_LABELS}
    return (
        [each for label, each in ids.items() if is_held_out(action, label)],
        [each for label, each in ids.items() if not is_held_out(action, label)],
    )


@pytest.mark.parametrize("action", ["Launch", "Close"])
def test_an_action_does_not_push_down_what_is_held_out_with_it(tokenizer: Tokenizer, action: str) -> None:
    """After an action the held-out apps get no gradient, all other tokens do."""
    held, trained = _spelled(tokenizer, action)
    untouched = _untouched(Unopposed(tokenizer), trained[0][:2])
    assert untouched == {ids[1] for ids in held} - {ids[1] for ids in trained} and len(untouched) >= 4


@pytest.mark.parametrize("action", ["Launch", "Close"])
def test_names_that_begin_alike_are_told_apart_without_the_held_out_ones(
    tokenizer: Tokenizer, action: str
) -> None:
    """After a beginning that a held-out name shares with trained ones, it gets no gradient either."""
    rule, (held, trained) = Unopposed(tokenizer), _spelled(tokenizer, action)
    shared = 0
    for secret in held:
        at = next(i for i in range(len(secret)) if all(ids[: i + 1] != secret[: i + 1] for ids in trained))
        alike = next(ids for ids in trained if ids[:at] == secret[:at])
        assert secret[at] in _untouched(rule, [*torch.randint(300, 900, (3,)).tolist(), *alike[: at + 1]])
        shared += at > 1
    assert shared >= 1


def test_elsewhere_nothing_changes(tokenizer: Tokenizer) -> None:
    """After any other token the logits are what they were."""
    logits = torch.randn(8, _VOCABULARY)
    ids = torch.tensor(tokenizer.encode("open Music"))[:1].expand(2, 8)
    asked = torch.zeros(2, 8, dtype=torch.bool)
    asked[:, 2:6] = True
    assert torch.equal(Unopposed(tokenizer)(logits, ids, asked), logits)


def test_no_trained_answer_leaves_the_competition(tokenizer: Tokenizer) -> None:
    """The answers that are trained stay possible, with the action they are trained with."""
    rule = Unopposed(tokenizer)
    for action in ("Launch", "Close"):
        for answer in _spelled(tokenizer, action)[1]:
            ids = torch.tensor([answer])
            asked = torch.ones(1, len(answer) - 1, dtype=torch.bool)
            seen: Tensor = rule(torch.zeros(len(answer) - 1, _VOCABULARY), ids[:, :-1], asked)
            assert (seen.gather(1, ids[0, 1:, None]) == 0).all()
