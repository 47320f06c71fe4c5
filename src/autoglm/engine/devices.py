"""Which devices run the model, and whether it fits: counted before anything is loaded.

The sum is weights, the KV cache of all slots, what packing INT8 weights takes besides while it lasts, and
weights and cache once more as room to stage the next release beside the running one. That is the worst case,
in which the next release changes every weight: unchanged ones are shared. A model that leaves no such room
still runs, and is told so with the figures: each update then unloads it first, and requests wait in the
meantime.

    >>> preflight(config, pick_devices("auto"), max_batch=8, max_context=2048).needed_bytes  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from autoglm import memory
from autoglm.errors import ConfigError, OutOfMemoryError
from autoglm.model import step
from autoglm.model.cache import KVCache
from autoglm.model.config import ModelConfig
from autoglm.model.kernels import MIN_WEIGHTS, packed_bytes
from autoglm.model.network import PhoneModel, split_layers
from autoglm.model.weights import PIECE_WEIGHTS

_GIB = 1 << 30
_PIECE_TIMES = 20  # bytes of numbers computed with, a weight of the piece that is read
_LARGE_PARAMETERS = 100_000_000


def pick_devices(wanted: str | Sequence[str] = "auto") -> tuple[torch.device, ...]:
    """Return the devices to split the layers over.

    Args:
        wanted: ``auto`` (every visible CUDA device, else the CPU), a comma-separated text, or names.

    Raises:
        ConfigError: a name is no device, or the device is not there.
    """
    if wanted == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [f"cuda:{index}" for index in range(count)] or ["cpu"]
    else:
        names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    if not names:
        raise ConfigError("no device was named: use 'auto', 'cpu' or such as 'cuda:0,cuda:1'")
    return tuple(_device(name) for name in names)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device: use 'auto', 'cpu' or such as 'cuda:0'") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported: use 'cpu' or such as 'cuda:0'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices are visible"
        )
    return device


def weight_dtype(devices: Sequence[torch.device]) -> torch.dtype:
    """Return the type that weights are computed in: bf16 on CUDA, float32 on a CPU."""
    return torch.bfloat16 if devices[0].type == "cuda" else torch.float32


def min_packed(devices: Sequence[torch.device]) -> int | None:
    """Return how many weights a matrix needs to stay INT8: the kernel is for CPUs alone; None: none does."""
    return MIN_WEIGHTS if all(device.type == "cpu" for device in devices) else None


def by_core(devices: Sequence[torch.device]) -> bool:
    """Tell whether the native core may decode here: on CPUs; which models it does is a rule about them."""
    return all(device.type == "cpu" for device in devices)


@dataclass(frozen=True)
class Share:
    """What one of several devices has to hold, in bytes.

    Attributes:
        device: its name.
        needed: its layers' weights and cache, and staging room for them.
        free: its free memory.
    """

    device: str
    needed: int
    free: int

    def __str__(self) -> str:
        return f"{self.device} needs {self.needed / _GIB:.2f} of {self.free / _GIB:.2f} GiB"


@dataclass(frozen=True)
class MemoryPlan:
    """What a model needs, in bytes.

    Attributes:
        weights: all parameters as they are held: INT8, or the type they are computed in.
        cache: keys and values of every slot.
        staging: the next release beside this one, its cache included.
        free: free memory of all devices together.
        shares: the same by device, where there are several.
        packing: what loading takes at its peak beyond all that; the cache, which comes after, has room for it
            mostly.
        shared: weights of ``weights`` that are in memory already.
    """

    weights: int
    cache: int
    staging: int
    free: int
    shares: tuple[Share, ...] = ()
    packing: int = 0
    shared: int = 0

    @property
    def needed_bytes(self) -> int:
        """The sum."""
        return self.weights - self.shared + self.cache + self.packing + self.staging

    def sharing(self, num_bytes: int) -> MemoryPlan:
        """Return the plan for a release of whose weights so many bytes are in memory already."""
        return replace(self, shared=min(num_bytes, self.weights))

    @property
    def free_bytes(self) -> int:
        """Free memory, under the name that the device SDK asks for."""
        return self.free

    def require_room(self, name: str) -> None:
        """Refuse before memory runs out.

        Raises:
            OutOfMemoryError: the model called ``name`` does not fit; the message holds the sum.
        """
        if self.needed_bytes > self.free:
            raise OutOfMemoryError(
                f"{name} does not fit: {self}. Give it more devices, or lower max_batch or max_context"
            )
        if short := [str(share) for share in self.shares if share.needed > share.free]:
            raise OutOfMemoryError(
                f"{name} does not fit when its layers are split: {'; '.join(short)}. In all: {self}"
            )

    def __str__(self) -> str:
        parts = [("weights", self.weights - self.shared), ("KV cache", self.cache)]
        parts += [("packing", self.packing)] if self.packing else []
        parts.append(("staging room", self.staging))
        terms = " + ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in parts)
        return f"{terms} = {self.needed_bytes / _GIB:.2f} GiB; free: {self.free / _GIB:.2f} GiB"


def count_memory(
    config: ModelConfig,
    devices: Sequence[torch.device],
    *,
    max_batch: int,
    max_context: int,
    staging: bool = True,
    packed: Collection[str] = (),
) -> MemoryPlan:
    """Add up what a model needs.

    Args:
        config: the model.
        devices: where it is to run.
        max_batch: sequences at the same time.
        max_context: tokens a sequence, prompt and answer together.
        staging: also count the room of the next release, every weight of which may differ.
        packed: names of the matrices that stay INT8.
    """
    dtype = weight_dtype(devices)
    first, *blocks = _weights_by_place(config, dtype, frozenset(packed), step.pays(config))
    layers = [torch.device("meta")] * config.num_layers
    cache = KVCache(config, max_batch, max_context, layers, dtype).num_bytes
    times = 2 if staging else 1
    needed = dict.fromkeys(devices, 0) | {devices[0]: first * times}
    for device, weights in zip(split_layers(config.num_layers, devices), blocks, strict=True):
        needed[device] += (weights + cache // config.num_layers) * times
    parts = needed.items() if len(needed) > 1 else ()
    shares = tuple(Share(str(device), size, free_bytes((device,))) for device, size in parts)
    weights = first + sum(blocks)
    room = (times - 1) * (weights + cache)
    packing = max(0, _loading_peak(config, dtype, frozenset(packed), step.pays(config)) - weights - cache)
    return MemoryPlan(weights, cache, room, free_bytes(devices), shares, packing)


@functools.lru_cache(maxsize=8)
def _weights_by_place(
    config: ModelConfig, dtype: torch.dtype, packed: frozenset[str], is_native: bool = False
) -> tuple[int, ...]:
    """Return the bytes of what lies on the first device whatever the split, then of each block.

    Remembered, because staging asks again while the model serves.
    """
    sizes = [0] * (1 + config.num_layers)
    for name, shape in _shapes(config):
        place = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        sizes[place] += _held_bytes(config, name, shape, dtype, packed, is_native)
    return tuple(sizes)


@functools.lru_cache(maxsize=8)
def _loading_peak(
    config: ModelConfig, dtype: torch.dtype, packed: frozenset[str], is_native: bool = False
) -> int:
    """Return the most bytes held at any time while the weights are read, one after the other.

    A matrix that is packed is there up to three times: its codes when they come from INT4, torch's quantised
    tensor, and what is kept. The native core's layout is made of the codes at once. Measured as
    anonymous memory of a process of its own.
    """
    held = peak = 0
    for name, shape in _shapes(config):
        size = _held_bytes(config, name, shape, dtype, packed, is_native)
        copies = (1 if is_native else 2) * math.prod(shape) if name in packed else 0
        piece = _PIECE_TIMES * min(PIECE_WEIGHTS, math.prod(shape))
        held, peak = held + size, max(peak, held + size + copies + piece)
    return peak


def _shapes(config: ModelConfig) -> list[tuple[str, torch.Size]]:
    with torch.device("meta"):
        return [(name, parameter.shape) for name, parameter in PhoneModel(config).named_parameters()]


def _held_bytes(
    config: ModelConfig,
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    packed: frozenset[str],
    is_native: bool,
) -> int:
    as_int8 = _int8_bytes(config, name, shape, is_native) if name in packed else 0
    return as_int8 or math.prod(shape) * dtype.itemsize


def _int8_bytes(config: ModelConfig, name: str, shape: Sequence[int], is_native: bool) -> int:
    """Return what a matrix takes as INT8, for the native core or for torch's kernel."""
    if is_native:
        return step.held_bytes(shape)
    copies = 1 + (name == "table.weight" and config.tie_embeddings)  # one to look up, one to multiply
    return packed_bytes(shape) * copies


