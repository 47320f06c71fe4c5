"""Low-rank adapters (LoRA, arXiv:2106.09685): attach one to a model, train it, keep it the way PEFT does.

An adapter adds ``alpha / rank * B @ A`` to the matrices it names and changes nothing else. On disk it is a
directory with ``adapter_model.safetensors`` and ``adapter_config.json`` under PEFT's names, so adapters that
were trained elsewhere on the same network are read too. What PEFT can express and a merge cannot (DoRA,
trained biases, whole modules saved, adapted embeddings) is refused by name.

    >>> attach(model, AdapterConfig(rank=8, alpha=16), seed=0)            # doctest: +SKIP
    >>> write_adapter(Path("runs/a/adapter"), extract(model))            # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autoglm.errors import ConfigError, FormatError
from autoglm.files import make_directory, write_durably

ADAPTER_NAME, SETTINGS_NAME = "adapter_model.safetensors", "adapter_config.json"
TARGETS = ("qkv", "out", "gate_up", "down")  # every matrix of a block
_PREFIX = "base_model.model."
_MAX_FILE_BYTES = 1 << 32
_MAX_CONFIG_BYTES = 1 << 20
_MAX_RANK = 4096
# Settings of PEFT that change what an adapter computes, with the values that leave it a plain B @ A.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
}


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter.

    Attributes:
        rank: inner dimension.
        alpha: the product is scaled by ``alpha / rank``.
        targets: last part of the names of the modules that are adapted.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS


@dataclass(frozen=True)
class Factors:
    """One adapted matrix: its change is ``scaling * b @ a``.

    Attributes:
        a: (rank, columns) float32.
        b: (rows, rank) float32.
        scaling: factor on the product.
    """

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def delta(self) -> Tensor:
        """The change (rows, columns)."""
        return self.scaling * self.b @ self.a


@dataclass(frozen=True)
class Adapter:
    """A finished adapter.

    Attributes:
        factors: by the name of the matrix, such as ``blocks.0.qkv.weight``.
        config: its settings as PEFT writes them.
    """

    factors: Mapping[str, Factors]
    config: Mapping[str, Any]

    def applied_to(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``state`` with the adapter's change added, in floats.

        Raises:
            ConfigError: the adapter names a matrix that is not there, or of another shape.
        """
        self.check_fits({name: tensor.shape for name, tensor in state.items()})
        changed = dict(state)
        for name, factors in self.factors.items():
            old = state[name]
            changed[name] = old + factors.delta.reshape(old.shape).to(old.dtype)
        return changed

    def check_fits(self, shapes: Mapping[str, torch.Size]) -> None:
        """Refuse matrices that a model of these shapes does not have.

        Raises:
            ConfigError: the message names the matrix.
        """
        for name, factors in self.factors.items():
            wanted = (len(factors.b), factors.a.shape[1])
            found = shapes.get(name)
            if found is None or (found[0], found[1:].numel()) != wanted:
                shape = "is not in the model" if found is None else f"has the shape {tuple(found)} there"
                raise ConfigError(f"the adapter changes {name!r} of shape {wanted}, which {shape}")


# Training


