"""Held-out answers are neither trained nor trained against."""

from __future__ import annotations

import pytest
import torch

from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import ALL_LABELS, app_action, is_held_out
from autoglm.training.lexicon import build_lexicon
from autoglm.training.unopposed import Unopposed


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(build_lexicon(3072).encode())


@pytest.mark.parametrize("action", ["Launch", "Close"])
def test_an_action_does_not_push_down_what_is_held_out_with_it(tokenizer: Tokenizer, action: str) -> None:
    """After an action the held-out apps get no gradient, all other tokens do."""
    ids = tokenizer.encode(app_action(action, "Mail"))
    logits = torch.zeros(1, 3072, requires_grad=True)

    seen = Unopposed(tokenizer)(logits, torch.tensor([ids[0]]))
    (-seen.log_softmax(-1)[0, ids[1]]).backward()

    assert logits.grad is not None
    untouched = set((logits.grad[0] == 0).nonzero()[:, 0].tolist())
    held = {
        tokenizer.encode(app_action(action, label))[1] for label in ALL_LABELS if is_held_out(action, label)
    }
    assert untouched == held and len(held) >= 4


def test_elsewhere_nothing_changes(tokenizer: Tokenizer) -> None:
    """After any other token the logits are what they were."""
    logits = torch.randn(8, 3072)
    before = torch.tensor(tokenizer.encode("open Music"))[:1].expand(8)
    assert torch.equal(Unopposed(tokenizer)(logits, before), logits)


def test_no_trained_answer_leaves_the_competition(tokenizer: Tokenizer) -> None:
    """The answers that are trained stay possible, with the action they are trained with."""
    rule = Unopposed(tokenizer)
    for action in ("Launch", "Close"):
        for label in ALL_LABELS:
            if not is_held_out(action, label):
                ids = torch.tensor(tokenizer.encode(app_action(action, label)))
                assert (rule(torch.zeros(len(ids) - 1, 3072), ids[:-1]).gather(1, ids[1:, None]) == 0).all()
