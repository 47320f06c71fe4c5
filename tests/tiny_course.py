"""A course of a few steps, sizes and sources for it, as small as the lessons allow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import torch

from autoglm.model.config import NANO, AudioConfig, ImageConfig, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.training.circuits import Circuits
from autoglm.training.course import JOINT, Course, Lesson
from autoglm.training.sources import Source, write_source

SMALL = dataclasses.replace(
    NANO,
    width=48,
    num_layers=4,
    num_heads=4,
    head_dim=12,
    ffn_width=32,
    image=ImageConfig("stem", 32, (4, 4, 4), 288, 576, 162, bins=72, x_token=64, y_token=136),
    audio=AudioConfig(16, 8, 5, batch_norm=True, min_tokens=60, max_tokens=100),
)
SMALLER = dataclasses.replace(SMALL, width=36, num_layers=3, num_heads=2, ffn_width=24)
ROWS = MappingProxyType({"screen": 2, "name": 4, "speech": 2, "text": 2, "copy": 2, "long": 1})
ALPHABET = "abc"


def lesson(steps: int, mix: tuple[str, ...] = ("screen", "text"), **changes: object) -> Lesson:
    return dataclasses.replace(JOINT, steps=steps, mix=mix, rows=ROWS, gates=(), **changes)  # pyright: ignore


def short_course(*lessons: Lesson, release: str = "v1.2") -> Course:
    return Course("tiny", "nano", release, lessons or (lesson(2),), shards=1)  # pyright: ignore


def untaught(tokenizer: str, config: ModelConfig = SMALL, seed: int = 0) -> Source:
    """A model of random weights, with auxiliary heads of its width."""
    torch.manual_seed(seed)
    state = PhoneModel(config).state_dict()
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    heads = Circuits(config, Tokenizer.from_bytes(tokenizer.encode()), ALPHABET).state_dict()
    size = 2 * sum(value.numel() for value in kept.values())
    return Source(config, kept, tokenizer, size, dict(heads), ALPHABET)


def write_untaught(directory: Path, tokenizer: str, config: ModelConfig = SMALL, seed: int = 0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    source = untaught(tokenizer, config, seed)
    write_source(directory, config, source.state, tokenizer, source.circuits, source.alphabet)
    return directory
