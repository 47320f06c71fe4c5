"""This project's network as a child process: random weights, then decode steps on request.

The protocol of llama_peer.py. ``weights`` says how matrices are held: ``rule`` as the engine does it,
``core`` for the native core at any size, ``int8`` all for torch's kernel, ``float`` none. ``batch``
sequences take each step together.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoglm.model import step
from autoglm.model.codes import multiply_out
from autoglm.model.config import NANO, ModelConfig
from autoglm.model.kernels import MIN_WEIGHTS, Packed, pack
from autoglm.model.network import PhoneModel
from autoglm.model.weights import Form, build_model, expected_tensors, is_matrix

FORMS = {
    "rule": Form(MIN_WEIGHTS),
    "core": Form(is_native=True),
    "int8": Form(1),
    "float": Form(),
}


def form_of(weights: str, config: ModelConfig) -> Form:
    """Return how a model's matrices are held."""
    by_core = weights == "rule" and step.pays(config)
    return FORMS["core" if by_core else weights]


def config_of(shape: dict[str, Any]) -> ModelConfig:
    """Return our configuration of these sizes."""
    return dataclasses.replace(
        NANO,
        name=shape["name"],
        width=shape["width"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        num_kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        ffn_width=shape["ffn"],
        vocab_size=shape["vocab"],
        tie_embeddings=shape["tied"],
    )


def random_model(config: ModelConfig, form: Form) -> PhoneModel:
    """Return a model of random INT8 weights."""
    torch.manual_seed(0)
    shapes, state, packed = expected_tensors(config), dict[str, Tensor](), dict[str, Packed]()
    for name, shape in shapes.items():
        if not is_matrix(name, shape):
            state[name] = torch.ones(shape) if "norm" in name else torch.zeros(shape)
            continue
        columns = math.prod(shape[1:])
        codes = torch.randint(-127, 128, (shape[0], columns), dtype=torch.int8)
        scale = torch.full((shape[0],), columns**-0.5 / 74, dtype=torch.float16)
        if form.packs(name, shape):
            has_bias = name.removesuffix("weight") + "bias" in shapes
            make = step.hold if form.is_native else partial(pack, is_tied=config.tie_embeddings)
            packed[name] = make(name, codes, scale, has_bias=has_bias)
        else:
            state[name] = multiply_out(codes, scale).reshape(shape)
    return build_model(config, state, packed)


def run(model: PhoneModel, batch: int, steps: int) -> list[tuple[float, float]]:
    """Decode from an empty cache; return (wall, CPU) milliseconds of every step."""
    cache = model.new_cache(batch, 1024)
    tables, token, times = [cache.slot(i) for i in range(batch)], torch.ones(batch, dtype=torch.long), []
    with torch.inference_mode():
        for length in range(1, steps + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            rows = cache.rows(tables, [length] * batch)
            hidden = model.decode(token, torch.full((batch,), length - 1), cache, rows)
            token = model.logits(hidden).argmax(-1)
            token.tolist()
            times.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    return times


def main() -> None:
    """Serve one benchmark."""
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    config = config_of(job["shape"])
    model = random_model(config, form_of(job["weights"], config))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(run(model, job["batch"], job["steps"])), flush=True)


if __name__ == "__main__":
    main()
