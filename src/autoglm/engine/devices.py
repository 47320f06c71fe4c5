"""Which devices run the model, and whether it fits: counted before anything is loaded.

The sum is weights, the KV cache of all slots, and the same again as room to stage the next release beside
the running one; without that room a hot swap would fail on the first update, so a model that does not
leave it is refused at start with the figures.

    >>> preflight(config, pick_devices("auto"), max_batch=8, max_context=2048).needed_bytes  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

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

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("KV cache", self.cache), ("staging room", self.staging))
        terms = " + ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in parts)
        return f"{terms} = {self.needed_bytes / _GIB:.2f} GiB; free: {self.free / _GIB:.2f} GiB"


def preflight(
    config: ModelConfig,
    devices: Sequence[torch.device],
    *,
    max_batch: int,
    max_context: int,
    staging: bool = True,
) -> MemoryPlan:
    """Add up what a model needs and refuse before memory runs out.

    Args:
        config: the model.
        devices: where it is to run.
        max_batch: sequences at the same time.
        max_context: tokens a sequence, prompt and answer together.
        staging: also ask for the room of the next release.

    Raises:
        OutOfMemoryError: it does not fit; the message holds the sum.
    """
    dtype = weight_dtype(devices)
    weights = _count_parameters(config) * dtype.itemsize
    layers = [torch.device("meta")] * config.num_layers
    cache = KVCache(config, max_batch, max_context, layers, dtype).num_bytes
    plan = MemoryPlan(weights, cache, weights + cache if staging else 0, free_bytes(devices))
    if plan.needed_bytes > plan.free:
        raise OutOfMemoryError(
            f"{config.name} does not fit: {plan}. Give it more devices, or lower max_batch or max_context"
        )
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
        total += torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_bytes()
    return total


def _free_host_bytes() -> int:
    """Return what this process may still use: the machine's available memory, or less in a container."""
    limits = [_available_bytes()]
    cgroup = Path("/sys/fs/cgroup")
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        limits.append(max(0, limit - used + _reclaimable_bytes(cgroup / "memory.stat")))
    return min(limits)


def _reclaimable_bytes(stat: Path) -> int:
    """Return the file pages that count as used in a container but give way when memory is asked for."""
    try:
        entries = dict(line.split() for line in stat.read_text().splitlines())
        return int(entries["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no /proc: assume all is available


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
