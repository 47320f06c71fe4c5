"""What only training has: auxiliary heads, and the initialisations that the small model cannot do without.

The two circuits that read a screen form in order: glyph to patch label, then label to look-up to position.
Trained jointly from scratch the second one gets no signal, so the first gets its own loss after the middle
block, and the second starts as a look-up (arXiv:2305.09828 makes the case for such initialisations).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.model.config import ModelConfig
from autoglm.model.layers import Block, RmsNorm
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import LABEL_TOKEN
from autoglm.training.actions import ALL_LABELS

AUX_BLOCKS = 3  # the auxiliary losses read the stream after this many blocks
_BACKGROUND_WEIGHT = 0.1
_KEY_GAIN = 1.4
_LOOK_UP_GAIN = 0.5
# In bins, where an axis has 32; with more bins they grow, so that they stay the same shares of a screen.
_BIN_SMOOTHING = 2.0
_BIN_SOFTENING = 1.0
_BINS = 32


class TrainingHeads(nn.Module):
    """Patch labels after the stem and after the middle block, and CTC over characters for sound."""

    def __init__(self, config: ModelConfig, alphabet: str) -> None:
        """Args: the model's sizes; the characters that transcripts are made of."""
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.alphabet = {character: i + 1 for i, character in enumerate(alphabet)}  # 0 is CTC's blank
        self.patch_norm = RmsNorm(width, eps)
        self.stem_norm = RmsNorm(width, eps)
        self.stem = nn.Linear(width, len(ALL_LABELS) + 1)
        self.sound_norm = RmsNorm(width, eps)
        self.sound = nn.Linear(width, len(alphabet) + 1)
        weights = torch.ones(len(ALL_LABELS) + 1)
        weights[0] = _BACKGROUND_WEIGHT
        self.register_buffer("class_weights", weights, persistent=False)

    def patch_logits(self, model: PhoneModel, hidden: Tensor) -> Tensor:
        """Score patch labels (B, N, labels + 1) from the stream, against the label tokens' own embeddings."""
        label_ids = torch.tensor([0, *range(LABEL_TOKEN, LABEL_TOKEN + len(ALL_LABELS))])
        return F.linear(self.patch_norm(hidden.float()), model.table.weight[label_ids])

    def patch_loss(self, logits: Tensor, patches: Tensor) -> Tensor:
        """Return the cross entropy of patch labels, background at a tenth."""
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            patches.flatten(),
            self.get_buffer("class_weights"),
            ignore_index=-100,
        )

    def sound_loss(self, hidden: Tensor, transcripts: tuple[str, ...]) -> Tensor:
        """Return the CTC loss (Graves et al. 2006) of the stream over a clip (B, N, width)."""
        scores = self.sound(self.sound_norm(hidden.float())).float().log_softmax(-1).transpose(0, 1)
        spelt = [[self.alphabet[c] for c in text if c in self.alphabet] for text in transcripts]
        lengths = torch.full((len(spelt),), scores.shape[0])
        return F.ctc_loss(
            scores,
            torch.tensor([i for word in spelt for i in word]),
            lengths,
            torch.tensor([len(word) for word in spelt]),
            zero_infinity=True,
        )


@torch.no_grad()
def start_look_up(model: PhoneModel, generator: torch.Generator) -> None:
    """Initialise the later blocks as a look-up and the coordinate tokens as ordinals.

    In the blocks after the label loss Wq = 1.4 Wk (same content attends to same content) and Wo = Wv
    transposed (what is found is copied out); a patch's place enters the stream as the coordinate tokens'
    own vectors; neighbouring coordinate tokens start out similar.
    """
    places, image = model.places, model.config.image
    if places is None:
        return
    places.project.weight.copy_(torch.eye(model.config.width))
    for block in model.layers[AUX_BLOCKS:]:
        _start_block(block)
    index = torch.arange(image.bins).float()
    near = torch.exp(
        -((index[:, None] - index[None]) ** 2) / (2 * (_BIN_SMOOTHING * image.bins / _BINS) ** 2)
    )
    for first in (image.x_token, image.y_token):
        noise = torch.randn(image.bins, model.config.width, generator=generator)
        model.table.weight[first : first + image.bins] = F.normalize(near @ noise, dim=-1)


def _start_block(block: Block) -> None:
    heads, groups, dim = block.num_heads, block.num_kv_heads, block.head_dim
    fused, out = block.qkv.weight, block.out.weight
    block.qkv.bias.zero_()
    shared = heads // groups
    for g in range(groups):
        key = fused[(heads + g) * dim : (heads + g + 1) * dim]
        value = fused[(heads + groups + g) * dim : (heads + groups + g + 1) * dim]
        key.mul_(_KEY_GAIN)
        for i in range(g * shared, (g + 1) * shared):
            fused[i * dim : (i + 1) * dim] = key
            out[:, i * dim : (i + 1) * dim] = value.t()
    block.attention_post_norm.weight.fill_(_LOOK_UP_GAIN)


def soften_coordinates(bins: int) -> Tensor:
    """Return the target distribution (bins, bins) of every coordinate, blurred over its neighbours."""
    index = torch.arange(bins).float()
    near = torch.exp(-((index[:, None] - index[None]) ** 2) / (2 * (_BIN_SOFTENING * bins / _BINS) ** 2))
    return near / near.sum(1, keepdim=True)


def soft_targets(config: ModelConfig) -> Tensor:
    """Return the target distribution of every token (V, V): one-hot, coordinates blurred over neighbours."""
    table = torch.eye(config.vocab_size)
    image = config.image
    near = soften_coordinates(image.bins)
    for first in (image.x_token, image.y_token):
        last = first + image.bins
        table[first:last] = 0
        table[first:last, first:last] = near
    return table
