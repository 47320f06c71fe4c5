"""A release that is ready to run: weights, tokenizer, template and self-test as one immutable object.

What it guarantees: every file was checked against the manifest before it was parsed, memory was counted
before it was used, every weight is finite, and all that answers a request (weights, configuration,
tokenizer, chat template) comes from one release, because nothing takes them apart.

    >>> load_resident(Path("releases/autoglm-phone-nano-v1.2"), Placement())          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoglm.engine.devices import MemoryPlan, by_core, count_memory, min_packed, weight_dtype
from autoglm.engine.encodings import Encodings
from autoglm.engine.graphs import graphs_for
from autoglm.engine.heap import mapped_one_by_one
from autoglm.engine.pages import PagePool
from autoglm.engine.structure import Grammars
from autoglm.engine.transcript import Markers
from autoglm.errors import AutoGLMError, EngineError, FormatError
from autoglm.model.cache import KVCache
from autoglm.model.config import MAX_CONFIG_BYTES, ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Processor
from autoglm.model.sharing import LoadedWeight, Sharing
from autoglm.model.tokenizer import Tokenizer
from autoglm.model.unchanged import unchanged_bytes
from autoglm.model.weights import (
    CONFIG_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    LoadedModel,
    load_release,
    packed_names,
)
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
        weights: each with the hash of what is stored for it, for the next release to share.
    """

    manifest: Manifest
    manifest_sha256: str
    model: PhoneModel
    tokenizer: Tokenizer
    processor: Processor
    health: HealthCheck
    markers: Markers
    weights: Mapping[str, LoadedWeight]

    @property
    def version(self) -> str:
        """Such as ``v1.2``."""
        return self.manifest.version

    @property
    def fingerprint(self) -> str:
        """A short name of exactly these bytes, for answers and logs."""
        return f"fp_{self.manifest_sha256[:16]}"

    @classmethod
    def load(
        cls, directory: Path, *, devices: Sequence[torch.device], sharing: Sharing | None = None
    ) -> Release:
        """Read and place a release directory, whose files were verified.

        Args:
            directory: where it lies.
            devices: the layers are split over these.
            sharing: knows weights that are in memory already.

        Raises:
            FormatError: a file does not parse, or names tensors that the model does not have.
            EngineError: the weights are not finite, or memory is short.
        """
        manifest = Manifest.read(directory)
        loaded = _load(directory, devices, sharing)
        loaded.model.eval().requires_grad_(False)
        return cls(
            manifest=manifest,
            manifest_sha256=manifest.sha256,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            processor=loaded.processor,
            health=loaded.health,
            markers=Markers.of(loaded.tokenizer),
            weights=loaded.weights,
        )


def _load(directory: Path, devices: Sequence[torch.device], sharing: Sharing | None) -> LoadedModel:
    try:
        dtype, least = weight_dtype(devices), min_packed(devices)
        native = by_core(devices)
        return load_release(directory, devices, dtype, sharing, min_packed=least, by_core=native)
    except AutoGLMError:
        raise
    except (RuntimeError, MemoryError) as error:  # torch reports both bad data and short memory like this
        raise EngineError(f"{directory} could not be loaded: {error}") from error


