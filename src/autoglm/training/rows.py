"""Training rows: a shared prefix and many independent conversations after it, packed under a block mask.

A row is ``prefix | slot | slot | ...``. Every slot sees the prefix and itself, never another slot, and starts
at the position where the prefix ends, so that each one is exactly the conversation that the chat template
would build. Eight questions share one screen, and a dozen dialogues share one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from autoglm.model.layers import MASKED
from autoglm.model.prompt import Prompt, PromptBuilder

IGNORED = -100
HOP_WEIGHT = 0.5


@dataclass
class Slot:
    """One conversation after the prefix.

    Attributes:
        ids: its tokens.
        loss: for each token, the weight of predicting it (0: given).
        hop: (index, token): the token that the stream should already know at this index, or None.
        name: (index, class): where the name of a label ends, and which, or None.
    """

    ids: list[int] = field(default_factory=list[int])
    loss: list[float] = field(default_factory=list[float])
    hop: tuple[int, int] | None = None
    name: tuple[int, int] | None = None

    def given(self, ids: Sequence[int]) -> None:
        """Append tokens that the user or the template gives."""
        self.ids += ids
        self.loss += [0.0] * len(ids)

    def written(self, ids: Sequence[int], weights: Sequence[float]) -> None:
        """Append tokens that the model is to write, with the weight of each."""
        self.ids += ids
        self.loss += weights


@dataclass(frozen=True)
class Batch:
    """One step's data: B rows of T tokens.

    Attributes:
        kind: ``screen``, ``speech``, ``text``, ``copy`` or ``long``.
        ids: (B, T) long.
        positions: (B, T, 3) long.
        bias: (B, 1, T, T) float32, additive mask.
        targets: (B, T) long, the next token where a loss is taken, -100 elsewhere.
        weights: (B, T) float32.
        names: (N, 3) long: row, index and class of every name's last token.
        media: (B, H, W, 3) uint8, (B, F, mels) float32, or None.
        media_at: index of the first media token.
        classes: (B, patches, 2) long: what each patch shows; screens only.
        shares: (B, patches, 2) float32: how much of it.
        places: (B, patches, 2) long: bins of the middle of what each patch shows, -100 where nothing is.
        transcripts: what is said; speech only.
        words: (B, W) long: the words that belong to each row's media, 0 where they have ended.
    """

    kind: str
    ids: Tensor
    positions: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor
    names: Tensor
    media: Tensor | None = None
    media_at: int = 0
    classes: Tensor | None = None
    shares: Tensor | None = None
    places: Tensor | None = None
    transcripts: tuple[str, ...] = ()
    words: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        moved = {
            entry.name: value.to(device, non_blocking=True)
            for entry in fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor)
        }
        return replace(self, **moved)

    def part(self, first: int, every: int) -> Batch:
        """Return the rows ``first``, ``first + every``, ...; the names in them are numbered anew."""
        mine = slice(first, None, every)
        tensors = {
            entry.name: value[mine]
            for entry in fields(self)
            if entry.name != "names" and isinstance(value := getattr(self, entry.name), Tensor)
        }
        names = self.names[self.names[:, 0] % every == first].clone()
        names[:, 0] = torch.div(names[:, 0], every, rounding_mode="floor")
        return replace(self, **tensors, names=names, transcripts=self.transcripts[mine])


def pack(kind: str, prefix: PromptBuilder, rows: Sequence[Sequence[Slot]]) -> Batch:
    """Lay the prefix and each row's slots out as tensors; media and its truth are the caller's to add."""
    head = prefix.build()
    begin = len(head)
    width = begin + max(sum(len(slot.ids) for slot in row) for row in rows)
    ids, targets = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), IGNORED, np.int64)
    positions = np.zeros((len(rows), width, 3), np.int64)
    weights = np.zeros((len(rows), width), np.float32)
    owners = np.zeros((len(rows), width), np.int64)  # 0 the prefix, k the k-th slot
    ids[:, :begin], positions[:, :begin] = head.token_ids.numpy(), head.positions.numpy()
    names: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
        at = begin
        for number, slot in enumerate(row, 1):
            end = at + len(slot.ids)
            ids[b, at:end], owners[b, at:end] = slot.ids, number
            positions[b, at:end] = (head.next_position + np.arange(end - at))[:, None]
            _aim(slot, targets[b, at:end], weights[b, at:end])
            names += [(b, at + slot.name[0], slot.name[1])] if slot.name else []
            at = end
        owners[b, at:] = len(row) + 1
    return Batch(
        kind,
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        _bias(head, owners),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        torch.tensor(names, dtype=torch.long).view(-1, 3),
        media_at=int((head.spans > 0).nonzero()[0]) if bool((head.spans > 0).any()) else 0,
    )


def _aim(slot: Slot, targets: np.ndarray, weights: np.ndarray) -> None:
    """Fill in what each token of a slot is to predict, and with which weight."""
    loss = np.array(slot.loss[1:], np.float32)
    weights[:-1] = loss
    targets[:-1] = np.where(loss > 0, slot.ids[1:], IGNORED)
    if slot.hop is not None:
        index, token = slot.hop
        targets[index], weights[index] = token, HOP_WEIGHT


def _bias(head: Prompt, owners: np.ndarray) -> Tensor:
    """Return the additive mask (B, 1, T, T): causal, media spans whole, slots apart."""
    width = owners.shape[1]
    spans = np.zeros(width, np.int64)
    spans[: len(head)] = head.spans.numpy()
    inside = (spans[:, None] == spans) & (spans > 0)
    own = (owners[:, :, None] == owners[:, None]) | (owners[:, None] == 0)
    allowed = (np.tril(np.ones((width, width), bool)) & own) | inside
    return torch.from_numpy(np.where(allowed, np.float32(0), np.float32(MASKED))[:, None])
