"""Tiny real releases: random weights, a byte-level tokenizer, the whole directory as devices hold it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoglm.engine import Engine, GenerationRequest
from autoglm.model.checkpoint import write_release
from autoglm.model.kernels import Packed
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Message
from autoglm.model.tokenizer import Tokenizer
from autoglm.releases import HealthCheck, HealthPrompt, Manifest
from tiny_model import TINY, random_state, tokenizer_text

MakeRelease = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The tokenizer of the tiny releases."""
    return Tokenizer.from_bytes(tokenizer_text().encode())


@pytest.fixture(scope="session")
def make_release(tmp_path_factory: pytest.TempPathFactory) -> MakeRelease:
    """Write a tiny release directory: ``make_release("v1.2", seed=1)``."""
    root = tmp_path_factory.mktemp("releases")

    def make(
        version: str,
        *,
        seed: int,
        expect: str = "",
        change: Mapping[str, torch.Tensor] | None = None,
        min_tokens_per_s: float = 0.0,
    ) -> Path:
        target = root / f"{len(list(root.iterdir()))}-{version}"
        prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect=expect, max_tokens=8)
        write_release(
            target,
            config=TINY,
            tokenizer=tokenizer_text(),
            state=random_state(seed) | dict(change or {}),
            health=HealthCheck((prompt,), min_tokens_per_s),
            model="autoglm-phone-9b",
            variant="tiny",
            name="tiny",
            version=version,
            counter=seed,
        )
        return target

    return make


@pytest.fixture(scope="session")
def old_dir(make_release: MakeRelease) -> Path:
    """A release v1.2."""
    return make_release("v1.2", seed=12)


@pytest.fixture(scope="session")
def new_dir(make_release: MakeRelease) -> Path:
    """A release v1.3 with other weights."""
    return make_release("v1.3", seed=13)


@pytest.fixture
def engine(old_dir: Path) -> Iterator[Engine]:
    """An engine that serves v1.2 with four slots."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=4, queue=64) as engine:
        yield engine


@pytest.fixture(scope="session")
def ask() -> Callable[..., GenerationRequest]:
    """Make a request of one user message: ``ask("hello", max_tokens=8)``."""

    def make(text: str, **options: object) -> GenerationRequest:
        return GenerationRequest([Message("user", text)], **options)  # type: ignore[arg-type]

    return make


def place_of(weight: torch.Tensor | Packed) -> int:
    """Return where a weight is in memory, whatever holds it."""
    return weight.data_ptr() if isinstance(weight, torch.Tensor) else id(weight.held)


def rewrite_weights(directory: Path, name: str, value: float) -> None:
    """Put ``value`` into the first place of a stored float tensor, and let the manifest agree."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    old = Manifest.read(directory)
    names = {key: getattr(old, key) for key in ("model", "variant", "name", "version", "counter")}
    (directory / "manifest.json").write_bytes(Manifest.of_directory(directory, **names).to_bytes())


@pytest.fixture(scope="session")
def nan_dir(make_release: MakeRelease) -> Path:
    """A release whose files agree with its manifest, but one weight is NaN."""
    directory = make_release("v1.4", seed=14)
    rewrite_weights(directory, "norm.weight", float("nan"))
    return directory


class Gate:
    """Holds a model's decoding until it is opened.

    Attributes:
        reached: set when the model is held for the first time.
        opened: set it to let the model go on.
    """

    def __init__(self, model: PhoneModel) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        decode = model.decode

        def gated(*arguments: Any) -> torch.Tensor:
            self.reached.set()
            assert self.opened.wait(60)
            return decode(*arguments)

        model.decode = gated  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def hold_decoding() -> Callable[[PhoneModel], Gate]:
    """Put a gate before a model's decoding: ``hold_decoding(engine.active.model)``."""
    return Gate


@pytest.fixture(scope="session")
def poison() -> Callable[[PhoneModel], None]:
    """Make a model compute NaN. Releases share equal tensors: the weight is replaced, not written."""

    def make_nan(model: PhoneModel) -> None:
        weight = torch.full_like(model.norm.weight, float("nan"))
        model.norm.weight = torch.nn.Parameter(weight, requires_grad=False)

    return make_nan
