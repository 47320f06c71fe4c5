"""The network's promises: a cache that equals the whole sequence, one set of blocks, placement, masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autoglm.errors import EngineError, RequestError
from autoglm.model.config import TopKConfig
from autoglm.model.network import PhoneModel, span_bias
from autoglm.model.prompt import Message, Processor, Prompt, TextPart
from autoglm.model.tokenizer import Tokenizer

KINDS = ("text", "image", "audio", "all")
NEXT = (300, 9, 577, 301)


def whole(model: PhoneModel, prompt: Prompt, extra: tuple[int, ...] = ()) -> Tensor:
    """Return the final stream (T + extra, width) of one pass over everything, without a cache."""
    x = model.embed(prompt)
    positions, spans = prompt.positions, prompt.spans
    if extra:
        x = torch.cat([x, model.embed_tokens(torch.tensor(extra))])
        more = prompt.next_position + torch.arange(len(extra))
        positions = torch.cat([positions, more[:, None].expand(-1, 3)])
        spans = torch.cat([spans, torch.zeros(len(extra), dtype=torch.long)])
    return model(x[None], positions, span_bias(spans))[0][0]


def step(model: PhoneModel, prompt: Prompt, cache, slot: int, token: int, index: int) -> Tensor:
    return model.decode(
        torch.tensor([token]),
        torch.tensor([prompt.next_position + index]),
        cache,
        cache.rows([cache.slot(slot)], [len(prompt) + index + 1]),
    )[0]


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_equal_one_pass(model, processor: Processor, conversations, kind: str) -> None:
    """Prefill followed by decoding token by token gives what one pass over the whole sequence gives."""
    prompt = processor.prompt(conversations[kind], enable_thinking=False)
    reference = whole(model, prompt, NEXT)
    cache = model.new_cache(num_slots=3, max_context=128)
    last = model.prefill(prompt, cache, cache.slot(2))
    torch.testing.assert_close(last, reference[len(prompt) - 1], atol=2e-5, rtol=1e-4)
    for i, token in enumerate(NEXT):
        hidden = step(model, prompt, cache, 2, token, i)
        torch.testing.assert_close(hidden, reference[len(prompt) + i], atol=2e-5, rtol=1e-4)


def test_slots_decode_together_as_they_would_alone(model, processor: Processor, conversations) -> None:
    """Sequences of different lengths in one decode step do not see each other."""
    prompts = [processor.prompt(conversations[kind], enable_thinking=True) for kind in KINDS]
    cache = model.new_cache(num_slots=4, max_context=128)
    for slot, prompt in enumerate(prompts):
        model.prefill(prompt, cache, cache.slot(slot))
    rows = cache.rows([cache.slot(i) for i in range(4)], [len(prompt) + 1 for prompt in prompts])
    positions = torch.tensor([prompt.next_position for prompt in prompts])
    together = model.decode(torch.tensor(NEXT), positions, cache, rows)
    for slot, prompt in enumerate(prompts):
        alone = whole(model, prompt, NEXT[slot : slot + 1])[-1]
        torch.testing.assert_close(together[slot], alone, atol=2e-5, rtol=1e-4)


def test_a_slot_can_be_used_again(model, processor: Processor, conversations) -> None:
    """What an earlier sequence left in a slot does not reach the next one."""
    cache = model.new_cache(num_slots=1, max_context=128)
    model.prefill(processor.prompt(conversations["all"], enable_thinking=False), cache, cache.slot(0))
    prompt = processor.prompt(conversations["text"], enable_thinking=False)
    model.prefill(prompt, cache, cache.slot(0))
    hidden = step(model, prompt, cache, 0, NEXT[0], 0)
    torch.testing.assert_close(hidden, whole(model, prompt, NEXT[:1])[-1], atol=2e-5, rtol=1e-4)


def test_media_are_bidirectional_and_text_is_causal(tokenizer: Tokenizer) -> None:
    """A media token sees its whole span and the past; a text token sees the past only."""
    spans = torch.tensor([0, 1, 1, 1, 0, 2, 2])
    allowed = span_bias(spans) == 0
    expected = torch.ones(7, 7).tril().bool()
    expected[1:4, 1:4] = True
    expected[5:7, 5:7] = True
    assert torch.equal(allowed, expected)


def test_a_late_patch_reaches_an_early_one(model, processor: Processor, conversations) -> None:
    """Changing an image's last corner changes the stream at its first patch, but not before the image."""
    prompt = processor.prompt(conversations["image"], enable_thinking=False)
    other = prompt.images[0].clone()
    other[40:, 40:] = 0
    changed = dataclasses.replace(prompt, images=(other,))
    before, after = whole(model, prompt), whole(model, changed)
    first = int((prompt.spans > 0).nonzero()[0])
    torch.testing.assert_close(before[:first], after[:first])
    assert not torch.allclose(before[first], after[first])


