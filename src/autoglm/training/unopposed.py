"""Answers held out of training, kept from being trained against as well.

An action and an app that never stand together in training (see :func:`~autoglm.training.actions.is_held_out`)
lose every competition for the next token that other apps win after that action: the network learns that the
pair does not exist, which is a mark of the split and not of the world. So after an action the apps held out
with it leave the competition. They are never an answer either: the pair stays unseen.

    >>> rule = Unopposed(tokenizer)                                              # doctest: +SKIP
    >>> rule(logits, before).shape == logits.shape                               # doctest: +SKIP
    True
"""

from __future__ import annotations

from torch import Tensor

from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import ALL_LABELS, app_action, is_held_out

_NEVER = -1e4  # a logit; not an infinity, whose differences are no numbers


class Unopposed:
    """Takes the held-out apps of an action out of the competition for the token after it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find, for each action, the token before the app's name and the names that are held out.

        A tokenizer whose actions are not one token up to the name has nothing to find.
        """
        self._firsts: dict[int, list[int]] = {}
        for action in ("Launch", "Close"):
            spelled = {label: tokenizer.encode(app_action(action, label)) for label in ALL_LABELS}
            opening = tokenizer.encode(app_action(action, "").removesuffix('")'))
            if len(opening) != 1 or any(ids[:1] != opening for ids in spelled.values()):
                continue
            trained = {ids[1] for label, ids in spelled.items() if not is_held_out(action, label)}
            held = {ids[1] for label, ids in spelled.items() if is_held_out(action, label)}
            self._firsts[opening[0]] = sorted(held - trained)

    def __call__(self, logits: Tensor, before: Tensor) -> Tensor:
        """Return the logits (N, V) without what is held out after the tokens ``before`` (N,)."""
        for opening, firsts in self._firsts.items():
            rows = before == opening
            if firsts and bool(rows.any()):
                out = rows.new_zeros(logits.shape[1])
                out[firsts] = True
                logits = logits.masked_fill(rows[:, None] & out, _NEVER)
        return logits
