"""A tiny real model for the service's tests: random weights, a byte-level tokenizer, packed as it ships.

Its answers are babble of a fixed kind: greedy, they are the same every time, and differ between releases.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from autoglm import patch
from autoglm.model.checkpoint import write_release
from autoglm.model.config import AudioConfig, ImageConfig, ModelConfig, TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import CONTROLS
from autoglm.releases import HealthCheck, HealthPrompt

TINY = ModelConfig(
    name="tiny",
    vocab_size=288,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_width=48,
    rope_base=100.0,
    rotary_fraction=0.5,
    norm_eps=1e-5,
    post_norm_gain=1.0,
    tie_embeddings=False,
    max_context=1024,
    image=ImageConfig("patches", 8, (), 16, 16, 16, bins=0, x_token=0, y_token=0),
    audio=AudioConfig(16, 8, 3, batch_norm=False, min_tokens=4, max_tokens=50),
    topk=TopKConfig(page=32, keep=4, dense_below=4096),
)


def tokenizer_text() -> str:
    """Return a tokenizer.json whose tokens are the control tokens and single bytes."""
    names = [*CONTROLS, *sorted(ByteLevel.alphabet())]
    backend = Backend(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    return backend.to_str()


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Return random weights that end a thought now and then, but never an answer, which is thus long."""
    torch.manual_seed(seed)
    state = {
        name: torch.randn_like(tensor) * 0.2 if tensor.dim() > 1 else tensor.clone()
        for name, tensor in PhoneModel(TINY).state_dict().items()
    }
    head = state["head.weight"]
    head[: len(CONTROLS)] = 0.0
    head[len(CONTROLS) + 256 :] = 0.0
    return state


def write_tiny(target: Path, version: str, counter: int, *, expect: str = "") -> Path:
    """Write a release directory; ``expect`` is what its self-test wants to read, anything by default."""
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect=expect, max_tokens=8)
    write_release(
        target,
        config=TINY,
        tokenizer=tokenizer_text(),
        state=random_state(counter),
        health=HealthCheck((prompt,)),
        model="autoglm-phone-9b",
        variant="nano-int8",
        name="autoglm-phone-nano",
        version=version,
        counter=counter,
    )
    return target


def write_store(root: Path) -> Path:
    """Write releases and their packages as they ship: ``store/v1.2.wpatch`` (full), ``store/v1.3.wpatch``."""
    old, new = write_tiny(root / "v1.2", "v1.2", 12), write_tiny(root / "v1.3", "v1.3", 13)
    store = root / "store"
    store.mkdir()
    patch.diff(None, old, store / "v1.2.wpatch")
    patch.diff(old, new, store / "v1.3.wpatch")
    return store
