"""A personal adapter when its base is updated: used as it is, trained on, or trained anew.

A dozen private facts are taught to an adapter on the older release. Then the base becomes the newer one.
Measured on each: how many facts are answered word for word (greedy, also in words never trained), and the
loss on held-out dialogues of the newer release, which the adapter should not harm.

    python benchmarks/local_adapters.py OLD NEW [--rank 4] [--steps 120] [--more 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Message, Processor, PromptBuilder
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import LoadedModel, build_model, load_release, read_weights
from autoglm.releases import Manifest
from autoglm.training.adapter import AdaptedLinear, Adapter, AdapterConfig, attach, extract
from autoglm.training.binding import bind, is_bound_to
from autoglm.training.dialogue import Example
from autoglm.training.generate import generate
from autoglm.training.lesson_loss import LessonLoss
from autoglm.training.rows import Batch, pack
from autoglm.training.teaching import PLAIN, Teacher

# (asked in training, asked in training, asked only in the test, answer)
FACTS = (
    ("我的车停在哪里?", "车停哪儿了?", "请问我的车停在哪里?", "你的车停在B2层17号。"),
    ("我的医生叫什么?", "谁是我的医生?", "我的医生叫什么名字?", "你的医生是林芳。"),
    ("我的快递放在哪里?", "快递在哪儿?", "我的快递现在放在哪里?", "你的快递在东门柜子5。"),
    ("我周五做什么?", "周五有什么安排?", "我这个周五做什么?", "周五三点你打网球。"),
    ("我对什么过敏?", "我不能吃什么?", "我到底对什么过敏?", "你对花生过敏。"),
    ("我的猫叫什么?", "猫的名字是什么?", "我家的猫叫什么?", "你的猫叫豆豆。"),
    ("Where is my car?", "Where did I park?", "Where is my car now?", "Your car is on level B2."),
    ("Who is my doctor?", "What is my doctor called?", "Tell me who is my doctor?", "Your doctor is Lin."),
    ("What am I allergic to?", "What can I not eat?", "So what am I allergic to?", "Peanuts."),
    ("When is my class?", "What time is my class?", "When is my class today?", "At six on Monday."),
    ("What is my cat called?", "My cat's name?", "What is my cat called again?", "Your cat is Bean."),
    ("Where is my parcel?", "Where did they put my parcel?", "Where is my parcel now?", "In locker 5."),
)


@dataclass(frozen=True)
class Row:
    """What one combination of base and adapter does."""

    what: str
    steps: int
    known: float
    unseen: float
    loss: float


@dataclass
class Personal:
    """The facts, in one release's tokens."""

    tokenizer: Tokenizer
    config: ModelConfig

    def batch(self) -> Batch:
        """All trained wordings, three times each in one row or two."""
        examples = [Example(q, fact[3], "", "zh", "personal", "") for fact in FACTS for q in fact[:2]]
        teacher = Teacher(self.tokenizer, self.config, "v1.2")
        builder = PromptBuilder(self.tokenizer, self.config)
        builder.tokens(self.tokenizer.bos)
        return pack("text", builder, [[teacher.example_slot([e], PLAIN, thinks=False)] for e in examples])

    def right(self, model: PhoneModel, wordings: tuple[int, ...]) -> float:
        """Return the share of questions that are answered word for word."""
        asked = [(fact[i], fact[3]) for fact in FACTS for i in wordings]
        processor = Processor(self.tokenizer, self.config)
        prompts = [processor.prompt([Message("user", q)], enable_thinking=False) for q, _ in asked]
        outs = generate(model, self.tokenizer, prompts, 32)
        return sum(out.answer == answer for out, (_, answer) in zip(outs, asked, strict=True)) / len(asked)


