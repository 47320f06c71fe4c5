"""What every part of a model does on data: the measure that structured pruning goes by.

Forward hooks look on while a model runs; they change nothing. Sources: Minitron, arXiv:2407.14679 (activation
importance); ShortGPT, arXiv:2403.03853 (block influence).

    >>> observer = Observer(model)                                       # doctest: +SKIP
    >>> with observer:                                                   # doctest: +SKIP
    ...     for batch in batches:
    ...         model(batch)
    ...         observer.count()
    >>> observer.importance.width.shape                                  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.model.network import PhoneModel


@dataclass(frozen=True)
class Importance:
    """How much every part did; larger is more.

    Attributes:
        width: (width,).
        ffn: a block each (ffn_width,).
        heads: a block each (num_heads,).
        blocks: (num_layers,), block influence.
    """

    width: Tensor
    ffn: list[Tensor]
    heads: list[Tensor]
    blocks: Tensor


class Observer:
    """Watches a model's blocks from ``with`` on."""

    def __init__(self, model: PhoneModel) -> None:
        """Args: the model to watch."""
        layers, config = model.layers, model.config
        self.model, self.config = model, config
        self._width = torch.zeros(config.width)
        self._ffn = [torch.zeros(config.ffn_width) for _ in layers]
        self._heads = [torch.zeros(config.num_heads) for _ in layers]
        self._change = torch.zeros(config.num_layers)
        self._num_batches = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> Observer:
        self._hooks = [hook for i in range(self.config.num_layers) for hook in self._watch(i)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def count(self) -> None:
        """Count one batch."""
        self._num_batches += 1

    @property
    def importance(self) -> Importance:
        """The means over all batches."""
        count = max(1, self._num_batches)
        columns = [block.down.weight.float().norm(dim=0).cpu() for block in self.model.layers]
        ffn = [seen / count * length for seen, length in zip(self._ffn, columns, strict=True)]
        heads = [seen / count for seen in self._heads]
        return Importance(self._width / count, ffn, heads, self._change / count)

    def _watch(self, index: int) -> list[Any]:
        """Hook one block: its streams, what its heads write, its feed-forward channels."""
        block = self.model.layers[index]
        dim, heads = self.config.head_dim, self.config.num_heads

        def written(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            merged = inputs[0].detach().float().flatten(0, -2).view(-1, heads, dim)
            out = block.out.weight.detach().float().view(-1, heads, dim)
            self._heads[index] += torch.einsum("nhd,whd->nhw", merged, out).norm(dim=-1).mean(0).cpu()

        def inner(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._ffn[index] += inputs[0].detach().float().flatten(0, -2).abs().mean(0).cpu()

        def normalised(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
            self._width += out.detach().float().flatten(0, -2).abs().mean(0).cpu()

        def passed(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            same = torch.cosine_similarity(inputs[0].detach().float(), out.detach().float(), dim=-1)
            self._change[index] += (1 - same).mean().cpu()

        return [
            block.out.register_forward_pre_hook(written),
            block.down.register_forward_pre_hook(inner),
            block.attention_norm.register_forward_hook(normalised),
            block.ffn_norm.register_forward_hook(normalised),
            block.register_forward_hook(passed),
        ]
