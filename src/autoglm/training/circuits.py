"""What only training has: vectors of whole labels, auxiliary losses, and the start as a look-up.

The two circuits that read a screen form in order: from glyphs to what a patch shows, then from a name to a
look-up to a place. Trained jointly from scratch the second one gets no signal. So the first has its own loss
after the middle block, and the second starts as a look-up (arXiv:2305.09828 makes the case for such starts).

A label is spelt in several tokens. Its vector is composed of theirs, each turned by a matrix of its place, so
that labels that share letters share parts of their vectors; a patch that shows a label, and the last token of
its name in a question, are both taught to hold that vector after the middle block, and so find each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.model.config import ModelConfig
from autoglm.model.layers import RmsNorm
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.distributed import mean_weight
from autoglm.training.scenes.labels import CLASSES

MIDDLE = 3  # the auxiliary losses read the stream after this many blocks
LONGEST_NAME = 6  # tokens of a name that count
_BACKGROUND_WEIGHT = 0.1
FINE = 0.45  # a blur of one bin in 72
_AXIS = 32  # a blur is told in shares of an axis of so many


class Circuits(nn.Module):
    """The heads of the auxiliary losses: patches, names, characters of speech, and what belongs together."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, alphabet: str) -> None:
        """Args: the model's sizes; its tokenizer; the characters that transcripts are made of."""
        super().__init__()
        width, eps = config.width, config.norm_eps
        spelt = [tokenizer.encode(label.chinese)[:LONGEST_NAME] for label in CLASSES[1:]]
        names = torch.zeros(len(spelt), LONGEST_NAME, dtype=torch.long)
        used = torch.zeros(len(spelt), LONGEST_NAME)
        for i, ids in enumerate(spelt):
            names[i, : len(ids)], used[i, : len(ids)] = torch.tensor(ids), 1
        self.register_buffer("names", names, persistent=False)
        self.register_buffer("used", used, persistent=False)
        turns = torch.empty(LONGEST_NAME, width, width)
        turns[0] = torch.eye(width)
        for turn in turns[1:]:
            nn.init.orthogonal_(turn)
        self.turns = nn.Parameter(turns)
        self.background = nn.Parameter(torch.randn(1, width))
        self.middle_norm = RmsNorm(width, eps)
        self.name_norm = RmsNorm(width, eps)
        self.stem_norm = RmsNorm(width, eps)
        self.stem = nn.Linear(width, len(CLASSES))
        self.place_norm = RmsNorm(width, eps)
        self.place = nn.Linear(width, 2 * config.image.bins)
        self.alphabet = {character: i + 1 for i, character in enumerate(alphabet)}  # 0 is CTC's blank
        self.sound_norm = RmsNorm(width, eps)
        self.sound = nn.Linear(width, len(alphabet) + 1)
        self.sharpness = nn.Parameter(torch.tensor(2.3))

    def label_vectors(self, table: Tensor) -> Tensor:
        """Return a unit vector for each class (classes, width) from the token table (V, width)."""
        spelt = (
            table[self.get_buffer("names")] * self.get_buffer("used")[..., None]
        )  # (labels, places, width)
        vectors = torch.einsum("lpw,pvw->lv", spelt, self.turns)
        return F.normalize(torch.cat([self.background, vectors]), dim=-1)

    def patch_logits(self, table: Tensor, hidden: Tensor) -> Tensor:
        """Score what each patch shows (B, N, classes) from the stream after the middle block."""
        return F.linear(self.middle_norm(hidden.float()), self.label_vectors(table))

    def stem_logits(self, stem: Tensor) -> Tensor:
        """Score the same from the stem's output alone."""
        return self.stem(self.stem_norm(stem.float()))

    def place_loss(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on where the label of each patch has its middle, and the share found to one bin.

        Answers ask for a few places a screen; this asks every patch of every label.

        Args:
            hidden: (B, N, width), the stream after the middle block.
            places: (B, N, 2), bins of both axes; negative ones are left out.
        """
        known = places[..., 0] >= 0
        wanted = places[known]  # (patches, 2)
        scores = self.place(self.place_norm(hidden[known].float())).float().unflatten(-1, (2, -1))
        near = soften_coordinates(scores.shape[-1], FINE).to(scores)[wanted]
        losses = -(near * scores.log_softmax(-1)).sum(-1).sum(-1)
        found = ((scores.argmax(-1) - wanted).abs() <= 1).all(-1).float()
        patches = mean_weight(known.sum().float()).clamp_min(1)  # a batch may show no label at all
        return losses.sum() / patches, found.sum() / max(1, len(found))

    def name_loss(self, table: Tensor, hidden: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the accuracy, of names' last tokens (N, width) against the labels' vectors."""
        logits = F.linear(self.name_norm(hidden.float()), self.label_vectors(table))
        return F.cross_entropy(logits, classes), (logits.argmax(-1) == classes).float().mean()

    def sound_loss(self, hidden: Tensor, transcripts: Sequence[str]) -> Tensor:
        """Return the CTC loss (Graves et al. 2006) of the stream over a clip (B, N, width)."""
        scores = self.sound(self.sound_norm(hidden.float())).float().log_softmax(-1).transpose(0, 1)
        spelt = [[self.alphabet[c] for c in text if c in self.alphabet] for text in transcripts]
        lengths = torch.full((len(spelt),), scores.shape[0])
        return F.ctc_loss(
            scores,
            torch.tensor([i for word in spelt for i in word], device=scores.device),
            lengths,
            torch.tensor([len(word) for word in spelt]),
            zero_infinity=True,
        )

    def pair_loss(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return InfoNCE (arXiv:1807.03748) both ways over pooled pairs (N, width), and the share found."""
        scores = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T
        scores = scores * self.sharpness.clamp(0, 4.6).exp()
        truth = torch.arange(len(scores), device=scores.device)
        loss = (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        return loss, (scores.argmax(-1) == truth).float().mean()


def patch_loss(logits: Tensor, classes: Tensor, shares: Tensor) -> Tensor:
    """Return the cross entropy of patches that show up to two labels; background counts a tenth.

    Args:
        logits: (B, N, classes).
        classes: (B, N, 2), negative first entries are left out.
        shares: (B, N, 2), adding up to one.
    """
    known = classes[..., 0] >= 0
    scores = logits.float()[known].log_softmax(-1)  # (patches, classes)
    chosen, part = classes[known], shares[known]
    weight = torch.where(chosen[:, 0] > 0, 1.0, _BACKGROUND_WEIGHT)
    losses = -(scores.gather(1, chosen) * part).sum(-1)
    return (losses * weight).sum() / mean_weight(weight.sum())


def patch_accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the share of the patches with a label on them whose best class is one of theirs."""
    shown = classes[..., 0] > 0
    best, true = logits.argmax(-1)[shown], classes[shown]
    return ((best[:, None] == true) & (true > 0)).any(1).float().mean()


def soften_coordinates(bins: int, blur: float = 1.0) -> Tensor:
    """Return the target distribution (bins, bins) of every coordinate, blurred over its neighbours.

    Args:
        bins: that an axis is cut into.
        blur: standard deviation, in 1/32 of an axis. One gets the look-up going; at less, places are exact.
    """
    index = torch.arange(bins).float()
    near = torch.exp(-((index[:, None] - index[None]) ** 2) / (2 * (blur * bins / _AXIS) ** 2))
    return near / near.sum(1, keepdim=True)
