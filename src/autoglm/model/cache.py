"""The key-value cache: one row of keys and values a slot, each layer's on that layer's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.model import topk
from autoglm.model.config import ModelConfig


class KVCache:
    """Keys and values of every layer for a fixed number of slots.

    Attributes:
        keys: a layer each (slots, G, max_context, D).
        values: the same.
        bounds: a layer each (slots, G, pages, 2 * D), the Top-K gate's view of the keys.
        max_context: tokens a slot holds, whole pages.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        max_context: int,
        devices: Sequence[torch.device],
        dtype: torch.dtype,
    ) -> None:
        """Allocate for every layer, layer i on ``devices[i]``; ``max_context`` is rounded up to pages."""
        self.page = config.topk.page
        self.num_slots = num_slots
        self.max_context = -(-max_context // self.page) * self.page
        groups, dim = config.num_kv_heads, config.head_dim
        shape = (num_slots, groups, self.max_context, dim)
        pages = (num_slots, groups, self.max_context // self.page, 2 * dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for device in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for device in devices]
        self.bounds = [torch.zeros(pages, dtype=dtype, device=device) for device in devices]

    def write_prompt(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Store the prompt's k and v (G, T, D) from the slot's start."""
        T = k.shape[1]
        self.keys[layer][slot, :, :T] = k
        self.values[layer][slot, :, :T] = v
        bounds = topk.page_bounds(k, self.page)  # (G, pages, 2 * D)
        self.bounds[layer][slot, :, : bounds.shape[1]] = bounds

    def append(self, layer: int, slots: Tensor, lengths: Tensor, k: Tensor, v: Tensor) -> None:
        """Store one token's k and v (B, G, D) for each of B slots after its ``lengths`` tokens."""
        self.keys[layer][slots, :, lengths] = k
        self.values[layer][slots, :, lengths] = v
        topk.update_bounds(self.bounds[layer], k, slots, lengths, self.page)

    @property
    def num_bytes(self) -> int:
        """Bytes held, all devices together."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *self.bounds))
