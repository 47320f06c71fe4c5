"""Convert a ``.pt`` checkpoint to a release directory, once; nothing in the file is ever executed.

The file holds one dictionary: ``config`` (as in config.json), ``tokenizer`` (the text of tokenizer.json),
``weights`` (name -> tensor), and optionally ``health`` (as in health.json). It is read by torch's restricted
unpickler, which builds tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from autoglm.errors import FormatError
from autoglm.files import make_directory, publish_tree, write_durably
from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    expected_tensors,
    save_weights,
)
from autoglm.releases import HEALTH_NAME, MANIFEST_NAME, HealthCheck, Manifest

_KEYS = {"config", "tokenizer", "weights"}


def write_release(
    target: Path,
    *,
    config: ModelConfig,
    tokenizer: str,
    state: Mapping[str, Tensor],
    health: HealthCheck,
    scales: Mapping[str, Tensor] | None = None,
    int4_group: int = 0,
    **names: Any,
) -> Manifest:
    """Write a whole release directory to the free name ``target``, durably, and return its manifest.

    Args:
        target: must not exist.
        config: the model's sizes.
        tokenizer: the text of tokenizer.json.
        state: the model's state dictionary; matrices are stored as codes.
        health: the self-test.
        scales: scales to keep, such as the previous release's.
        int4_group: store the blocks' matrices in INT4 with a scale for so many columns; 0: all in INT8.
        names: model, variant, name, version, counter and further fields of the manifest.

    Raises:
        StorageError: ``target`` is not free, or the disk refused.
        ManifestError: a name breaks the rules.
        EngineError: a weight is not finite.
        ConfigError: a matrix does not divide into INT4 groups.
    """
    make_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=".tmp-release-", dir=target.parent) as scratch:
        directory = Path(scratch) / "release"
        directory.mkdir()
        write_durably(directory / CONFIG_NAME, config.to_json().encode())
        write_durably(directory / TOKENIZER_NAME, tokenizer.encode())
        write_durably(directory / HEALTH_NAME, health.to_bytes())
        save_weights(directory / WEIGHTS_NAME, state, scales, int4_group=int4_group)
        manifest = Manifest.of_directory(directory, **names)
        write_durably(directory / MANIFEST_NAME, manifest.to_bytes())
        publish_tree(directory, target)
    return manifest


def convert_checkpoint(source: Path, target: Path, **names: Any) -> Manifest:
    """Turn the checkpoint ``source`` into the release directory ``target``.

    Args:
        source: the ``.pt`` file.
        target: must not exist.
        names: model, variant, name, version, counter and further fields of the manifest.

    Raises:
        FormatError: not such a checkpoint, or it holds anything but tensors and plain data.
        StorageError: ``target`` is not free, or the disk refused.
        EngineError: a weight is not finite.
    """
    content = _load(source)
    if not _KEYS <= set(content) <= _KEYS | {"health"}:
        raise FormatError(f"{source} must hold config, tokenizer, weights and maybe health, nothing else")
    config = ModelConfig.from_json(_as_json(content["config"], source, "config"))
    tokenizer = content["tokenizer"]
    if not isinstance(tokenizer, str):
        raise FormatError(f"{source}: tokenizer must be the text of tokenizer.json")
    Tokenizer.from_bytes(tokenizer.encode("utf-8", "replace"))
    health = HealthCheck(())
    if "health" in content:
        health = HealthCheck.from_bytes(_as_json(content["health"], source, "health").encode())
    state = _state(content["weights"], config, source)
    return write_release(target, config=config, tokenizer=tokenizer, state=state, health=health, **names)


def save_checkpoint(path: Path, model: PhoneModel, tokenizer: str, health: HealthCheck) -> None:
    """Write a ``.pt`` checkpoint that :func:`convert_checkpoint` reads; not durable, an export."""
    weights = {name: model.state_dict()[name] for name in expected_tensors(model.config)}
    config = cast("dict[str, Any]", json.loads(json.dumps(asdict(model.config))))
    content = {
        "config": config,
        "tokenizer": tokenizer,
        "weights": weights,
        "health": json.loads(health.to_bytes()),
    }
    torch.save(content, path)


def _load(source: Path) -> dict[str, Any]:
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{source} was refused: it holds more than tensors and plain data, and loading it could run "
            "code. Save a dictionary of tensors instead."
        ) from error
    except OSError as error:
        raise FormatError(f"{source} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise FormatError(f"{source} is not a torch checkpoint: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{source} must hold a dictionary")
    return cast("dict[str, Any]", content)


def _as_json(value: Any, source: Path, what: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{source}: {what} is not plain data") from error


def _state(weights: Any, config: ModelConfig, source: Path) -> dict[str, Tensor]:
    wanted = expected_tensors(config)
    if not isinstance(weights, dict) or set(cast("dict[str, Any]", weights)) != set(wanted):
        raise FormatError(f"{source}: the weights' names are not those that the configuration asks for")
    state = cast("dict[str, Any]", weights)
    for name, shape in wanted.items():
        tensor = state[name]
        if not isinstance(tensor, Tensor) or tensor.shape != shape or not tensor.is_floating_point():
            raise FormatError(f"{source}: weight {name!r} is not a float tensor of shape {tuple(shape)}")
    return state
