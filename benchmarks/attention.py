"""Time a decode step with the Top-K gate against the best dense attention.

    python benchmarks/attention.py                       # both sizes, 2k to 32k tokens
    python benchmarks/attention.py --sizes nano --json

For each context length, in one run and interleaved so that a busy machine slows all alike:

``attention``
    one layer's attention, the gate's upkeep of its bounds included. Dense is the faster of the grouped
    products that the network uses and of ``scaled_dot_product_attention`` with a group's heads as its
    queries. (With ``enable_gqa`` at query length 1 that function is far slower and no baseline.)
``step``
    a whole decode step of the real network: nano with all its layers as the engine runs it, by the
    native core, 9B with one of its 40. What a user saves, for the weights are read either way; with
    ``--rows 16`` they are shared by as many. Dense is the faster of the native core and torch.
``prefill``
    one layer's attention for the last ``--piece`` tokens of a prompt of that length, as the engine reads long
    prompts. Dense is the faster of the network's blocks and of ``scaled_dot_product_attention``.
``bytes``
    an estimate, not a measurement: the gigabytes that a decode step of a 9B recipe must move, weights
    as counted by ``autoglm model size`` and the cache in bf16. Where memory is the limit, as on a
    phone, time goes with it.

The gate is forced on at every length; what is saved with the configuration's own ``dense_below``, which keeps
it off where the table shows a loss, stands in the last column. Weights and cache are random: time does not
depend on what they hold. Medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoglm.model import step
from autoglm.model.cache import KVCache
from autoglm.model.codes import quantize_rows
from autoglm.model.config import CONFIGS, ModelConfig, TopKConfig
from autoglm.model.kernels import Packed
from autoglm.model.network import PhoneModel
from autoglm.model.pages import PageTable, Rows
from autoglm.model.prefill import dense_prefill, topk_prefill
from autoglm.model.sizes import size_table
from autoglm.model.topk import dense_decode, page_bounds, topk_decode, update_bounds
from autoglm.model.weights import build_model

CONTEXTS = (2048, 8192, 16384, 32768)
DTYPES = {"nano": torch.float32, "9b": torch.bfloat16}
LAYERS = {"nano": 6, "9b": 1}
ESTIMATED = ("9b-int8-pruned", "9b-int4-pruned")
# The attention cases turn over so many caches, as a model does, that one is cold when its turn comes again.
CACHES = 6


def medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each run, all of them once a round, two rounds to warm up.

    With one thread they are seconds of the CPU: a neighbour stretches them less than those of the clock.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


def sdpa_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Rows) -> Tensor:
    """Attend densely by torch's fused kernel, rows of equal length in slots 0, 1, ..."""
    length = rows.lengths[0]
    k, v = k_cache[: len(rows), :, :length], v_cache[: len(rows), :, :length]
    return F.scaled_dot_product_attention(q.unflatten(1, (k.shape[1], -1)), k, v).reshape(q.shape)


def slots(rows: int, context: int, page: int) -> Rows:
    """Return where ``rows`` sequences of ``context`` tokens lie, one a slot."""
    count = context // page
    tables = [PageTable(count, range(row * count, (row + 1) * count)) for row in range(rows)]
    return Rows(tables, [context] * rows, page)


def attention_case(
    config: ModelConfig, dtype: torch.dtype, context: int, rows: int, repeats: int
) -> dict[str, float]:
    """Return milliseconds of one layer's attention for ``rows`` rows by each way."""
    groups, dim, page = config.num_kv_heads, config.head_dim, config.topk.page
    caches = [torch.randn(2, rows, groups, context, dim).to(dtype) for _ in range(CACHES)]
    bounds = [page_bounds(cache[0], page) for cache in caches]
    q = torch.randn(rows, config.num_heads, dim).to(dtype)
    where = slots(rows, context, page)

    def dense() -> None:
        for k, v in caches:
            dense_decode(q, k, v, where)

    def fused() -> None:
        for k, v in caches:
            sdpa_decode(q, k, v, where)

    def gated() -> None:
        for (k, v), bound in zip(caches, bounds, strict=True):
            update_bounds(bound, k[:, :, -1], where)
            topk_decode(q, k, v, bound, where, config.topk.keep)

    seconds = medians({"grouped": dense, "sdpa": fused, "topk": gated}, repeats)
    return {name: 1e3 * value / CACHES for name, value in seconds.items()}


def sdpa_prefill(q: Tensor, k: Tensor, v: Tensor, limits: Tensor) -> Tensor:
    """Attend densely by torch's fused kernel, q (H, T, D) to k and v (G, S, D) under the exact mask."""
    visible = torch.arange(k.shape[1]) < limits[:, None]
    attended = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible, enable_gqa=True)
    return attended[0]


def prefill_case(
    config: ModelConfig, dtype: torch.dtype, context: int, piece: int, repeats: int
) -> dict[str, float]:
    """Return milliseconds of one layer's attention for the last ``piece`` tokens of a prompt by each way."""
    groups, dim, page = config.num_kv_heads, config.head_dim, config.topk.page
    k, v = torch.randn(2, groups, context, dim).to(dtype)
    q = torch.randn(config.num_heads, piece, dim).to(dtype)
    bounds, limits = page_bounds(k, page), torch.arange(context - piece, context) + 1
    runs = {
        "blocks": lambda: dense_prefill(q, k, v, limits),
        "sdpa": lambda: sdpa_prefill(q, k, v, limits),
        "topk": lambda: topk_prefill(q, k, v, bounds, limits, keep=config.topk.keep, page=page),
    }
    return {name: 1e3 * value for name, value in medians(runs, repeats).items()}


