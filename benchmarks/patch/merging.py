"""The adapter-born pair: an int8 release, and the release that merging an adapter into it makes.

The adapter is written as PEFT writes one. The merge is the product's own: new codes are what the patch
format's integer prediction makes of the base's codes and of integer factors, and the factors are left beside
the pair for ``diff`` to take as a hint, as ``autoglm model merge`` leaves them beside a release.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from peers import HINT
from quantised import Weights, int8, quantise
from trainer import put

RANK = 8
SCALING = 2.0  # alpha is twice the rank
# Share of the change's energy that rounding the factors may cost: what the merge takes by default.
FACTOR_ERROR = 0.01


def can_merge() -> bool:
    """Whether this installation has the merge."""
    return find_spec("autoglm.training.folding") is not None


def split(weights: Weights) -> tuple[Weights, dict[str, tuple[Tensor, Tensor]]]:
    """Take an adapter run's result apart: plain weights, and (A, B) by the name of the weight they adapt."""
    plain = {name: w for name, w in weights.items() if not name.endswith((".lora_A", ".lora_B"))}
    factors = {
        f"{name.removesuffix('.lora_A')}.weight": (w, weights[name.replace(".lora_A", ".lora_B")])
        for name, w in weights.items()
        if name.endswith(".lora_A")
    }
    return plain, factors


def merged(weights: Weights) -> Weights:
    """Return an adapter run's weights with the adapters merged in floats, as training used them."""
    plain, factors = split(weights)
    return plain | {name: plain[name] + SCALING * (b @ a) for name, (a, b) in factors.items()}


def write_pair(target: Path, weights: Weights) -> None:
    """Write the int8 base, the adapter, the merged release and the hint into ``target``."""
    from autoglm.training.folding import Change, fold

    plain, factors = split(weights)
    old = quantise(plain, int8, None)
    put(target / "old.safetensors", old)
    _write_adapter(target / "adapter", factors)
    new, hint = dict(old), {}
    for name, (a, b) in factors.items():
        codes, scales = old[name].numpy(), old[f"{name}.scale"].numpy()
        change = Change(SCALING * b.double().numpy(), a.double().numpy())
        made = fold(codes, scales, change, factor_error=FACTOR_ERROR)
        new[name], new[f"{name}.scale"] = torch.from_numpy(made.codes), torch.from_numpy(made.scales)
        curve = made.prediction.curve
        hint[f"{name}.P"] = torch.from_numpy(made.prediction.p)
        hint[f"{name}.Q"] = torch.from_numpy(made.prediction.q)
        hint[f"{name}.params"] = torch.tensor(
            [curve.drop, curve.limit, curve.slope, curve.bend, curve.shift], dtype=torch.int64
        )
    put(target / HINT, hint)
    put(target / "new.safetensors", new)


def _write_adapter(target: Path, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    tensors: Weights = {}
    for name, (a, b) in factors.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
    put(target / "adapter_model.safetensors", tensors)
    modules = sorted({name.split(".")[-2] for name in factors})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": int(SCALING * RANK), "target_modules": modules}
    (target / "adapter_config.json").write_text(json.dumps(config))
