"""Structured pruning: whole channels, heads and blocks go, by how much they did on calibration data.

=====================  ==================================================================================
what goes              what decides
=====================  ==================================================================================
feed-forward channels  mean size of the channel's activation, times the length of its column in ``down``
query heads            mean length of what the head writes; of each KV group the same number stays
width                  mean size of the stream's normalised channel over all blocks
blocks                 1 - cosine between the stream before and after (block influence)
embedders' inside      length of the column that reads the channel; it follows the width
=====================  ==================================================================================

What stays keeps its order and its values; only what one normalisation makes of fewer channels is set right.
A pruned model is a starting point: distil it (:mod:`autoglm.training.tutoring`) before use. The auxiliary
heads of a course are cut with the model, so that its losses go on.

    >>> importance = course_importance(course, source, batches=24)                 # doctest: +SKIP
    >>> state = prune(source.state, source.config, target, importance)             # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.files import make_directory, write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.weights import expected_tensors
from autoglm.training.importance import Importance
from autoglm.training.sources import Source, write_source

KEPT_NAME = "kept.json"
PRUNED = ("width", "num_layers", "num_heads", "ffn_width")  # the sizes that may become smaller


@dataclass(frozen=True)
class Kept:
    """What stays, ascending indices.

    Attributes:
        width: channels of the stream.
        blocks: blocks.
        ffn: channels of each block that stays.
        heads: query heads of each block that stays.
    """

    width: Tensor
    blocks: list[int]
    ffn: list[Tensor]
    heads: list[Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``; all indices from 0."""
        return {
            "width": self.width.tolist(),
            "blocks": self.blocks,
            "ffn": [each.tolist() for each in self.ffn],
            "heads": [each.tolist() for each in self.heads],
        }


def target_config(config: ModelConfig, **sizes: int | None) -> ModelConfig:
    """Return the sizes to prune to; those not given stay. Sizes that have a name of their own get it.

    Raises:
        ConfigError: a size would grow, or does not divide as the model needs.
    """
    chosen: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    target = dataclasses.replace(config, **chosen)
    check_target(config, target)
    for known in CONFIGS.values():
        if dataclasses.replace(target, name=known.name) == known:
            return known
    return target


def check_target(config: ModelConfig, target: ModelConfig) -> None:
    """Refuse a target that pruning alone cannot reach.

    Raises:
        ConfigError: the message names the size.
    """
    for name in PRUNED:
        old, new = getattr(config, name), getattr(target, name)
        if not 0 < new <= old:
            raise ConfigError(f"{name} is {old} and cannot be pruned to {new}")
    same = {name: getattr(config, name) for name in PRUNED} | {"name": config.name}
    if dataclasses.replace(target, **same) != config:
        raise ConfigError(f"pruning changes {', '.join(PRUNED)} and nothing else")
    if target.num_heads % config.num_kv_heads:
        raise ConfigError(f"{target.num_heads} heads cannot be shared by {config.num_kv_heads} KV groups")


# Choosing


def choose(importance: Importance, config: ModelConfig, target: ModelConfig) -> Kept:
    """Return what stays of a model with these importances.

    Raises:
        ConfigError: pruning cannot reach the target.
    """
    check_target(config, target)
    blocks = _best(importance.blocks, target.num_layers).tolist()
    groups = config.num_kv_heads
    return Kept(
        width=_best(importance.width, target.width),
        blocks=blocks,
        ffn=[_best(importance.ffn[i], target.ffn_width) for i in blocks],
        heads=[_best_heads(importance.heads[i], groups, target.num_heads // groups) for i in blocks],
    )


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _best_heads(scores: Tensor, groups: int, count: int) -> Tensor:
    """Return the ``count`` best heads of each KV group, so that every group keeps its keys' readers."""
    size = len(scores) // groups
    kept = [_best(scores[g * size : (g + 1) * size], count) + g * size for g in range(groups)]
    return torch.cat(kept)


# Cutting


def prune(
    state: Mapping[str, Tensor], config: ModelConfig, target: ModelConfig, importance: Importance
) -> dict[str, Tensor]:
    """Return the weights of the smaller model.

    Args:
        state: the weights of a model of the sizes ``config``; never changed.
        config: its sizes.
        target: the sizes wanted.
        importance: measured on a course's batches.

    Raises:
        ConfigError: pruning cannot reach the target.
    """
    return cut(state, config, target, choose(importance, config, target))


def cut(
    state: Mapping[str, Tensor], config: ModelConfig, target: ModelConfig, kept: Kept
) -> dict[str, Tensor]:
    """Return the weights with only what is kept, as a model of the sizes ``target`` has them.

    Works on the meta device too, where it moves no byte.
    """
    inside = _embedder_channels(state, target.width)
    small: dict[str, Tensor] = {}
    for name in expected_tensors(target):
        old, number = _old_name(name, kept.blocks)
        value = state[old]
        for dim, axis in enumerate(_axes(name)):
            index = _index(axis, number, config, kept, inside)
            if index is not None:
                value = value.index_select(dim, index.to(value.device))
        small[name] = value
    return _set_right(small, config, target)


def _old_name(name: str, blocks: list[int]) -> tuple[str, int]:
    """Return a weight's name before blocks went, and the place of its block among those that stay."""
    found = re.match(r"blocks\.(\d+)\.(.+)", name)
    if found is None:
        return name, 0
    number = int(found[1])
    return f"blocks.{blocks[number]}.{found[2]}", number


# Which dimensions of an auxiliary head's weight run over the stream's channels.
_CIRCUIT_DIMS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"turns", (1, 2)),
    (r"background|(stem|sound|place)\.weight", (1,)),
    (r".*_norm\.weight", (0,)),
)


