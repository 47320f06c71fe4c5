"""A 9B with random weights on a GPU: tokens a second, memory, share of the bandwidth reached; see model.py.

Time does not depend on what the weights hold. The bandwidth that counts as the limit is measured first, by
copying a gigabyte inside the GPU, which reads and writes it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from autoglm.model.cache import KVCache
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.topk import page_bounds

CASES = ((1, 2048), (1, 16384), (1, 32768), (8, 2048), (8, 16384), (32, 2048))  # rows, context
STEPS = 20


def copied_gb_per_second(device: torch.device) -> float:
    """Return the bandwidth that a copy of a gigabyte reaches, reading and writing counted."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _timed(lambda: target.copy_(source), device, 10)
    return 2 * source.nbytes / seconds / 1e9


def random_model(config: ModelConfig, device: torch.device) -> PhoneModel:
    """Return a model in bfloat16 that was never on the CPU."""
    with torch.device("meta"):
        model = PhoneModel(config).to(torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    return model


def _timed(run: Any, device: torch.device, steps: int) -> float:
    """Return the seconds of one run, the first three not counted."""
    for _ in range(3):
        run()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        run()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / steps


def _fill(cache: KVCache) -> None:
    for k, v, bounds in zip(cache.keys, cache.values, cache.bounds, strict=True):
        k.normal_()
        v.normal_()
        bounds.copy_(page_bounds(k, cache.page))


def step_seconds(model: PhoneModel, cache: KVCache, context: int) -> float:
    """Return the seconds of a decode step of all slots at one length, the next token's scores included."""
    past = torch.full((cache.num_slots,), context - 1, device=model.device)
    ids = torch.zeros_like(past)
    rows = cache.rows([cache.slot(i) for i in range(cache.num_slots)], [context] * cache.num_slots)
    return _timed(lambda: model.logits(model.decode(ids, past, cache, rows)), model.device, STEPS)


@torch.inference_mode()
def show_gpu() -> None:
    """Measure and print."""
    device, config = torch.device("cuda"), CONFIGS["9b"]
    limit = copied_gb_per_second(device)
    model = random_model(config, device)
    weights = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("table"))
    print(f"{torch.cuda.get_device_name(device)}, a copy reaches {limit:,.0f} GB/s; 9B, bf16, random weights")
    print(
        f"{'rows':>5} {'context':>8} {'gate':>5} {'step':>10} {'tokens/s':>9} {'memory':>9} {'bandwidth':>10}"
    )
    for rows, context in CASES:
        cache = model.new_cache(rows, context)
        _fill(cache)
        for gate in ("off", "on"):
            below = 0 if gate == "on" else 1 << 24
            model.config = dataclasses.replace(
                config, topk=dataclasses.replace(config.topk, dense_below=below)
            )
            torch.cuda.reset_peak_memory_stats(device)
            seconds = step_seconds(model, cache, context)
            kept = min(1.0, config.topk.keep * config.topk.page / context) if gate == "on" else 1.0
            moved = weights + kept * sum(held.nbytes for held in (*cache.keys, *cache.values))
            memory = torch.cuda.max_memory_allocated(device) / 1e9
            print(
                f"{rows:>5} {context:>8} {gate:>5} {1e3 * seconds:>7.2f} ms {rows / seconds:>9,.0f} "
                f"{memory:>6.1f} GB {moved / seconds / 1e9 / limit:>9.0%}",
                flush=True,
            )
        del cache