def step_case(
    name: str, dtype: torch.dtype, contexts: tuple[int, ...], rows: int, repeats: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each context with the milliseconds of a decode step of the network, dense and gated."""
    config = dataclasses.replace(CONFIGS[name], num_layers=LAYERS[name])
    if config.vocab_size > 1 << 16:  # the table is no part of a step: one row is read
        config = dataclasses.replace(config, vocab_size=256)
    by_torch = PhoneModel(config).eval().to(dtype)
    ours = native(by_torch) if step.pays(config) else by_torch
    dense, gated = (dataclasses.replace(config.topk, dense_below=below) for below in (1 << 24, 0))
    ways = {"grouped": (by_torch, dense), "topk": (ours, gated)}
    if ours is not by_torch:
        ways["native"] = ours, dense
    for context in contexts:
        cache = ours.new_cache(rows, context)
        fill(cache)
        runs = {kind: functools.partial(decode, *way, cache, context) for kind, way in ways.items()}
        yield context, {kind: 1e3 * value for kind, value in medians(runs, repeats).items()}


def native(model: PhoneModel) -> PhoneModel:
    """Return the same model with its matrices as INT8, held for the native core."""
    held, rest = dict[str, Packed](), dict[str, Tensor]()
    state = model.state_dict()
    for name, weight in state.items():
        if step.holds(name, weight.shape):
            has_bias = name.removesuffix("weight") + "bias" in state
            held[name] = step.hold(name, *quantize_rows(weight), has_bias=has_bias)
        else:
            rest[name] = weight
    return build_model(model.config, rest, held)


def decode(model: PhoneModel, gate: TopKConfig, cache: KVCache, context: int) -> None:
    """Run one step that brings every slot of the cache to ``context`` tokens."""
    model.config = dataclasses.replace(model.config, topk=gate)
    past = torch.full((cache.num_slots,), context - 1)
    model.decode(torch.zeros_like(past), past, cache, slots(cache.num_slots, context, cache.page))


def byte_estimate(name: str, context: int, rows: int) -> dict[str, float]:
    """Return the gigabytes a decode step of a 9B recipe moves, dense and gated."""
    config, report = CONFIGS[name], size_table(name)
    weights = sum(part.bytes for part in report.parts if part.name in ("blocks", "norm", "head"))
    page, keep = config.topk.page, config.topk.keep
    # The kept pages, and the bounds: 2 * D values for each page of 2 * D * page.
    kept = min(1.0, keep * page / context + 1 / page)
    cache = rows * context * report.cache_bytes_per_token
    return {"all": (weights + cache) / 1e9, "topk": (weights + kept * cache) / 1e9}


def fill(cache: KVCache) -> None:
    """Fill every slot with random keys and values and their bounds."""
    for k, v, bounds in zip(cache.keys, cache.values, cache.bounds, strict=True):
        k.normal_()
        v.normal_()
        bounds.copy_(page_bounds(k, cache.page))


def result(size: str, what: str, context: int, costs: dict[str, float]) -> dict[str, Any]:
    """Return one line of the table: the best dense way, the gate, the share saved, and that as configured."""
    topk = costs.pop("topk")
    way, dense = min(costs.items(), key=lambda item: item[1])
    return {
        "size": size,
        "what": what,
        "unit": "GB" if what == "bytes" else "ms",
        "context": context,
        "dense": way,
        "dense_cost": round(dense, 3),
        "topk_cost": round(topk, 3),
        "saved": round(1 - topk / dense, 3),
        "saved_as_set": round(1 - topk / dense, 3) if _gated(size, context) else 0.0,
    }


def _gated(size: str, context: int) -> bool:
    """Tell whether the configuration turns the gate on at this length; elsewhere dense is what runs."""
    topk = CONFIGS[size].topk
    return context >= max(topk.dense_below, topk.keep * topk.page + 1)


def show(line: dict[str, Any]) -> None:
    """Print one line of the table."""
    print(
        f"{line['size']:>15} {line['what']:>10} {line['context']:>8} {line['dense']:>11} "
        f"{line['dense_cost']:>9.3f} {line['topk_cost']:>9.3f} {line['unit']} {line['saved']:>8.1%} "
        f"{line['saved_as_set']:>8.1%}",
        flush=True,
    )


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the results, one at a time."""
    for size in arguments.sizes:
        config, dtype = CONFIGS[size], DTYPES[size]
        for context in arguments.contexts:
            times = attention_case(config, dtype, context, arguments.rows, arguments.repeats)
            yield result(size, "attention", context, times)
            times = prefill_case(config, dtype, context, arguments.piece, max(1, arguments.repeats // 3))
            yield result(size, "prefill", context, times)
        steps = step_case(size, dtype, tuple(arguments.contexts), arguments.rows, arguments.repeats)
        for context, times in steps:
            yield result(size, "step", context, times)
    for name in ESTIMATED if "9b" in arguments.sizes else ():
        for context in arguments.contexts:
            yield result(name, "bytes", context, byte_estimate(name, context, arguments.rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time the Top-K gate against the best dense attention.")
    parser.add_argument("--sizes", nargs="+", choices=sorted(DTYPES), default=["nano", "9b"])
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS), help="tokens")
    parser.add_argument("--rows", type=int, default=1, help="sequences decoded at once")
    parser.add_argument("--piece", type=int, default=256, help="tokens of a prompt read at once")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if not arguments.json:
        print(f"threads {arguments.threads}, rows {arguments.rows}, nano float32, 9b bfloat16")
        print("           size       what  context  best dense     dense     top-k       saved   as set")
    lines: list[dict[str, Any]] = []
    with torch.inference_mode():
        for line in measure(arguments):
            lines.append(line)
            if not arguments.json:
                show(line)
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "rows": arguments.rows, "results": lines}, indent=1))


if __name__ == "__main__":
    main()
