"""A language model over bytes in plain PyTorch: the usual blocks at any width, named as a checkpoint's are.

RMSNorm before each part, rotary positions, causal attention, a gated SiLU network, no biases, the output
table apart from the input table. Small enough to train in minutes on one core; built like the models whose
patches it stands for. Nothing of the served model is used, so that the two cannot share a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What language models begin with at any width; an update's size in units of the last place depends on it.
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        width: of the residual stream.
        num_layers: of blocks.
        hidden: of the gated network.
        batch, context: rows and bytes of one training step.
        vocabulary: rows of the two tables; 256 bytes, and more where tokens were added.
    """

    width: int
    num_layers: int
    hidden: int
    batch: int = 8
    context: int = 256
    vocabulary: int = 256
    head_dim: int = 64


class RMSNorm(nn.Module):
    """Root mean square normalisation with a gain a channel (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


class Attention(nn.Module):
    """Causal attention with rotary positions (Su et al., 2021)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q, self.k, self.v, self.o = (_linear(shape.width, shape.width) for _ in range(4))

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q, self.k, self.v))
        q, k, v = rotate(q, rotary), rotate(k, rotary), v
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )  # (B, H, T, head_dim)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """The gated network: ``down(silu(gate(x)) * up(x))`` (Shazeer, 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate, self.up = (_linear(shape.hidden, shape.width) for _ in range(2))
        self.down = _linear(shape.width, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """One block of the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(shape.width), RMSNorm(shape.width)
        self.attention, self.mlp = Attention(shape), Gated(shape)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.width)
        self.head = _linear(shape.vocabulary, shape.width)
        nn.init.normal_(self.embed.weight, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rotary = angles(tokens.shape[1], self.shape.head_dim)
        for layer in self.layers:
            x = layer(x, rotary)
        return self.head(self.norm(x))

    def loss(self, rows: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of rows (B, T + 1)."""
        logits = self(rows[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def angles(length: int, dim: int) -> Tensor:
    """Return the rotation of each position and pair of channels, as complex numbers (T, dim / 2)."""
    rates = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    return torch.polar(torch.ones(length, dim // 2), torch.outer(torch.arange(length), rates))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn pairs of channels of x (B, T, H, dim) by their positions' angles."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary[:, None]).flatten(-2).to(x.dtype)


def _linear(rows: int, columns: int) -> nn.Linear:
    made = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(made.weight, std=INIT_STD)
    return made
