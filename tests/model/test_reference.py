"""The network against a second implementation, from the design's text, in float64, one token at a time."""

from __future__ import annotations

import cmath
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from autoglm.model.config import CONFIGS, ModelConfig, TopKConfig
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.prompt import Prompt

TOKENS = 75


def tiny_config(**changes: object) -> ModelConfig:
    config = dataclasses.replace(
        CONFIGS["nano"],
        vocab_size=256,
        width=48,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        ffn_width=40,
        topk=TopKConfig(page=32, keep=16, dense_below=1024),
    )
    return dataclasses.replace(config, **changes)  # pyright: ignore[reportArgumentType]


def random_model(config: ModelConfig) -> PhoneModel:
    """Return a model in which every gain, bias and matrix is random, so that none can be left out unseen."""
    torch.manual_seed(7)
    model = PhoneModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.4 if parameter.dim() == 1 else 0.0, 0.25)
    return model


def mixed_prompt() -> Prompt:
    """Return text with two media spans: a 5 by 6 picture and a clip of 9 tokens (as ids, embedders apart)."""
    spans = torch.zeros(TOKENS, dtype=torch.long)
    spans[8:38], spans[45:54] = 1, 2
    positions: list[tuple[int, int, int]] = [(t, t, t) for t in range(8)]
    positions += [(8, 8 + row, 8 + column) for row in range(5) for column in range(6)]
    positions += [(t, t, t) for t in range(14, 14 + TOKENS - 38)]
    ids = torch.randint(0, 256, (TOKENS,), generator=torch.Generator().manual_seed(5))
    return Prompt(ids, torch.tensor(positions), spans, (), (), (), (), 14 + TOKENS - 38)


# The second implementation: plain Python over float64 vectors, no batch, no cache, no fused anything.


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / math.sqrt(float((x * x).mean()) + eps) * gain


def turn(head: Tensor, position: list[int], config: ModelConfig) -> Tensor:
    """Rotate channel i and its partner by the angle of pair i: axes t, h, w take pairs in turn."""
    pairs = int(config.head_dim * config.rotary_fraction) // 2
    out = head.clone()
    for i in range(pairs):
        angle = position[i % 3] / config.rope_base ** (i / pairs)
        turned = complex(head[i], head[pairs + i]) * cmath.exp(1j * angle)
        out[i], out[pairs + i] = turned.real, turned.imag
    return out


def may_see(spans: list[int], query: int, key: int) -> bool:
    return key <= query or (spans[key] == spans[query] != 0)


def pages_read(queries: list[Tensor], keys: list[Tensor], gate: TopKConfig) -> list[int]:
    """Return the keys that one group reads: those of its best pages, the first and the last always."""
    pages = [
        list(range(start, min(start + gate.page, len(keys)))) for start in range(0, len(keys), gate.page)
    ]

    def bound(page: list[int]) -> float:
        held = torch.stack([keys[j] for j in page])
        high, low = held.max(0).values, held.min(0).values
        return max(float(torch.maximum(q * high, q * low).sum()) for q in queries)

    best = sorted(pages[1:-1], key=bound, reverse=True)[: gate.keep - 2]
    return sorted(j for page in (pages[0], *best, pages[-1]) for j in page)


