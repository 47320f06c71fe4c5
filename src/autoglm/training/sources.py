"""Float weights with their sizes and tokenizer, from wherever they lie: a run, a pruned model, or a release.

>>> source = read_source(Path("runs/v1.2"))                          # doctest: +SKIP
>>> source.config.ffn_width, source.stored_bytes                     # doctest: +SKIP
(512, 6996352)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoglm.errors import ConfigError, FormatError
from autoglm.files import write_durably
from autoglm.model.config import CONFIGS, ModelConfig
from autoglm.model.prompt import Processor
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    LoadedModel,
    build_model,
    expected_tensors,
    read_weights,
)
from autoglm.releases import MANIFEST_NAME, HealthCheck, Manifest

RUN_WEIGHTS, ALPHABET_NAME = "checkpoint.pt", "alphabet.txt"
_FLOAT_BYTES = 2  # a float model is charged as bf16


@dataclass(frozen=True)
class Source:
    """A model that another one is made of.

    Attributes:
        config: its sizes.
        state: its float weights by name.
        tokenizer: the text of its tokenizer.json.
        stored_bytes: what its weights take: as they lie in a release, or in bf16.
        circuits: weights of the auxiliary heads by name, where a course's run has them.
        alphabet: the characters of its transcripts, likewise.
    """

    config: ModelConfig
    state: Mapping[str, Tensor]
    tokenizer: str
    stored_bytes: int
    circuits: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    alphabet: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of sizes, tokenizer and weights, to tell one source from another."""
        digest = hashlib.sha256(self.config.to_json().encode() + self.tokenizer.encode())
        for name in sorted(self.state):
            digest.update(name.encode() + self.state[name].float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def load(self) -> LoadedModel:
        """Build the model, ready to answer; without a self-test."""
        tokenizer = Tokenizer.from_bytes(self.tokenizer.encode())
        model = build_model(self.config, {name: tensor.float() for name, tensor in self.state.items()})
        model.place(["cpu"])
        return LoadedModel(self.config, model, tokenizer, Processor(tokenizer, self.config), HealthCheck(()))


def read_source(directory: Path) -> Source:
    """Read the weights in a run's directory, a pruned model's or a release's.

    Raises:
        ConfigError: there is none of them, or the run trained an adapter and not weights.
        FormatError: a file is missing or damaged.
        EngineError: a weight of a release is missing, unknown, of a wrong shape, or not finite.
    """
    circuits: Mapping[str, Tensor] = {}
    if (directory / WEIGHTS_NAME).exists():
        config = ModelConfig.from_json(_text(directory / CONFIG_NAME))
        size = (directory / WEIGHTS_NAME).stat().st_size
        state = read_weights(directory / WEIGHTS_NAME, config)
    else:
        config, state = run_config(directory), read_run(directory)
        if {name: tensor.shape for name, tensor in state.items()} != expected_tensors(config):
            raise FormatError(f"the weights in {directory} do not have the sizes of its {CONFIG_NAME}")
        size = sum(tensor.numel() for tensor in state.values()) * _FLOAT_BYTES
        circuits = _content(directory).get("circuits", {})
    alphabet = directory / ALPHABET_NAME
    letters = _text(alphabet) if alphabet.exists() else ""
    return Source(config, state, _text(directory / TOKENIZER_NAME), size, circuits, letters)


def write_source(
    directory: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: str,
    circuits: Mapping[str, Tensor] | None = None,
    alphabet: str = "",
) -> None:
    """Write a model as :func:`read_source` reads it, float32, durably; no run can go on from it.

    Raises:
        StorageError: the disk refused.
    """
    import io

    buffer = io.BytesIO()
    # Named as no recipe is, so that a run in this directory is refused as another's.
    content: dict[str, Any] = {"recipe": None, "seed": None, "adapter": None, "model": dict(state)}
    if circuits:
        content["circuits"] = dict(circuits)
        write_durably(directory / ALPHABET_NAME, alphabet.encode())
    torch.save(content, buffer)
    write_durably(directory / TOKENIZER_NAME, tokenizer.encode())
    write_durably(directory / CONFIG_NAME, config.to_json().encode())
    write_durably(directory / RUN_WEIGHTS, buffer.getvalue())


def read_run(run: Path) -> dict[str, Tensor]:
    """Return the float weights of a run.

    Raises:
        ConfigError: it has no checkpoint, or trained an adapter and not weights.
    """
    content = _content(run)
    if content.get("adapter") is not None or any(".lora_" in name for name in content["model"]):
        raise ConfigError(f"{run} trained an adapter: merge it with `autoglm model merge`")
    state: dict[str, Tensor] = content["model"]
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _content(run: Path) -> dict[str, Any]:
    path = run / RUN_WEIGHTS
    if not path.exists():
        raise ConfigError(f"{run} holds no {RUN_WEIGHTS}: train first")
    return torch.load(path, weights_only=True, map_location="cpu")


def run_config(run: Path) -> ModelConfig:
    """Return the sizes of a run's model; those of the shipped one where an old run does not say.

    Raises:
        FormatError: its config.json is damaged.
    """
    path = run / CONFIG_NAME
    return ModelConfig.from_json(path.read_text()) if path.exists() else CONFIGS["nano"]


def version_of(directory: Path) -> str | None:
    """Return the version of a release directory, None of another."""
    return Manifest.read(directory).version if (directory / MANIFEST_NAME).exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
