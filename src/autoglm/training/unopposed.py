"""Answers held out of training, kept from being trained against as well.

An action and an app that never stand together in training (see :func:`~autoglm.training.actions.is_held_out`)
lose every competition for the next token that other apps win after that action: the network learns that the
pair does not exist, which is a mark of the split and not of the world. So after an action, and after each
beginning of a name that follows it, the tokens that only lead to apps held out with it leave the competition.
They are never an answer either: the pair stays unseen.

    >>> rule = Unopposed(tokenizer)                                              # doctest: +SKIP
    >>> rule(logits, batch.ids, asked).shape == logits.shape                     # doctest: +SKIP
    True
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from autoglm.model.tokenizer import Tokenizer
from autoglm.training.actions import ACTION_LABELS, app_action, is_held_out

_NEVER = -1e4  # a logit; not an infinity, whose differences are no numbers


class Unopposed:
    """Takes the held-out apps of an action out of the competition for the tokens after it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find, for each beginning of an answer, the tokens that lead to held-out names only.

        A tokenizer whose actions are not one token up to the name has nothing to find.
        """
        self._excused: dict[tuple[int, ...], list[int]] = {}
        for action in ("Launch", "Close"):
            spelled = {label: tuple(tokenizer.encode(app_action(action, label))) for label in ACTION_LABELS}
            opening = tuple(tokenizer.encode(app_action(action, "").removesuffix('")')))
            if len(opening) != 1 or any(ids[:1] != opening for ids in spelled.values()):
                continue
            trained, held = defaultdict[tuple[int, ...], set[int]](set), dict[tuple[int, ...], set[int]]()
            for label, ids in spelled.items():
                for at in range(1, len(ids)):
                    into = held if is_held_out(action, label) else trained
                    into.setdefault(ids[:at], set()).add(ids[at])
            for beginning in held.keys() & trained.keys():
                if only := held[beginning] - trained[beginning]:
                    self._excused[beginning] = sorted(only)
        self._depth = max(map(len, self._excused), default=0)

    def __call__(self, logits: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
        """Return the logits without what is held out.

        Args:
            logits: (N, V), of the token after each of the N places.
            ids: (B, T), the tokens.
            asked: (B, T), true at the N places.
        """
        if not self._excused:
            return logits
        before = torch.stack([ids.roll(back, 1)[asked] for back in range(self._depth)], 1)
        for beginning, tokens in self._excused.items():
            last = before.new_tensor(beginning[::-1])
            rows = (before[:, : len(last)] == last).all(1)
            if bool(rows.any()):
                out = rows.new_zeros(logits.shape[1])
                out[tokens] = True
                logits = logits.masked_fill(rows[:, None] & out, _NEVER)
        return logits
