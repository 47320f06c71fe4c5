"""The key-value cache: pages of keys and values, each layer's on that layer's device.

Which sequence owns which page is not known here: a :class:`~autoglm.model.pages.PageTable` says it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoglm.model import topk
from autoglm.model.config import ModelConfig
from autoglm.model.pages import PageTable, Rows

_FEW = 2  # so many rows are written one by one in less time than one advanced index takes


class KVCache:
    """Keys and values of every layer in pages; ``num_slots`` whole contexts of them.

    Attributes:
        keys: a layer each (slots, G, max_context, D).
        values: the same.
        bounds: a layer each (slots, G, pages, 2 * D), the Top-K gate's view of the keys.
        devices: where each layer's tensors are.
        page: tokens a page.
        num_slots: contexts that fit.
        max_context: tokens a slot holds, whole pages.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        max_context: int,
        devices: Sequence[torch.device],
        dtype: torch.dtype,
        pace: Callable[[], None] = lambda: None,
    ) -> None:
        """Allocate for every layer, layer i on ``devices[i]``; ``max_context`` is rounded up to pages.

        ``pace`` is called after each tensor, whose every page is written to here.
        """
        self.page = config.topk.page
        self.num_slots = num_slots
        self.pages_per_slot = -(-max_context // self.page)
        self.max_context = self.pages_per_slot * self.page
        self.devices = list(devices)
        groups, dim = config.num_kv_heads, config.head_dim
        shape = (num_slots, groups, self.max_context, dim)
        pages = (num_slots, groups, self.pages_per_slot, 2 * dim)

        def zeros(size: tuple[int, ...], device: torch.device) -> Tensor:
            tensor = torch.zeros(size, dtype=dtype, device=device)
            pace()
            return tensor

        self.keys = [zeros(shape, device) for device in devices]
        self.values = [zeros(shape, device) for device in devices]
        self.bounds = [zeros(pages, device) for device in devices]

    def slot(self, index: int) -> PageTable:
        """Return all pages of one slot, for callers that keep one sequence a slot."""
        first = index * self.pages_per_slot
        return PageTable(self.pages_per_slot, range(first, first + self.pages_per_slot))

    def rows(self, tables: Sequence[PageTable], lengths: Sequence[int]) -> Rows:
        """Return where the sequences of one decode step lie; lengths count the new token."""
        return Rows(tables, lengths, self.page)

    def write(self, layer: int, table: PageTable, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (G, T, D) of the tokens from ``start``.

        Returns:
            All keys and values up to the end of the last token's page, (G, pages * page, D).
        """
        stop = start + k.shape[1]
        end = -(-stop // self.page) * self.page
        table.write(self.keys[layer], self.page, start, k)
        table.write(self.values[layer], self.page, start, v)
        keys = table.read(self.keys[layer], self.page, 0, end)  # (G, end, D)
        first = start // self.page  # a page that was part full gets its bounds anew
        bounds = topk.page_bounds(keys[:, first * self.page : stop], self.page)  # (G, pages, 2 * D)
        table.write(self.bounds[layer], 1, first, bounds)
        return keys, table.read(self.values[layer], self.page, 0, end)

    def append(self, layer: int, rows: Rows, k: Tensor, v: Tensor) -> None:
        """Store one token's k and v (B, G, D) as the newest of each row."""
        if len(rows) <= _FEW:
            for row, (slot, page, offset) in enumerate(rows.newest):
                self.keys[layer][slot, :, page * self.page + offset] = k[row]
                self.values[layer][slot, :, page * self.page + offset] = v[row]
        else:
            slots, tokens = rows.places(k.device)
            self.keys[layer][slots, :, tokens] = k
            self.values[layer][slots, :, tokens] = v
        topk.update_bounds(self.bounds[layer], k, rows)

    def copy_page(self, source: int, target: int) -> None:
        """Copy all that one page holds to another."""
        (from_slot, i), (to_slot, j) = (divmod(page, self.pages_per_slot) for page in (source, target))
        for held, unit in self._held():
            rows = held[from_slot, :, i * unit : (i + 1) * unit]
            held[to_slot, :, j * unit : (j + 1) * unit] = rows

    def wipe_page(self, page: int) -> None:
        """Fill a page with zeros: it may hold NaN, and a masked NaN still spoils a sum."""
        slot, i = divmod(page, self.pages_per_slot)
        for held, unit in self._held():
            held[slot, :, i * unit : (i + 1) * unit] = 0

    def _held(self) -> list[tuple[Tensor, int]]:
        """Return every tensor with its rows a page."""
        return [(tensor, self.page) for tensor in (*self.keys, *self.values)] + [(b, 1) for b in self.bounds]

    @property
    def num_bytes(self) -> int:
        """Bytes held, all devices together."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *self.bounds))

    def drop(self) -> None:
        """Give the memory back; nothing can be cached any more."""
        self.keys, self.values, self.bounds = [], [], []