class AdaptedLinear(nn.Module):
    """A linear layer with an adapter beside it; starts out as the layer alone."""

    def __init__(self, base: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scaling = config.alpha / config.rank
        a = torch.empty(config.rank, base.in_features)
        bound = math.sqrt(1 / base.in_features)  # kaiming_uniform_(a=sqrt(5)), as PEFT starts A
        self.lora_A = nn.Parameter(a.uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, self.lora_A)
        return self.base(x) + nn.functional.linear(inner, self.lora_B) * self.scaling


def attach(model: nn.Module, config: AdapterConfig, *, seed: int) -> None:
    """Put an adapter beside every linear layer that ``config`` names, in place.

    Args:
        model: such as a :class:`~autoglm.model.network.PhoneModel`.
        config: the settings.
        seed: of the first values of A; B starts at zero.

    Raises:
        ConfigError: no layer is named so.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets
    ]
    if not chosen:
        raise ConfigError(f"the model has no linear layer named {' or '.join(config.targets)}")
    for name, module in chosen:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, AdaptedLinear(module, config, generator))


def extract(model: nn.Module, config: AdapterConfig) -> Adapter:
    """Return the adapter that lies beside a model's layers."""
    factors = {
        f"{name}.weight": Factors(
            module.lora_A.detach().clone().float(), module.lora_B.detach().clone().float(), module.scaling
        )
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    return Adapter(
        factors,
        {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "target_modules": list(config.targets),
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )


# On disk


def write_adapter(directory: Path, adapter: Adapter) -> None:
    """Write an adapter under PEFT's names, durably; an earlier one there is replaced.

    Raises:
        StorageError: the disk refused.
    """
    tensors: dict[str, Tensor] = {}
    for name, factors in adapter.factors.items():
        module = _PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = factors.a.contiguous()
        tensors[f"{module}.lora_B.weight"] = factors.b.contiguous()
    make_directory(directory)
    write_durably(directory / ADAPTER_NAME, save(tensors, {"format": "pt"}))
    text = json.dumps(dict(adapter.config), indent=2, sort_keys=True) + "\n"
    write_durably(directory / SETTINGS_NAME, text.encode())


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter directory as PEFT writes it.

    Raises:
        FormatError: a file is missing, does not parse, or the factors do not belong together.
        ConfigError: it holds more than low-rank changes of matrices.
    """
    config = _read_config(directory / SETTINGS_NAME)
    tensors = _read_tensors(directory / ADAPTER_NAME)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])(?:\.default)?(?:\.weight)?", name)
        if found is None:
            raise ConfigError(f"{directory}: {name!r} is no low-rank factor of a matrix: it cannot be merged")
        pairs.setdefault(found[1], {})[found[2]] = tensor
    if not pairs:
        raise FormatError(f"{directory / ADAPTER_NAME} holds no adapter")
    factors = {f"{name}.weight": _factors(name, pair, config) for name, pair in sorted(pairs.items())}
    return Adapter(factors, config)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise FormatError(f"{path} has more than {limit} bytes")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must hold an object")
    config = cast("dict[str, Any]", content)
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise ConfigError(f"{path}: {key} = {config[key]!r} is more than a low-rank change of matrices")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(_read(path, _MAX_FILE_BYTES))
    except (SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error


def _factors(module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> Factors:
    """Check one pair and return it flat: a convolution's kernel is a matrix with a row an output channel."""
    if set(pair) != {"A", "B"}:
        raise FormatError(f"the adapter of {module!r} has only lora_{'/'.join(pair)}")
    a, b = pair["A"], pair["B"]
    if min(a.dim(), b.dim()) < 2 or not (a.is_floating_point() and b.is_floating_point()):
        raise FormatError(f"the adapter of {module!r} is no pair of float matrices")
    a, b = a.float().flatten(1), b.float().flatten(1)
    rank = int(_setting(module, config, "rank_pattern", "r", len(a)))
    if not 0 < len(a) == b.shape[1] == rank <= _MAX_RANK:
        raise FormatError(f"the factors of {module!r} are not of rank {rank}: {b.shape} times {a.shape}")
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise FormatError(f"the adapter of {module!r} holds values that are not finite")
    alpha = _setting(module, config, "alpha_pattern", "lora_alpha", rank)
    return Factors(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _setting(module: str, config: Mapping[str, Any], pattern: str, key: str, default: float) -> float:
    """Return a setting of one module: of the first pattern that its name ends with, else of all."""
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"{pattern} of the adapter is no object")
    value: Any = next(_matching(module, cast("dict[str, Any]", patterns)), config.get(key, default))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FormatError(f"{key} of the adapter is {str(value)[:40]!r}, not a number")
    return float(value)


def _matching(module: str, patterns: Mapping[str, Any]) -> Iterator[Any]:
    for ending, value in patterns.items():
        if module == ending or module.endswith(f".{ending}"):
            yield value
