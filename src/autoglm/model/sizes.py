"""How large a model is, counted from its real modules and never from a formula.

The network is built on torch's meta device, which has shapes but no memory, so 9 billion parameters
count in a second. Each tensor is charged what its storage costs:

========  ==================================================================
``bf16``  2 bytes a value: vectors (norms, biases, modality vectors), always;
          what a release stores as float16 takes the same
``int8``  1 byte a value, and a float16 scale a row
``int4``  half a byte a value, and a float16 scale a group of 128 in a row
========  ==================================================================

A convolution's kernel is a matrix with one row an output channel. INT4 is for the blocks' matrices
alone: token tables and embedders stay INT8, as does the head.

    >>> size_table("9b-int8-pruned").bytes <= 4.2e9
    True

Not counted: the tokenizer, the manifest, and the few kilobytes of a file's own header.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

import torch

from autoglm.errors import ConfigError
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.weights import expected_tensors, is_matrix

Storage = Literal["bf16", "int8", "int4"]

INT4_GROUP = 128
SCALE_BYTES = 2
VALUE_BYTES = 2  # bf16


@dataclass(frozen=True)
class Recipe:
    """How matrices are stored: those of the blocks, and all others."""

    blocks: Storage
    others: Storage


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "9b": Recipe("bf16", "bf16"),
        "9b-int8": Recipe("int8", "int8"),
        "9b-int4": Recipe("int4", "int8"),
        "9b-int8-pruned": Recipe("int8", "int8"),
        "9b-int4-pruned": Recipe("int4", "int8"),
        "nano": Recipe("int8", "int8"),
    }
)


@dataclass(frozen=True)
class Part:
    """One top-level module of the network, or one tensor that stands alone there.

    Attributes:
        name: the module's name in the network.
        parameters: trained values in it, each counted once.
        bytes: what they take in storage, scales and stored buffers included.
        matrices: how its matrices are stored; ``bf16`` where it has none.
    """

    name: str
    parameters: int
    bytes: int
    matrices: Storage


@dataclass(frozen=True)
class SizeReport:
    """The size of one named model.

    Attributes:
        name: as in :data:`RECIPES`.
        parameters: trained values in all.
        bytes: bytes of the weights in storage.
        parts: the same, module by module; they sum to the totals.
        cache_bytes_per_token: KV cache in bf16 for each token of context.
    """

    name: str
    parameters: int
    bytes: int
    parts: tuple[Part, ...]
    cache_bytes_per_token: int

    @property
    def bits_per_parameter(self) -> float:
        """Average storage of one parameter in bits."""
        return 8 * self.bytes / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for ``--json``."""
        return asdict(self) | {"bits_per_parameter": round(self.bits_per_parameter, 3)}


def size_table(name: str) -> SizeReport:
    """Count a model by its name.

    Args:
        name: a key of :data:`RECIPES`, for example ``9b-int4``.

    Raises:
        ConfigError: there is no such name; the message lists those there are.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no model size {name!r}; choose one of {', '.join(RECIPES)}")
    return count(name, CONFIGS[name], RECIPES[name])


def count(name: str, config: ModelConfig, recipe: Recipe) -> SizeReport:
    """Count the network of any configuration under any recipe; ``name`` is for the report."""
    parts = tuple(_parts(config, recipe))
    return SizeReport(
        name=name,
        parameters=sum(part.parameters for part in parts),
        bytes=sum(part.bytes for part in parts),
        parts=parts,
        cache_bytes_per_token=2 * config.num_layers * config.num_kv_heads * config.head_dim * VALUE_BYTES,
    )


def stored_bytes(shape: Sequence[int], storage: Storage) -> int:
    """Return what one matrix takes: its values and, when quantised, its scales.

    Args:
        shape: rows first; what follows is one row, as in a convolution's (out, in, width).
        storage: how it is stored.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    if storage == "bf16":
        return rows * columns * VALUE_BYTES
    if storage == "int8":
        return rows * (columns + SCALE_BYTES)
    return rows * (math.ceil(columns / 2) + math.ceil(columns / INT4_GROUP) * SCALE_BYTES)


def _parts(config: ModelConfig, recipe: Recipe) -> Iterator[Part]:
    """Count the stored tensors by the top-level module they belong to."""
    with torch.device("meta"):
        trained = dict(PhoneModel(config).named_parameters())
    for top, names in groupby(expected_tensors(config).items(), lambda item: item[0].partition(".")[0]):
        tensors = dict(names)
        storage = recipe.blocks if top == "blocks" else recipe.others
        matrices = {name for name, shape in tensors.items() if is_matrix(name, shape)}
        yield Part(
            name=top,
            parameters=sum(shape.numel() for name, shape in tensors.items() if name in trained),
            bytes=sum(
                stored_bytes(shape, storage) if name in matrices else shape.numel() * VALUE_BYTES
                for name, shape in tensors.items()
            ),
            matrices=storage if matrices else "bf16",
        )
