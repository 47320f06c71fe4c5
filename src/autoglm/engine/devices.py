"""Which devices run the model, and whether it fits: counted before anything is loaded.

The sum is weights, the KV cache of all slots, and the same again as room to stage the next release beside
the running one. A model that leaves no such room still runs, and is told so with the figures: each update
then unloads it first, and requests wait in the meantime.

    >>> preflight(config, pick_devices("auto"), max_batch=8, max_context=2048).needed_bytes  # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autoglm import memory
from autoglm.errors import ConfigError, OutOfMemoryError
from autoglm.model.cache import KVCache
from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel

_GIB = 1 << 30
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


@dataclass(frozen=True)
class MemoryPlan:
    """What a model needs, in bytes.

    Attributes:
        weights: all parameters in the type they are computed in.
        cache: keys and values of every slot.
        staging: the next release beside this one, its cache included.
        free: free memory of all devices together.
    """

    weights: int
    cache: int
    staging: int
    free: int

    @property
    def needed_bytes(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.staging

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

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("KV cache", self.cache), ("staging room", self.staging))
        terms = " + ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in parts)
        return f"{terms} = {self.needed_bytes / _GIB:.2f} GiB; free: {self.free / _GIB:.2f} GiB"


def count_memory(
    config: ModelConfig,
    devices: Sequence[torch.device],
    *,
    max_batch: int,
    max_context: int,
    staging: bool = True,
) -> MemoryPlan:
    """Add up what a model needs.

    Args:
        config: the model.
        devices: where it is to run.
        max_batch: sequences at the same time.
        max_context: tokens a sequence, prompt and answer together.
        staging: also count the room of the next release.
    """
    dtype = weight_dtype(devices)
    weights = _count_parameters(config) * dtype.itemsize
    layers = [torch.device("meta")] * config.num_layers
    cache = KVCache(config, max_batch, max_context, layers, dtype).num_bytes
    return MemoryPlan(weights, cache, weights + cache if staging else 0, free_bytes(devices))


def preflight(
    config: ModelConfig,
    devices: Sequence[torch.device],
    *,
    max_batch: int,
    max_context: int,
    staging: bool = True,
) -> MemoryPlan:
    """Add up what a model needs and refuse before memory runs out; see :func:`count_memory`.

    Raises:
        OutOfMemoryError: it does not fit; the message holds the sum.
    """
    plan = count_memory(config, devices, max_batch=max_batch, max_context=max_context, staging=staging)
    plan.require_room(config.name)
    return plan


def pick_threads(config: ModelConfig) -> int:
    """Return how many CPU threads pay for a model: all cores for a large one, one for a small one.

    The matrices of a small model are done before a second thread has woken up, and threads that wait for
    each other spin: on a machine whose cores are shared, one thread was 30 times faster than two.
    """
    return torch.get_num_threads() if _count_parameters(config) >= _LARGE_PARAMETERS else 1


@functools.lru_cache(maxsize=4)
def _count_parameters(config: ModelConfig) -> int:
    """Count the real modules' parameters; remembered, because staging asks again while the model serves."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PhoneModel(config).parameters())


def free_bytes(devices: Sequence[torch.device]) -> int:
    """Return the free memory of these devices together, each counted once."""
    total = 0
    for device in set(devices):
        total += torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_bytes()
    return total