@dataclass(frozen=True)
class Placement:
    """Where releases run and how much room each gets.

    Attributes:
        devices: the layers are split over these, in order.
        max_batch: requests generated at the same time.
        max_context: tokens a request, prompt and answer together; None: what the model was made for.
        cache_tokens: tokens that the cache holds for all requests together, rounded down to whole contexts,
            at least one; None: ``max_batch`` contexts, so that no request ever waits for pages.
    """

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    max_batch: int = 8
    max_context: int | None = None
    cache_tokens: int | None = None

    def room(self, config: ModelConfig) -> tuple[int, int]:
        """Return how many contexts the cache holds, and the tokens of one."""
        max_context = min(self.max_context or config.max_context, config.max_context)
        if self.cache_tokens is None:
            return self.max_batch, max_context
        return max(1, self.cache_tokens // max_context), max_context


def load_resident(
    directory: Path,
    placement: Placement,
    *,
    beside: Release | None = None,
    pace: Callable[[], None] | None = None,
    check_room: bool = True,
) -> Resident:
    """Verify, count memory for, load and give a cache to the release in ``directory``.

    Args:
        directory: holds ``manifest.json`` and the files that it lists.
        placement: where to and with how much room.
        beside: the running release, whose weights are shared where the same is stored.
        pace: called between two pieces of reading; rests where that spares the running release.
        check_room: refuse what does not fit; without, it is tried all the same.

    Raises:
        IntegrityError: a file differs from the manifest.
        FormatError: a file does not parse, or breaks a limit.
        EngineError: it does not fit into memory, or its weights are not finite.
    """
    pace = pace or _go_on
    manifest = Manifest.read(directory)
    manifest.verify(directory, pace)
    if check_room:
        plan_release(directory, placement, beside=beside).require_room(directory.name)
    with mapped_one_by_one():
        pace()
        sharing = _sharing(beside, manifest, pace)
        release = Release.load(directory, devices=placement.devices, sharing=sharing)
        num_slots, max_context = placement.room(_read_config(directory))
        return Resident(release, num_slots=num_slots, max_context=max_context, pace=pace)


def _go_on() -> None:
    pass


def _sharing(beside: Release | None, manifest: Manifest, pace: Callable[[], None]) -> Sharing:
    """Return what a release with this manifest may take over from the running one."""
    if beside is None:
        return Sharing(None, pace)
    files = [{file.path: file.sha256 for file in each.files} for each in (beside.manifest, manifest)]
    is_same = files[0].get(TOKENIZER_NAME, "") == files[1].get(TOKENIZER_NAME)
    return Sharing(beside.weights, pace, beside.tokenizer if is_same else None)


def plan_release(
    directory: Path, placement: Placement, *, staging: bool = False, beside: Release | None = None
) -> MemoryPlan:
    """Count the memory that the release in ``directory`` needs.

    Args:
        directory: holds the release.
        placement: where to and with how much room.
        staging: also count the room of the next release.
        beside: the running release. Where memory is too short for a release that changes every weight, what
            the two have in common is looked for, and is not counted.

    Raises:
        FormatError: its configuration does not parse.
    """
    config = _read_config(directory)
    num_slots, max_context = placement.room(config)
    room = {"max_batch": num_slots, "max_context": max_context}
    form = min_packed(placement.devices), by_core(placement.devices)
    packed = packed_names(directory / WEIGHTS_NAME, config, form[0], by_core=form[1])
    plan = count_memory(config, placement.devices, **room, staging=staging, packed=packed)
    if beside is None or plan.needed_bytes <= plan.free:
        return plan
    return plan.sharing(unchanged_bytes(directory / WEIGHTS_NAME, beside.weights))


def _read_config(directory: Path) -> ModelConfig:
    try:
        with (directory / CONFIG_NAME).open("rb") as file:
            return ModelConfig.from_json(file.read(MAX_CONFIG_BYTES + 1))
    except OSError as error:
        raise FormatError(f"no readable {CONFIG_NAME} in {directory}") from error


class Resident:
    """A release in memory with room for the sequences that run on it.

    Only the thread that runs the model touches the cache and what is kept in it; ``num_users`` belongs to
    :class:`~autoglm.engine.versions.Versions`.

    Attributes:
        release: what runs.
        max_context: tokens of prompt and answer together.
        cache: keys and values of ``num_slots`` contexts.
        graphs: decodes by captured CUDA graphs; None where there are none.
        pages: which sequence owns which of them.
        encodings: embedded media.
        grammars: makes constraints for its tokenizer; safe to use from every thread.
        key_seed: what the keys of this release's pages begin with.
        num_users: requests that began on this release and have not ended.
        is_lost: whether a step that was given up may still write to the cache.
    """

    def __init__(
        self, release: Release, *, num_slots: int, max_context: int, pace: Callable[[], None] = _go_on
    ) -> None:
        self.release = release
        self.max_context = max_context
        self.cache: KVCache = release.model.new_cache(num_slots, self.max_context, pace)
        per_slot = self.cache.pages_per_slot
        self.graphs = graphs_for(release.model, self.cache)
        self.pages = PagePool(num_slots, per_slot, self.cache.copy_page, self.cache.wipe_page)
        self.encodings = Encodings()
        self.grammars = Grammars(release.tokenizer)
        self.key_seed = release.fingerprint.encode()
        self.num_users = 0
        self.is_lost = False

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages hold this many tokens."""
        return -(-num_tokens // self.cache.page)

    def anew(self) -> Resident:
        """Return the same release with an empty cache of its own."""
        return Resident(self.release, num_slots=self.cache.num_slots, max_context=self.max_context)

    def unload(self) -> None:
        """Give the memory of weights and cache back, whoever else still holds this object.

        A thread that still computes on it, such as an abandoned self-test, breaks off with an error.
        """
        self.graphs = None
        self.cache.drop()
        self.encodings = Encodings()
        self.release.model.drop_packed()
        for tensor in (*self.release.model.parameters(), *self.release.model.buffers()):
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