def reference_block(
    w: dict[str, Tensor], xs: list[Tensor], positions: list[list[int]], spans: list[int], c: ModelConfig
) -> list[Tensor]:
    """Run one block over the whole sequence."""
    H, G, D = c.num_heads, c.num_kv_heads, c.head_dim
    heads: list[list[Tensor]] = []  # a token each: H queries, G keys, G values
    for x, position in zip(xs, positions, strict=True):
        fused = w["qkv.weight"] @ rms_norm(x, w["attention_norm.weight"], c.norm_eps) + w["qkv.bias"]
        parts = list(fused.split(D))
        heads.append([turn(part, position, c) for part in parts[: H + G]] + parts[H + G :])
    out: list[Tensor] = []
    for i, x in enumerate(xs):
        seen = [j for j in range(len(xs)) if may_see(spans, i, j)]
        gated = len(seen) >= max(c.topk.dense_below, c.topk.keep * c.topk.page + 1)
        merged: list[Tensor] = []
        for h in range(H):
            g = h // (H // G)
            queries, keys = heads[i][g * (H // G) : (g + 1) * (H // G)], [heads[j][H + g] for j in seen]
            read = pages_read(queries, keys, c.topk) if gated else seen
            scores = torch.stack([heads[i][h] @ heads[j][H + g] for j in read]) / math.sqrt(D)
            values = torch.stack([heads[j][H + G + g] for j in read])
            merged.append(scores.softmax(0) @ values)
        y = x + rms_norm(w["out.weight"] @ torch.cat(merged), w["attention_post_norm.weight"], c.norm_eps)
        gate, up = (w["gate_up.weight"] @ rms_norm(y, w["ffn_norm.weight"], c.norm_eps)).chunk(2)
        fed = w["down.weight"] @ (gate * torch.sigmoid(gate) * up)
        out.append(y + rms_norm(fed, w["ffn_post_norm.weight"], c.norm_eps))
    return out


def reference(model: PhoneModel, prompt: Prompt) -> Tensor:
    """Return the normalised final stream of every token, (T, width) float64."""
    config = model.config
    weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    xs = list(weights["table.weight"][prompt.token_ids] * model.embed_scale)
    positions, spans = prompt.positions.tolist(), prompt.spans.tolist()
    for i in range(config.num_layers):
        prefix = f"blocks.{i}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        xs = reference_block(block, xs, positions, spans, config)
    return torch.stack([rms_norm(x, weights["norm.weight"], config.norm_eps) for x in xs])


def first_tokens(prompt: Prompt, count: int) -> Prompt:
    return dataclasses.replace(
        prompt,
        token_ids=prompt.token_ids[:count],
        positions=prompt.positions[:count],
        spans=prompt.spans[:count],
    )


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_the_training_pass_is_the_block_of_the_design() -> None:
    """Every token of a mixed sequence, M-RoPE, span mask and both post-norms included, comes out the same."""
    prompt, model = mixed_prompt(), random_model(tiny_config())

    stream, _ = model.forward(model.embed(prompt)[None], prompt.positions, span_bias(prompt.spans))

    assert_same(stream[0], reference(model, prompt))


@torch.no_grad()
@pytest.mark.parametrize("gate", [TopKConfig(32, 16, 1024), TopKConfig(8, 16, 0), TopKConfig(8, 4, 61)])
def test_prefill_and_decode_are_the_same_function(gate: TopKConfig) -> None:
    """A prompt prefilled, then continued token by token, ends where the reference ends.

    The gate is off, on with all pages kept, and on with 4 of up to 10 pages from the first decoded token.
    """
    prompt, model = mixed_prompt(), random_model(tiny_config(topk=gate))
    expected = reference(model, prompt)
    cache = model.new_cache(num_slots=3, max_context=96)
    start = 60

    hidden = model.prefill(first_tokens(prompt, start), cache, cache.slot(2))
    assert_same(hidden, expected[start - 1])
    for t in range(start, TOKENS):
        rows = cache.rows([cache.slot(2)], [t + 1])
        out = model.decode(prompt.token_ids[t : t + 1], prompt.positions[t : t + 1, 0], cache, rows)
        assert_same(out[0], expected[t])


@torch.no_grad()
def test_slots_at_different_lengths_decode_together() -> None:
    """Three conversations of unequal length in one step each get what the reference gives them alone."""
    prompt, model = mixed_prompt(), random_model(tiny_config())
    cache = model.new_cache(num_slots=4, max_context=96)
    lengths, slots = [70, 40, 57], [3, 0, 1]
    for length, slot in zip(lengths, slots, strict=True):
        model.prefill(first_tokens(prompt, length), cache, cache.slot(slot))

    at = torch.tensor(lengths)
    rows = cache.rows([cache.slot(slot) for slot in slots], [length + 1 for length in lengths])
    out = model.decode(prompt.token_ids[at], prompt.positions[at, 0], cache, rows)

    expected = reference(model, prompt)
    assert_same(out, expected[lengths])


@torch.no_grad()
def test_next_token_scores_use_the_shared_table() -> None:
    """With tied embeddings a token's score is its table row against the final stream."""
    model = random_model(tiny_config())
    hidden = torch.randn(48, generator=torch.Generator().manual_seed(1))

    scores = model.logits(hidden)

    table = model.state_dict()["table.weight"].double()
    assert_same(scores, torch.stack([row @ hidden.double() for row in table]))


@torch.no_grad()
@pytest.mark.parametrize("heads, groups, fraction", [(6, 6, 1.0), (6, 1, 0.5), (2, 2, 0.25)])
def test_other_head_layouts_agree_too(heads: int, groups: int, fraction: float) -> None:
    """One head a group, one group for all, full and quarter rotary: the same function."""
    config = tiny_config(num_heads=heads, num_kv_heads=groups, rotary_fraction=fraction, num_layers=1)
    prompt, model = first_tokens(mixed_prompt(), 50), random_model(config)

    cache = model.new_cache(1, 64)
    hidden = model.prefill(prompt, cache, cache.slot(0))

    assert_same(hidden, reference(model, prompt)[-1])
