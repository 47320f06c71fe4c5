"""Greedy generation in batches, by the same prefill and decode as the engine: what scores are taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Prompt
from autoglm.model.tokenizer import Tokenizer

BATCH = 16


@dataclass(frozen=True)
class Output:
    """What was generated for one prompt.

    Attributes:
        thought: the text of the thought; empty where none was asked for.
        answer: the text of the answer.
        leaked: a tag of the turn's structure occurred inside the answer.
        finished: the model ended by itself.
    """

    thought: str
    answer: str
    leaked: bool
    finished: bool


@torch.inference_mode()
def generate(
    model: PhoneModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_tokens: int = 128
) -> list[Output]:
    """Write each prompt's turn greedily.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        prompts: any number.
        max_tokens: bound of each turn, thought included.
    """
    outputs: list[Output] = []
    for first in range(0, len(prompts), BATCH):
        group = prompts[first : first + BATCH]
        for prompt, ids in zip(group, _greedy(model, tokenizer, group, max_tokens), strict=True):
            thinks = int(prompt.token_ids[-1]) == tokenizer.think
            outputs.append(_read_turn(tokenizer, ids, thinks))
    return outputs


def _greedy(
    model: PhoneModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_tokens: int
) -> list[list[int]]:
    """Return the ids of each turn, the end token included where it came."""
    B = len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    cache = model.new_cache(B, max(lengths) + max_tokens)
    tables = [cache.slot(index) for index in range(B)]
    hidden = torch.stack([model.prefill(p, cache, table) for p, table in zip(prompts, tables, strict=True)])
    positions = torch.tensor([prompt.next_position for prompt in prompts])
    turns: list[list[int]] = [[] for _ in prompts]
    running = list(range(B))
    for _ in range(max_tokens):
        chosen = model.logits(hidden).argmax(-1)  # (running,)
        for slot, token in zip(running, chosen.tolist(), strict=True):
            turns[slot].append(token)
        keep = [i for i, slot in enumerate(running) if turns[slot][-1] != tokenizer.eos]
        running = [running[i] for i in keep]
        if not running:
            break
        for slot in running:
            lengths[slot] += 1
        rows = cache.rows([tables[slot] for slot in running], [lengths[slot] for slot in running])
        hidden = model.decode(chosen[keep], positions[running], cache, rows)
        positions[running] += 1
    return turns


def _read_turn(tokenizer: Tokenizer, ids: list[int], thinks: bool) -> Output:
    """Split a turn into thought and answer by its control tokens."""
    finished = bool(ids) and ids[-1] == tokenizer.eos
    body = ids[:-1] if finished else ids
    thought: list[int] = []
    if thinks:
        end = body.index(tokenizer.end_think) if tokenizer.end_think in body else len(body)
        thought, body = body[:end], body[end + 1 :]
        if body and body[0] == tokenizer.answer:
            body = body[1:]
    leaked = any(token in tokenizer.controls for token in body)
    return Output(tokenizer.decode(thought), tokenizer.decode(body), leaked, finished)