def test_every_modality_runs_through_the_same_blocks(model) -> None:
    """There is one set of block weights: outside the embedders no weight belongs to a modality."""
    groups = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert groups == {"table", "image", "places", "audio", "modality", "blocks", "norm"}
    assert len(model.blocks) == model.config.num_layers


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_every_block_gets_gradient_from_every_modality(make_model, processor, conversations, kind) -> None:
    """A loss on one modality's answer reaches every block."""
    model = make_model().requires_grad_(True)
    prompt = processor.prompt(conversations[kind], enable_thinking=False)
    whole(model, prompt)[-1].square().sum().backward()
    assert all(block.qkv.weight.grad.abs().sum() > 0 for block in model.blocks)


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu",) * 5])
def test_layers_placed_over_devices_give_the_same(make_model, processor, conversations, devices) -> None:
    """Splitting the layers over devices changes nothing, more devices than layers included."""
    placed, plain = make_model().place(devices), make_model()
    prompt = processor.prompt(conversations["all"], enable_thinking=False)
    for model in (placed, plain):
        assert len(model.new_cache(1, 64).keys) == 3
    caches = [model.new_cache(1, 128) for model in (placed, plain)]
    results = [
        model.prefill(prompt, cache, cache.slot(0))
        for model, cache in zip((placed, plain), caches, strict=True)
    ]
    assert torch.equal(*results)


def test_layers_are_placed_in_contiguous_groups(make_model) -> None:
    """Each device holds one run of layers, and the cache follows the layers."""
    model = make_model().to("meta").place(["meta", "meta"])
    assert [device.type for device in model.layer_devices] == ["meta"] * 3
    assert {keys.device.type for keys in model.new_cache(2, 16).keys} == {"meta"}
    with pytest.raises(EngineError, match="no device"):
        model.place([])


def test_a_prompt_that_does_not_fit_is_refused_with_numbers(model, processor, conversations) -> None:
    """A prompt longer than the slot raises a request error that states both lengths."""
    prompt = processor.prompt(conversations["image"], enable_thinking=False)
    with pytest.raises(RequestError, match=rf"{len(prompt)} tokens; its pages hold 8"):
        cache = model.new_cache(1, 8)
        model.prefill(prompt, cache, cache.slot(0))


def test_a_span_and_its_media_must_agree(model, processor, conversations) -> None:
    """An image of another size than its span is refused instead of being torn."""
    prompt = processor.prompt(conversations["image"], enable_thinking=False)
    shorter = dataclasses.replace(prompt, spans=torch.where(torch.arange(len(prompt)) == 4, 0, prompt.spans))
    with pytest.raises(RequestError, match="media span"):
        model.embed(shorter)


def test_the_gate_with_all_pages_kept_equals_dense(make_model: Callable[[], PhoneModel], processor) -> None:
    """Over a long context the Top-K gate that keeps every page gives what dense attention gives."""
    prompt = processor.prompt([Message("user", [TextPart("热更新 tap Maps " * 12)])], enable_thinking=False)
    assert len(prompt) > 64
    results: list[Tensor] = []
    for gate in (TopKConfig(8, 1000, 10_000), TopKConfig(8, 4, 64)):
        model = make_model()
        model.config = dataclasses.replace(model.config, topk=gate)
        cache = model.new_cache(1, 256)
        model.prefill(prompt, cache, cache.slot(0))
        results.append(step(model, prompt, cache, 0, NEXT[0], 0))
    assert results[1].isfinite().all()
    model = make_model()
    model.config = dataclasses.replace(model.config, topk=TopKConfig(8, len(prompt) // 8 + 2, 0))
    cache = model.new_cache(1, 256)
    model.prefill(prompt, cache, cache.slot(0))
    torch.testing.assert_close(step(model, prompt, cache, 0, NEXT[0], 0), results[0], atol=2e-5, rtol=1e-4)


def test_training_pass_stops_and_shows_the_middle(model, processor, conversations) -> None:
    """The training pass returns the stream after a chosen block, and can stop there."""
    prompt = processor.prompt(conversations["text"], enable_thinking=False)
    x, bias = model.embed(prompt)[None], span_bias(prompt.spans)
    _, middle = model(x, prompt.positions, bias, hidden_after=2)
    stopped, same = model(x, prompt.positions, bias, hidden_after=2, stop_after=2)
    torch.testing.assert_close(middle, same)
    torch.testing.assert_close(stopped, model.norm(middle))
