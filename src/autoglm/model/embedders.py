"""What turns pixels and mel frames into token vectors; all that is particular to a modality is here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoglm.model.config import AudioConfig, ImageConfig, ModelConfig
from autoglm.model.layers import RmsNorm

_STEM_KERNELS = ((8, 4, 2), (3, 2, 1), (3, 2, 1), (3, 2, 1))  # (kernel, stride, padding): 32 pixels in all


class StemEmbedder(nn.Module):
    """Overlapping convolutions with batch normalisation: learns glyphs fast where the model is small."""

    def __init__(self, config: ImageConfig, width: int) -> None:
        super().__init__()
        channels = (3, *config.channels, width)
        layers: list[nn.Module] = []
        for i, (kernel, stride, padding) in enumerate(_STEM_KERNELS):
            layers += [
                nn.Conv2d(channels[i], channels[i + 1], kernel, stride, padding),
                nn.BatchNorm2d(channels[i + 1]),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, H, W, 3) uint8 into (B, H/32 * W/32, width)."""
        dtype = next(self.parameters()).dtype
        pixels = images.permute(0, 3, 1, 2).to(dtype).div_(127.5).sub_(1)
        return self.layers(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)


class PatchEmbedder(nn.Module):
    """Flat patches through two linear layers: no encoder at all, for large models (Fuyu)."""

    def __init__(self, config: ImageConfig, width: int, eps: float) -> None:
        super().__init__()
        self.patch = config.patch
        self.inner = nn.Linear(config.patch**2 * 3, width)
        self.outer = nn.Linear(width, width)
        self.norm = RmsNorm(width, eps)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, H, W, 3) uint8 into (B, H/patch * W/patch, width)."""
        B, H, W, _ = images.shape
        P = self.patch
        pixels = images.to(self.inner.weight.dtype) / 127.5 - 1
        patches = pixels.view(B, H // P, P, W // P, P, 3).transpose(2, 3).reshape(B, -1, P * P * 3)
        return self.norm(self.outer(F.gelu(self.inner(patches))))


class AudioEmbedder(nn.Module):
    """Two stride-2 convolutions over log-mel frames: 40 ms a token."""

    def __init__(self, config: AudioConfig, width: int, eps: float) -> None:
        super().__init__()
        inner, kernel = config.channels, config.kernel
        self.first = nn.Conv1d(config.mels, inner, kernel, 2, kernel // 2)
        self.second = nn.Conv1d(inner, width, kernel, 2, kernel // 2)
        self.first_norm = nn.BatchNorm1d(inner) if config.batch_norm else nn.Identity()
        self.second_norm = nn.BatchNorm1d(width) if config.batch_norm else nn.Identity()
        self.outer = nn.Linear(width, width)
        self.norm = nn.Identity() if config.batch_norm else RmsNorm(width, eps)

    def forward(self, mels: Tensor) -> Tensor:
        """Embed (B, F, mels) into (B, ceil(F / 4), width)."""
        frames = mels.to(self.first.weight.dtype).transpose(1, 2)
        hidden = F.gelu(self.first_norm(self.first(frames)))
        hidden = F.gelu(self.second_norm(self.second(hidden)))
        return self.norm(self.outer(hidden.transpose(1, 2)))


class CoordinatePlaces(nn.Module):
    """Mark a patch's place by the mean embedding of the coordinate tokens that lie in it.

    Reading a position off a patch and writing it as tokens then share one set of vectors.
    """

    def __init__(self, config: ImageConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, table: Tensor) -> Tensor:
        """Return (rows * columns, width) from the token table (V, width)."""
        c = self.config
        columns, rows = c.width // c.patch, c.height // c.patch
        x = table[c.x_token : c.x_token + c.bins].view(columns, c.bins // columns, -1).mean(1)
        y = table[c.y_token : c.y_token + c.bins].view(rows, c.bins // rows, -1).mean(1)
        return self.project((y[:, None] + x[None]).flatten(0, 1))


def image_embedder(config: ModelConfig) -> StemEmbedder | PatchEmbedder:
    """Return the embedder that the configuration names."""
    if config.image.kind == "stem":
        return StemEmbedder(config.image, config.width)
    return PatchEmbedder(config.image, config.width, config.norm_eps)
