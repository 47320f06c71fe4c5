"""A release that is ready to run: weights, tokenizer, template and self-test as one immutable object.

What it guarantees: every file was checked against the manifest before it was parsed, memory was counted
before it was used, every weight is finite, and all that answers a request (weights, configuration,
tokenizer, chat template) comes from one release, because nothing takes them apart.

    >>> load_resident(Path("releases/autoglm-phone-nano-v1.2"), Placement())          # doctest: +SKIP
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoglm.engine.devices import preflight, weight_dtype
from autoglm.engine.transcript import Markers
from autoglm.errors import AutoGLMError, EngineError, FormatError
from autoglm.model.cache import KVCache
from autoglm.model.config import MAX_CONFIG_BYTES, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Processor
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.weights import CONFIG_NAME, LoadedModel, load_release
from autoglm.releases import HealthCheck, Manifest


@dataclass(frozen=True)
class Release:
    """One loaded release.

    Attributes:
        manifest: what it is.
        manifest_sha256: its identity.
        model: the network, in evaluation mode.
        tokenizer: text to tokens and back.
        processor: conversations, images and sounds to prompts.
        health: its own self-test.
        markers: the tokens that structure an assistant turn.
    """

    manifest: Manifest
    manifest_sha256: str
    model: PhoneModel
    tokenizer: Tokenizer
    processor: Processor
    health: HealthCheck
    markers: Markers

    @property
    def version(self) -> str:
        """Such as ``v1.2``."""
        return self.manifest.version

    @property
    def fingerprint(self) -> str:
        """A short name of exactly these bytes, for answers and logs."""
        return f"fp_{self.manifest_sha256[:16]}"

    @classmethod
    def load(cls, directory: Path, *, devices: Sequence[torch.device]) -> Release:
        """Read and place a release directory, whose files were verified.

        Raises:
            FormatError: a file does not parse, or names tensors that the model does not have.
            EngineError: the weights are not finite, or memory is short.
        """
        manifest = Manifest.read(directory)
        loaded = _load(directory, devices)
        loaded.model.eval().requires_grad_(False)
        return cls(
            manifest=manifest,
            manifest_sha256=manifest.sha256,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            processor=loaded.processor,
            health=loaded.health,
            markers=Markers.of(loaded.tokenizer),
        )

    def share_unchanged(self, other: Release) -> int:
        """Let tensors that equal ``other``'s be the same memory; return the bytes this gave back.

        Weights are never written after loading, so sharing is safe; a release that changes little then
        costs little beside the one it replaces.
        """
        theirs = dict(other.model.named_parameters())
        saved = 0
        for name, mine in self.model.named_parameters():
            same = theirs.get(name)
            if same is not None and _identical(mine, same):
                mine.data = same.data
                saved += mine.nbytes
        return saved


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _load(directory: Path, devices: Sequence[torch.device]) -> LoadedModel:
    try:
        return load_release(directory, devices=devices, dtype=weight_dtype(devices))
    except AutoGLMError:
        raise
    except (RuntimeError, MemoryError) as error:  # torch reports both bad data and short memory like this
        raise EngineError(f"{directory} could not be loaded: {error}") from error


@dataclass(frozen=True)
class Placement:
    """Where releases run and how much room each gets.

    Attributes:
        devices: the layers are split over these, in order.
        max_batch: slots of the cache.
        max_context: tokens a slot, prompt and answer together; None: what the model was made for.
    """

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    max_batch: int = 8
    max_context: int | None = None


def load_resident(directory: Path, placement: Placement, *, beside: Release | None = None) -> Resident:
    """Verify, count memory for, load and give a cache to the release in ``directory``.

    Args:
        directory: holds ``manifest.json`` and the files that it lists.
        placement: where to and with how much room.
        beside: the running release, whose unchanged tensors are shared; None for the first one, which must
            leave room for another.

    Raises:
        IntegrityError: a file differs from the manifest.
        FormatError: a file does not parse, or breaks a limit.
        EngineError: it does not fit into memory, or its weights are not finite.
    """
    Manifest.read(directory).verify(directory)
    config = _read_config(directory)
    max_context = min(placement.max_context or config.max_context, config.max_context)
    room = {"max_batch": placement.max_batch, "max_context": max_context}
    preflight(config, placement.devices, **room, staging=beside is None)
    release = Release.load(directory, devices=placement.devices)
    if beside is not None:
        release.share_unchanged(beside)
    return Resident(release, num_slots=placement.max_batch, max_context=max_context)


def _read_config(directory: Path) -> ModelConfig:
    try:
        with (directory / CONFIG_NAME).open("rb") as file:
            return ModelConfig.from_json(file.read(MAX_CONFIG_BYTES + 1))
    except OSError as error:
        raise FormatError(f"no readable {CONFIG_NAME} in {directory}") from error


class Resident:
    """A release in memory with room for the sequences that run on it.

    Only the thread that runs the model touches the cache and the slots; ``num_users`` belongs to
    :class:`~autoglm.engine.versions.Versions`.

    Attributes:
        release: what runs.
        cache: keys and values of ``num_slots`` sequences.
        num_users: requests that began on this release and have not ended.
    """

    def __init__(self, release: Release, *, num_slots: int, max_context: int) -> None:
        self.release = release
        self.max_context = max_context
        self.cache: KVCache = release.model.new_cache(num_slots, self.max_context)
        self.num_users = 0
        self._free_slots = list(range(num_slots))  # a heap

    def take_slot(self) -> int:
        """Reserve the lowest free slot of the cache: slots without gaps between them decode fastest."""
        return heapq.heappop(self._free_slots)

    def return_slot(self, slot: int, *, is_clean: bool) -> None:
        """Give a slot back; one that may hold NaN is wiped, since a masked NaN still spoils a sum."""
        if not is_clean:
            for tensor in (*self.cache.keys, *self.cache.values, *self.cache.bounds):
                tensor[slot].zero_()
        heapq.heappush(self._free_slots, slot)
