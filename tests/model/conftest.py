"""A tiny real model, its tokenizer, and conversations of every modality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoglm.model.checkpoint import write_release
from autoglm.model.config import NANO, AudioConfig, ImageConfig, ModelConfig, TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import AudioPart, ImagePart, Message, Processor, TextPart
from autoglm.model.tokenizer import Tokenizer
from autoglm.releases import HealthCheck
from autoglm.training.vocabulary import build_tokenizer

TINY = dataclasses.replace(
    NANO,
    name="tiny",
    vocab_size=640,
    width=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_width=48,
    max_context=256,
    image=ImageConfig("stem", 32, (8, 8, 8), 64, 64, 4, bins=32, x_token=128, y_token=160),
    audio=AudioConfig(8, 8, 5, batch_norm=True, min_tokens=3, max_tokens=50),
    topk=TopKConfig(page=8, keep=4, dense_below=512),
)


@pytest.fixture(scope="session")
def tokenizer_text() -> str:
    return build_tokenizer(TINY.vocab_size)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_text: str) -> Tokenizer:
    return Tokenizer.from_bytes(tokenizer_text.encode())


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return TINY


@pytest.fixture(scope="session")
def make_model() -> Callable[[], PhoneModel]:
    def make() -> PhoneModel:
        torch.manual_seed(7)
        model = PhoneModel(TINY).eval().requires_grad_(False)
        for parameter in model.parameters():  # no part may hide behind a zero or a one
            parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_release(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[[], PhoneModel], tokenizer_text: str
) -> Path:
    """The tiny model as a release."""
    model, path = make_model(), tmp_path_factory.mktemp("tiny") / "release"
    write_release(
        path,
        config=model.config,
        tokenizer=tokenizer_text,
        state=model.state_dict(),
        health=HealthCheck((), 0.0),
        model="autoglm-phone-9b",
        variant="tiny",
        name="tiny",
        version="v1.0",
        counter=1,
    )
    return path


@pytest.fixture(scope="session")
def model(make_model: Callable[[], PhoneModel]) -> PhoneModel:
    return make_model()


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, TINY)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    return (np.random.default_rng(2).standard_normal(8000) * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def conversations(picture: Image.Image, sound: np.ndarray) -> dict[str, list[Message]]:
    seen, heard = ImagePart(picture), AudioPart((sound, 16_000))
    return {
        "text": [Message("user", "你是谁?")],
        "image": [Message("user", [seen, TextPart("点击微信")])],
        "audio": [Message("user", [heard])],
        "all": [
            Message("system", "You are a helpful assistant."),
            Message("user", [seen, TextPart("what is at [120,430]?"), heard]),
            Message("assistant", "<think>looking</think><answer>Maps</answer>"),
            Message("user", [TextPart("and this?"), seen]),
        ],
    }
