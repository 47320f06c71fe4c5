"""Train, fine-tune and adapt the byte model: seeded, and continued after a kill where it was.

A step is a function of the state before it and of its number alone, because its batch is drawn from (seed,
step). The state is replaced whole every ``SAVE_STEPS`` steps; a finished run leaves its float32 weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpt import GPT, Shape

SAVE_STEPS = 100
_WARM_UP = 40

Weights = dict[str, Tensor]
Advance = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: of its result.
        steps: how many.
        rate: the learning rate; held, but for the base's own run, which warms up and decays to a tenth.
        rank: of the adapters that are trained instead of the weights; 0 for none.
        only: the start of the names of what is trained; "" for everything.
        added: rows added to the two tables.
    """

    name: str
    steps: int
    rate: float
    rank: int = 0
    only: str = ""
    added: int = 0

    @property
    def is_base(self) -> bool:
        """Whether it starts from random weights."""
        return self.name == "base"

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if not self.is_base:
            return self.rate
        if step < _WARM_UP:
            return self.rate * (step + 1) / _WARM_UP
        return self.rate * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))


class Adapter(nn.Module):
    """A low-rank addition to a weight: ``W + 2 B A`` (LoRA, Hu et al., 2021, alpha twice the rank)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.lora_A = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2.0 * (self.lora_B @ self.lora_A)


def train(run: Run, shape: Shape, tokens: Tensor, start: Weights, state: Path, advance: Advance) -> Weights:
    """Return the float32 weights after a run; for a run of adapters their factors too.

    Args:
        run: what to do.
        shape: the model's sizes.
        tokens: the text, one-dimensional.
        start: the weights to begin with; ignored for the base.
        state: where the state of an unfinished run is kept; its result lies beside it.
        advance: called after each step with the run's name, the step, all steps and the loss.
    """
    result = state.with_suffix(".safetensors")
    if result.exists():
        return load_file(result)
    model = build(run, shape, start)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    for step in range(_restore(state, model, optimizer), run.steps):
        loss = _step(model, optimizer, run, tokens, step)
        advance(run.name, step + 1, run.steps, loss)
        if (step + 1) % SAVE_STEPS == 0:
            _save(state, model, optimizer, step + 1)
    weights = collect(model)
    put(result, weights)
    state.unlink(missing_ok=True)
    return weights


def build(run: Run, shape: Shape, start: Weights) -> GPT:
    """Return the model at the start of a run, with only what is trained asking for gradients."""
    torch.manual_seed(1)
    model = GPT(shape)
    if not run.is_base:
        model.load_state_dict(start)
    if run.rank:
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != "head":
                parametrize.register_parametrization(module, "weight", Adapter(module.weight, run.rank))
                module.parametrizations.weight.original.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not name.startswith(run.only):
            parameter.requires_grad_(False)
    return model


def batch(tokens: Tensor, shape: Shape, step: int) -> Tensor:
    """Return the rows (batch, context + 1) of a step."""
    generator = torch.Generator().manual_seed(1_000_003 + step)
    starts = torch.randint(len(tokens) - shape.context - 1, (shape.batch,), generator=generator)
    return torch.stack([tokens[at : at + shape.context + 1] for at in starts.tolist()]).long()


def _step(model: GPT, optimizer: torch.optim.Optimizer, run: Run, tokens: Tensor, step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = run.rate_at(step)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch(tokens, model.shape, step))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def collect(model: GPT) -> Weights:
    """Return plain weights; adapters are returned as they are, beside what they were trained on."""
    return {_plain_name(name): tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _plain_name(name: str) -> str:
    name = name.replace("parametrizations.weight.original", "weight")
    return name.replace("parametrizations.weight.0.", "")


def grow(weights: Weights, added: int) -> Weights:
    """Add rows to the two tables: their mean and some noise, as libraries do that resize a vocabulary."""
    generator = torch.Generator().manual_seed(2)

    def taller(table: Tensor) -> Tensor:
        noise = torch.randn(added, table.shape[1], generator=generator) * table.std() * 0.1
        return torch.cat([table, table.mean(0) + noise])

    return {name: taller(w) if name in ("embed.weight", "head.weight") else w for name, w in weights.items()}


def put(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as the safetensors library does, under their name only when they are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    temporary.replace(path)


def _save(state: Path, model: GPT, optimizer: torch.optim.Optimizer, step: int) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    temporary = state.with_name(f".{state.name}.part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
    temporary.replace(state)


def _restore(state: Path, model: GPT, optimizer: torch.optim.Optimizer) -> int:
    if not state.exists():
        return 0
    found = torch.load(state, weights_only=True)
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return found["step"]
