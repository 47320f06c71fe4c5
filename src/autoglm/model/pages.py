"""Where sequences lie in a cache made of pages: a page table each, and how to read through it.

The cache of a layer is (slots, G, max_context, D): every slot is a run of ``pages_per_slot`` pages, and page
``i`` is the ``i % pages_per_slot``-th of slot ``i // pages_per_slot``. A sequence may own any pages in any
order, and share pages with others. Where its pages follow each other inside one slot, reading it costs
nothing: it is a view. Where they do not, its runs are copied together first. Both give the same bits.

    >>> table = PageTable(64, [0, 1, 2])
    >>> table.runs
    [(0, 3)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class PageTable:
    """The pages of one sequence, first token to last.

    Attributes:
        pages: page numbers.
        pages_per_slot: pages that follow each other in memory before the next slot begins.
        runs: the same as (first page, count), each run within one slot.
    """

    def __init__(self, pages_per_slot: int, pages: Iterable[int] = ()) -> None:
        self.pages_per_slot = pages_per_slot
        self.pages: list[int] = []
        self.runs: list[tuple[int, int]] = []
        for page in pages:
            self.append(page)

    def __len__(self) -> int:
        return len(self.pages)

    def append(self, page: int) -> None:
        """Add the next page."""
        self.pages.append(page)
        first, count = self.runs[-1] if self.runs else (-1, 0)
        if count and page == first + count and page % self.pages_per_slot:
            self.runs[-1] = (first, count + 1)
        else:
            self.runs.append((page, 1))

    def pieces(self, unit: int, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Split the rows ``start`` to ``stop``, ``unit`` rows a page, along the runs.

        Yields:
            The slot, the rows inside it, and the rows counted from ``start``.
        """
        before = 0  # rows of the runs that came earlier
        for first, count in self.runs:
            low, high = max(start, before), min(stop, before + count * unit)
            if low < high:
                slot, place = divmod(first, self.pages_per_slot)
                shift = place * unit - before
                yield slot, slice(low + shift, high + shift), slice(low - start, high - start)
            before += count * unit

    def read(self, held: Tensor, unit: int, start: int, stop: int) -> Tensor:
        """Return the rows ``start`` to ``stop`` of ``held`` (slots, G, rows, D) as (G, stop - start, D)."""
        parts = [held[slot, :, rows] for slot, rows, _ in self.pieces(unit, start, stop)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def write(self, held: Tensor, unit: int, start: int, new: Tensor) -> None:
        """Store ``new`` (G, n, D) in the rows from ``start`` of ``held`` (slots, G, rows, D)."""
        for slot, rows, place in self.pieces(unit, start, start + new.shape[1]):
            held[slot, :, rows] = new[:, place]


class Rows:
    """The sequences of one decode step: their tables and how many keys each may see.

    Attributes:
        tables: one a row.
        lengths: keys a row may see, its newest included.
        page: tokens a page.
        newest: (slot, page inside it, token inside that) of each row's newest key.
    """

    def __init__(self, tables: Sequence[PageTable], lengths: Sequence[int], page: int) -> None:
        self.tables, self.lengths, self.page = tables, lengths, page
        self.newest: list[tuple[int, int, int]] = []
        for table, length in zip(tables, lengths, strict=True):
            index, offset = divmod(length - 1, page)
            self.newest.append((*divmod(table.pages[index], table.pages_per_slot), offset))
        self._line = self._find_line()
        self._tensors: dict[tuple[str, torch.device], tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self.tables)

    def _find_line(self) -> tuple[int, int, int] | None:
        """Return (first slot, rows, first page) when the rows are one run each in neighbouring slots."""
        slot, place = divmod(self.tables[0].pages[0], self.tables[0].pages_per_slot)
        for i, table in enumerate(self.tables):
            if len(table.runs) != 1 or table.pages[0] != (slot + i) * table.pages_per_slot + place:
                return None
        return slot, len(self.tables), place

    def in_line(self, held: Tensor, unit: int) -> Tensor | None:
        """Return a view (B, G, rows, D) of ``held`` from where all rows begin, None when there is none."""
        if self._line is None:
            return None
        slot, count, place = self._line
        return held[slot : slot + count, :, place * unit :]

    def select(self, chosen: Sequence[int]) -> Rows:
        """Return some of the rows."""
        return Rows([self.tables[i] for i in chosen], [self.lengths[i] for i in chosen], self.page)

    def read(self, row: int, held: Tensor) -> Tensor:
        """Return the keys or values that one row may see, (1, G, length, D)."""
        table, length = self.tables[row], self.lengths[row]
        return table.read(held, self.page, 0, length)[None]

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where each row's newest key lies, as index tensors: slot (B,) and token inside it (B,)."""
        key = ("places", device)
        if key not in self._tensors:
            at = [(slot, page * self.page + offset) for slot, page, offset in self.newest]
            self._tensors[key] = tuple(torch.tensor(at, device=device).T.contiguous())
        slots, tokens = self._tensors[key]
        return slots, tokens

    def page_rows(self, groups: int, device: torch.device) -> Tensor:
        """Return each page's row for group 0 in a cache read as (slots * G * pages, ...): (B, pages).

        Group g's row is ``g * pages_per_slot`` further; short tables are filled up with page 0.
        """
        key = (f"rows {groups}", device)
        if key not in self._tensors:
            longest = -(-max(self.lengths) // self.page)
            numbers = [[*t.pages[:longest], *[0] * (longest - len(t))] for t in self.tables]
            pages, per_slot = torch.tensor(numbers, device=device), self.tables[0].pages_per_slot
            self._tensors[key] = ((pages // per_slot) * groups * per_slot + pages % per_slot,)
        return self._tensors[key][0]