def cut_circuits(circuits: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Return a course's auxiliary heads with only the stream's channels that stay."""
    small: dict[str, Tensor] = {}
    for name, value in circuits.items():
        dims = next((dims for pattern, dims in _CIRCUIT_DIMS if re.fullmatch(pattern, name)), ())
        for dim in dims:
            value = value.index_select(dim, kept.width)
        small[name] = value
    return small


# What the dimensions of a weight run over, first match wins; "" is never pruned.
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(table|head|modality)\.weight", ("", "width")),
    (r"places\.project\.weight", ("width", "width")),
    (r"image\.layers\.(9|10)\..*", ("image",)),
    (r"image\.layers\.12\.weight", ("width", "image")),
    (r"image\.layers\.12\.bias", ("width",)),
    (r"image\.layers\..*", ()),
    (r"image\.inner\..*", ("image",)),
    (r"image\.outer\.weight", ("width", "image")),
    (r"audio\.first.*", ()),
    (r"audio\.second.*", ("audio",)),
    (r"audio\.outer\.weight", ("width", "audio")),
    (r"blocks\.\d+\.qkv\..*", ("qkv", "width")),
    (r"blocks\.\d+\.out\.weight", ("width", "heads")),
    (r"blocks\.\d+\.gate_up\.weight", ("gate_up", "width")),
    (r"blocks\.\d+\.down\.weight", ("width", "ffn")),
    (r".*norm\.weight|(image|audio)\.(outer\.bias|norm\.weight)", ("width",)),
)


def _axes(name: str) -> tuple[str, ...]:
    axes = next((axes for pattern, axes in _AXES if re.fullmatch(pattern, name)), None)
    if axes is None:
        raise ConfigError(f"it is not known how to prune {name!r}")
    return axes[:1] if name.endswith("bias") else axes


def _index(
    axis: str, number: int, config: ModelConfig, kept: Kept, inside: Mapping[str, Tensor]
) -> Tensor | None:
    """Return the indices that stay along one axis of a weight of the ``number``-th kept block."""
    dim = config.head_dim
    chosen: dict[str, Callable[[], Tensor]] = {
        "width": lambda: kept.width,
        "ffn": lambda: kept.ffn[number],
        "gate_up": lambda: torch.cat([kept.ffn[number], kept.ffn[number] + config.ffn_width]),
        "heads": lambda: _rows(kept.heads[number], dim),
        "qkv": lambda: torch.cat(
            [
                _rows(kept.heads[number], dim),
                torch.arange(config.num_heads * dim, (config.num_heads + 2 * config.num_kv_heads) * dim),
            ]
        ),
    }
    if axis in inside:
        return inside[axis]
    return chosen[axis]() if axis in chosen else None


def _rows(heads: Tensor, dim: int) -> Tensor:
    return (heads[:, None] * dim + torch.arange(dim)).flatten()


def _embedder_channels(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return the inner channels of the embedders that stay: those read with the longest columns."""
    image = "image.layers.12.weight" if "image.layers.12.weight" in state else "image.outer.weight"
    kept: dict[str, Tensor] = {}
    for axis, name in (("image", image), ("audio", "audio.outer.weight")):
        columns = state[name].flatten(1)
        lengths = torch.ones(columns.shape[1]) if columns.is_meta else columns.float().norm(dim=0)
        kept[axis] = _best(lengths, width)
    return kept


def _set_right(state: dict[str, Tensor], config: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Undo what a smaller width changes by itself: tied tables are scaled by the root of the width."""
    if config.tie_embeddings and config.width != target.width:
        factor = (config.width / target.width) ** 0.5
        state["table.weight"] = state["table.weight"] * factor
        state["norm.weight"] = state["norm.weight"] / factor  # the table is the head too
    return state


def prune_source(source: Source, target: ModelConfig, output: Path, importance: Importance) -> Kept:
    """Cut, and write the smaller model to ``output`` with its auxiliary heads, which a kill leaves as it was.

    Args:
        source: the model.
        target: the sizes wanted.
        output: a directory; :func:`~autoglm.training.sources.read_source` reads it.
        importance: measured on calibration data.

    Raises:
        ConfigError: pruning cannot reach the target.
        StorageError: the disk refused.
    """
    check_target(source.config, target)
    make_directory(output)
    kept = choose(importance, source.config, target)
    small = cut(source.state, source.config, target, kept)
    circuits = cut_circuits(source.circuits, kept)
    write_source(output, target, small, source.tokenizer, circuits, source.alphabet)
    write_durably(output / KEPT_NAME, (json.dumps(kept.to_dict()) + "\n").encode())
    return kept