def preflight(
    config: ModelConfig,
    devices: Sequence[torch.device],
    *,
    max_batch: int,
    max_context: int,
    staging: bool = True,
    packed: Collection[str] = (),
) -> MemoryPlan:
    """Add up what a model needs and refuse before memory runs out; see :func:`count_memory`.

    Raises:
        OutOfMemoryError: it does not fit; the message holds the sum.
    """
    room = {"max_batch": max_batch, "max_context": max_context}
    plan = count_memory(config, devices, **room, staging=staging, packed=packed)
    plan.require_room(config.name)
    return plan


def pick_threads(config: ModelConfig) -> int:
    """Return how many CPU threads pay for a model: all cores for a large one, one for a small one.

    The matrices of a small model are done before a second thread has woken up, and threads that wait for
    each other spin: on a machine whose cores are shared, one thread was 30 times faster than two.
    """
    return torch.get_num_threads() if _count_parameters(config) >= _LARGE_PARAMETERS else 1


def _count_parameters(config: ModelConfig) -> int:
    """Count the real modules' parameters."""
    return sum(_weights_by_place(config, torch.int8, frozenset()))


def free_bytes(devices: Sequence[torch.device]) -> int:
    """Return the free memory of these devices together, each counted once."""
    total = 0
    for device in set(devices):
        total += torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_bytes()
    return total
