"""The initialisations that the small model cannot do without.

The two circuits that read a screen form in order: glyph to patch label, then label to look-up to position.
Trained jointly from scratch the second one gets no signal, so the first gets its own loss after the middle
block, and the second starts as a look-up (arXiv:2305.09828 makes the case for such initialisations).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from autoglm.model.layers import Block
from autoglm.model.network import PhoneModel
from autoglm.training.circuits import MIDDLE

_KEY_GAIN = 1.4
_LOOK_UP_GAIN = 0.5
# In bins, where an axis has 32; with more bins they grow, so that they stay the same shares of a screen.
_BIN_SMOOTHING = 2.0
_BINS = 32


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
    for block in model.layers[MIDDLE:]:
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
