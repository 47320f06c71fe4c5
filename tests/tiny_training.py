"""The shipped architecture at the size of a test, untrained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from autoglm.model.config import NANO, AudioConfig, ImageConfig, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.training.sources import Source, write_source

SMALL_NANO = dataclasses.replace(
    NANO,
    width=48,
    num_layers=4,
    num_heads=4,
    head_dim=12,
    ffn_width=32,
    image=ImageConfig("stem", 32, (4, 4, 4), 256, 512, 128, bins=32, x_token=128, y_token=160),
    audio=AudioConfig(16, 8, 5, batch_norm=True, min_tokens=60, max_tokens=100),
)


def untrained(tokenizer: str, config: ModelConfig = SMALL_NANO, seed: int = 0) -> Source:
    """A model of random weights."""
    torch.manual_seed(seed)
    state = PhoneModel(config).state_dict()
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return Source(config, kept, tokenizer, 2 * sum(value.numel() for value in kept.values()))


def write_untrained(directory: Path, tokenizer: str, config: ModelConfig = SMALL_NANO, seed: int = 0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_source(directory, config, untrained(tokenizer, config, seed).state, tokenizer)
    return directory
