"""Blocks whose weights are spread over the processes of a training, for models that do not fit into one.

Each process holds a part of every block's weights, gradients and optimiser state; a block's weights are put
together for as long as it runs (FSDP, arXiv:2304.11277). Embedders, table and head stay whole everywhere:
they are used outside the blocks. Checkpoints hold whole tensors, so a run may go on with another number of
processes, sharded or not.

    >>> shard_blocks(model)                                              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from autoglm.errors import ConfigError
from autoglm.model.network import PhoneModel
from autoglm.training.distributed import num_processes


def shard_blocks(model: PhoneModel) -> None:
    """Spread the weights of every block over all processes, in place.

    Raises:
        ConfigError: there is only one process.
    """
    if num_processes() == 1:
        raise ConfigError("weights are spread over several processes: start them with torchrun")
    for block in model.layers:
        fully_shard(block)


def is_sharded(parameters: Iterable[nn.Parameter]) -> bool:
    """Tell whether some weights are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def whole(value: Any) -> Any:
    """Return a tensor, or all tensors in nested dictionaries and lists, whole; all processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [whole(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module whose weights may be spread."""
    own = module.state_dict()
    module.load_state_dict({name: _like(own[name], value) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state of whole tensors for weights that may be spread."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        index: {key: _like(parameters[index], each) for key, each in held.items()}
        for index, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def _like(own: Tensor, value: Any) -> Any:
    """Return a whole tensor spread as ``own`` is; what has not its shape stays."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients down to a total length of at most ``largest``, over all processes."""
    held = [p for p in parameters if p.grad is not None]
    if not is_sharded(held):
        nn.utils.clip_grad_norm_(held, largest)
        return
    squares = torch.zeros(2, device=held[0].device)  # whole gradients, this process's parts of spread ones
    for parameter in held:
        grad = parameter.grad
        if isinstance(grad, DTensor):
            squares[1] += grad.to_local().square().sum()
        elif grad is not None:
            squares[0] += grad.square().sum()
    dist.all_reduce(squares[1:])
    factor = (largest / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
    for parameter in held:
        grad = parameter.grad
        if grad is not None:
            (grad.to_local() if isinstance(grad, DTensor) else grad).mul_(factor)
