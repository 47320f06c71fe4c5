"""Training on several processes, started by ``torchrun``: each takes its rows of every batch.

The model is replicated. All processes draw the same batch, compute the gradient of their own rows, and step
with the mean of all gradients, so a run on two processes follows the curve of a run on one, and either goes
on from the other's checkpoint. The first process alone writes. Without ``torchrun`` every function here does
nothing.

Rows of unequal weight count as in the whole batch. Two things keep several processes from being one to the
last bit: batch normalisation that is not frozen sees only a process's own rows, and so do the losses that
compare the rows of a batch with each other.

    $ torchrun --nproc-per-node 2 -m autoglm.cli model train teacher
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autoglm.errors import ConfigError
from autoglm.training import rows


@contextlib.contextmanager
def joined() -> Generator[None]:
    """Join the other processes for as long as the body runs, where ``torchrun`` started this one."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process is the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def first_before_others() -> Generator[None]:
    """Run the body in the first process, then in the others, which find what it made."""
    if not is_first():
        dist.barrier()
    yield
    if is_first() and num_processes() > 1:
        dist.barrier()


def share_rows(batch: rows.Batch) -> rows.Batch:
    """Return this process's rows of a course's batch; the same for :func:`share_tensors`.

    Raises:
        ConfigError: the batch has fewer rows than there are processes.
    """
    count = num_processes()
    _check_rows(len(batch.ids), count)
    return batch if count == 1 else batch.part(dist.get_rank(), count)


def share_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return this process's rows of tensors."""
    count = num_processes()
    _check_rows(min(map(len, tensors)), count)
    return tensors if count == 1 else tuple(tensor[dist.get_rank() :: count] for tensor in tensors)


def rows_for_all(count: int) -> int:
    """Return the rows that a batch of ``count`` needs for every process to have one."""
    return max(count, num_processes())


def _check_rows(have: int, count: int) -> None:
    if have < count:
        raise ConfigError(f"a batch of {have} rows cannot be shared by {count} processes: start fewer")


def mean_weight(total: Tensor) -> Tensor:
    """Return the mean of a sum of weights over all processes.

    What is divided by it, averaged over the processes, is divided by the weight of the whole batch.
    """
    if num_processes() == 1:
        return total
    summed = total.detach().float().clone()
    dist.all_reduce(summed)
    return summed / num_processes()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Tell of each flag whether some process has it set; all of them must call this."""
    if num_processes() == 1:
        return flags
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in found.tolist())


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by the mean over all processes; sharded weights do so by themselves."""
    count = num_processes()
    every = (p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor))
    gradients = list(every) if count > 1 else []
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def average_measures(measures: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of every measure over the processes that have it; all of them must call this."""
    if num_processes() == 1:
        return dict(measures)
    gathered: list[Any] = [None] * num_processes()
    dist.all_gather_object(gathered, dict(measures))
    everyone = cast("list[dict[str, float]]", gathered)
    names = dict.fromkeys(name for each in everyone for name in each)
    found = {name: [each[name] for each in everyone if name in each] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
