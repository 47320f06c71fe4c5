"""Dense attention against the Top-K gate, at the model's own full context and with the gate forced on.

Three things are compared. *Needles*: a sentence far back in a context of fillers holds a number, the last
question asks for it. *Tasks*: a screen and a question about it, or a command, come after a long conversation.
*Mass*: the share of the dense attention's weight that lies on the pages the gate keeps, for the last token,
over layers and heads; it needs no skill of the model.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.model import topk
from autoglm.model.config import TopKConfig
from autoglm.model.layers import rotary_tables
from autoglm.model.prompt import Message, Prompt
from autoglm.training.dialogue import Release
from autoglm.training.evaluation import sources
from autoglm.training.evaluation.examiner import MAX_TOKENS, Examiner
from autoglm.training.evaluation.items import Item, Score, best_constant, share
from autoglm.training.generate import Output

_FILLERS = {
    "zh": ("今天天气不错。", "会议改到了下午。", "楼下新开了一家面馆。", "记得给花浇水。", "快递明天送到。"),
    "en": (
        *("The weather is fine today. ", "The meeting was moved. ", "A new cafe opened downstairs. "),
        *("Remember to water the plants. ", "The parcel comes tomorrow. "),
    ),
}
_NEEDLE = {"zh": "{}的号码是{}。", "en": "The number of {} is {}. "}
_ASK = {"zh": "{}的号码是多少?", "en": "What is the number of {}?"}
_WHO = {"zh": ("小明", "小红", "老王", "李雷"), "en": ("Tom", "Anna", "Ben", "Lucy")}


@torch.inference_mode()
def attention(examiner: Examiner, release: Release) -> dict[str, Score]:
    """Needles and tasks by dense attention and by the gate, and what the gate keeps of the attention."""
    needles = needle_items(examiner)
    tasks = long_tasks(examiner, release)
    scores: dict[str, Score] = {}
    for name, items in (("needle", needles), ("long_tasks", tasks)):
        by_gate: list[list[Output]] = []
        for sparse in (False, True):
            with examiner.gate(sparse=sparse):
                first = len(items) * sparse
                by_gate.append(
                    examiner.answers(items, what=f"attention, {name}", first=first, total=2 * len(items))
                )
        for way, outputs in zip(("dense", "topk"), by_gate, strict=True):
            right = [item.judge(output.answer) for item, output in zip(items, outputs, strict=True)]
            scores[f"{name}_{way}"] = share(right, best_constant(items))
        same = [a.answer == b.answer for a, b in zip(*by_gate, strict=True)]
        scores[f"{name}_same_answer"] = share([float(each) for each in same])
    scores["attention_mass_kept"] = share(mass_kept(examiner, needles[: examiner.count(16)]))
    return scores


def needle_items(examiner: Examiner) -> list[Item]:
    """Hide a number anywhere in a context as long as the model's own, and ask for it."""
    rng = sources.stream(examiner.seed, "needles")
    return [_needle(examiner, rng) for _ in range(examiner.count(64))]


def _needle(examiner: Examiner, rng: random.Random) -> Item:
    language = rng.choice(("zh", "en"))
    who, number = rng.choice(_WHO[language]), str(rng.randint(100, 999))
    question = Message("user", _ASK[language].format(who))
    fact = _NEEDLE[language].format(who, number)
    room = _room(examiner, [Message("user", fact), question])
    sentences = _fillers(examiner, rng, language, room)
    sentences.insert(rng.randint(0, len(sentences)), fact)
    messages = (Message("system", "".join(sentences)), question)
    return Item(messages, number, lambda given: float(number in given), "needle", language)


def _room(examiner: Examiner, messages: Sequence[Message]) -> int:
    """Return the tokens that fit before the messages and the answer."""
    taken = len(examiner.loaded.processor.prompt(messages, enable_thinking=False))
    return examiner.loaded.config.max_context - MAX_TOKENS - taken


def _fillers(examiner: Examiner, rng: random.Random, language: str, room: int) -> list[str]:
    """Return sentences that fill ``room`` tokens, by their lengths one by one."""
    lengths = {text: len(examiner.loaded.tokenizer.encode(text)) for text in _FILLERS[language]}
    sentences: list[str] = []
    while True:
        text = rng.choice(_FILLERS[language])
        room -= lengths[text]
        if room < 0:
            return sentences
        sentences.append(text)


def long_tasks(examiner: Examiner, release: Release) -> list[Item]:
    """Ask about a screen, or a topic, after a conversation that fills the context."""
    count = examiner.count(64)
    rng = sources.stream(examiner.seed, "long")
    asked = sources.scene_items("long", examiner.seed, -(-count // 16), sources.known_labels())
    asked = asked[: count // 2] + sources.command_items(examiner.seed, count - count // 2)
    earlier = sources.topic_items(examiner.seed + 1, min(100, 16 * 14), release)
    return [_after_talk(examiner, rng, item, earlier) for item in asked]


def _after_talk(examiner: Examiner, rng: random.Random, item: Item, earlier: Sequence[Item]) -> Item:
    room = _room(examiner, item.messages)
    talk: list[Message] = []
    while True:
        each = rng.choice(earlier)
        turn = [each.messages[-1], Message("assistant", each.answer)]
        room -= len(examiner.loaded.processor.prompt(turn, enable_thinking=False))
        if room < 0:
            return dataclasses.replace(item, messages=(*talk, *item.messages), kind="long_tasks")
        talk += turn


def mass_kept(examiner: Examiner, items: Sequence[Item]) -> list[float]:
    """Return for each item the share of the last token's dense attention on the pages that the gate keeps."""
    shares: list[float] = []
    for item in items:
        prompt = examiner.loaded.processor.prompt(item.messages, enable_thinking=False)
        with examiner.gate(sparse=False):
            shares.append(_mass_of(examiner, prompt))
        examiner.report("attention, mass", len(shares), len(items))
    return shares


def _mass_of(examiner: Examiner, prompt: Prompt) -> float:
    """Run a prompt densely, its last token by decode, and look at that token's attention in every layer."""
    model = examiner.loaded.model
    cache = model.new_cache(1, len(prompt))
    table, length = cache.slot(0), len(prompt)
    model.prefill(prompt, cache, table)
    x = model.embed(prompt, length - 1)[None]
    tables = rotary_tables(prompt.positions[length - 1 :], model.config)
    rows = cache.rows([table], [length])
    kept: list[float] = []
    for i, block in enumerate(model.layers):
        q, _, _ = block.project(x, *tables)
        kept.append(_kept(q[:, :, 0], cache.keys[i], cache.bounds[i], length, model.config.topk))
        attended = topk.dense_decode(q[:, :, 0], cache.keys[i], cache.values[i], rows)
        x = block.finish(x, attended[:, :, None])
    return sum(kept) / len(kept)


def _kept(q: Tensor, keys: Tensor, bounds: Tensor, length: int, config: TopKConfig) -> float:
    groups = keys.shape[1]
    chosen = topk.select_pages(q, bounds, [length], config.keep, config.page)[0]  # (G, K)
    split = q.reshape(groups, -1, q.shape[2])  # (G, R, D)
    weights = topk.attention_weights(split, keys[0, :, :length], None)  # (G, R, length)
    page_of = torch.arange(length) // config.page
    inside = (page_of[None, :, None] == chosen[:, None]).any(-1)  # (G, length)
    return float((weights * inside[:, None]).sum(-1).mean())