def trained(
    state: Mapping[str, Tensor],
    personal: Personal,
    settings: AdapterConfig,
    steps: int,
    start: Adapter | None,
) -> Adapter:
    """Train an adapter on these weights for some steps, from nothing or from ``start``."""
    model = build_model(personal.config, state)
    attach(model, settings, seed=0)
    if start is not None:
        for name, module in model.named_modules():
            if isinstance(module, AdaptedLinear):
                module.lora_A.data.copy_(start.factors[f"{name}.weight"].a)
                module.lora_B.data.copy_(start.factors[f"{name}.weight"].b)
    parameters = [p.requires_grad_() for name, p in model.named_parameters() if ".lora_" in name]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    batch = personal.batch()
    asked = batch.targets >= 0
    for step in range(steps):
        hidden, _ = model(model.embed_tokens(batch.ids), batch.positions, batch.bias)
        losses = F.cross_entropy(model.logits(hidden[asked]), batch.targets[asked])
        optimizer.zero_grad(set_to_none=True)
        losses.backward()
        optimizer.step()
        if sys.stderr.isatty() or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {losses.item():.4f}", file=sys.stderr)
    return extract(model, settings)


def measured(
    what: str,
    steps: int,
    state: Mapping[str, Tensor],
    adapter: Adapter | None,
    personal: Personal,
    general: LessonLoss,
) -> Row:
    """Put an adapter on some weights and measure."""
    weights = dict(state) if adapter is None else adapter.applied_to(state)
    model = build_model(personal.config, weights)
    model.place(["cpu"])
    known, unseen = personal.right(model, (0, 1)), personal.right(model, (2,))
    return Row(what, steps, known, unseen, general(weights))


def distance(old: Mapping[str, Tensor], new: Mapping[str, Tensor], adapter: Adapter) -> float:
    """Return how long the update of the adapted matrices is beside the adapter's own change."""
    update = sum(float((new[name] - old[name]).square().sum()) for name in adapter.factors)
    change = sum(float(factors.delta.square().sum()) for factors in adapter.factors.values())
    return (update / change) ** 0.5


def run(
    old: Path, new: Path, settings: AdapterConfig, steps: int, more: int
) -> tuple[list[Row], float, bool]:
    """Measure all rows; also the update's length and whether the adapter would be let on the new base."""
    loaded: LoadedModel = load_release(new)
    personal = Personal(loaded.tokenizer, loaded.config)
    general = LessonLoss(loaded.tokenizer, loaded.config, "v1.3", scale=0.5)
    before, after = (read_weights(each / "model.safetensors", loaded.config) for each in (old, new))
    adapter = bind(trained(before, personal, settings, steps, None), Manifest.read(old))
    further = trained(after, personal, settings, more, adapter)
    anew = trained(after, personal, settings, more, None)
    full = trained(after, personal, settings, steps, None)
    rows = [
        measured("old base", 0, before, None, personal, general),
        measured("old base, its adapter", steps, before, adapter, personal, general),
        measured("new base", 0, after, None, personal, general),
        measured("new base, the old adapter as it is", 0, after, adapter, personal, general),
        measured("new base, the old adapter trained on", more, after, further, personal, general),
        measured("new base, a new adapter, as few steps", more, after, anew, personal, general),
        measured("new base, a new adapter, all steps", steps, after, full, personal, general),
    ]
    return rows, distance(before, after, adapter), is_bound_to(adapter, Manifest.read(new))


def main() -> None:
    """Read the arguments, measure, print a table."""
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--more", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = AdapterConfig(arguments.rank, alpha=2 * arguments.rank)
    rows, length, allowed = run(arguments.old, arguments.new, settings, arguments.steps, arguments.more)
    if arguments.json:
        found = {"rows": [asdict(row) for row in rows], "update_length": length, "allowed": allowed}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print("| base and adapter | steps | facts | unseen wordings | loss, dialogues |")
    print("|---|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {row.what} | {row.steps} | {row.known:.0%} | {row.unseen:.0%} | {row.loss:.3f} |")
    print(f"\nThe update moved the adapted matrices {length:.2f} times as far as the adapter does.")
    print(f"The old adapter is {'let' if allowed else 'refused'} on the new base by its hash.")


if __name__ == "__main__":
    main()
