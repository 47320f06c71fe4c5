"""A tiny real model for tests: random weights, a byte-level tokenizer.

Its answers are babble of a fixed kind: greedy, they are the same every time, and differ between seeds.
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from autoglm.model.config import AudioConfig, ImageConfig, ModelConfig, TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import CONTROLS

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
    max_context=256,
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


def random_state(seed: int, num_controls: int = len(CONTROLS)) -> dict[str, torch.Tensor]:
    """Return random weights whose output never prefers a control token, so that answers are long."""
    torch.manual_seed(seed)
    state = {
        name: torch.randn_like(tensor) * 0.2 if tensor.dim() > 1 else tensor.clone()
        for name, tensor in PhoneModel(TINY).state_dict().items()
    }
    head = state["head.weight"]
    head[:num_controls] = 0.0
    head[len(CONTROLS) + 256 :] = 0.0
    return state
