"""Decoding by captured CUDA graphs: one launch a step in place of hundreds.

A graph remembers addresses, so everything a step reads lies in buffers that are written before each replay:
tokens, positions, lengths and page tables are copied in, weights and cache are those of one release. Each
release has graphs of its own, made while it is staged or at its first steps: requests pinned to the old
release go on beside those on the new one, a swap stays a change of pointer, and no weight is copied.

Graphs are made for batches and page counts of powers of two; a smaller step is filled up with copies of its
first row, which write what that row writes. Steps past the Top-K gate's threshold take the usual way.

The arithmetic is tested on a CPU, where it is run without capture. Capture itself has never run: no machine
of this project has a GPU.

    >>> decoder = GraphDecoder(model, cache)                             # doctest: +SKIP
    >>> logits = decoder.step([5], [17], tables, [18])                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoglm.model.cache import KVCache
from autoglm.model.layers import token_turns
from autoglm.model.network import PhoneModel
from autoglm.model.pages import PageTable

_WARM_UPS = 2  # libraries allocate in their first calls, which must not be captured


class StepBuffers:
    """What a step reads, at addresses that stay.

    Attributes:
        token_ids: (B,) long.
        positions: (B,) long.
        lengths: keys that each row may see, its newest included, (B,) long.
        pages: page numbers of each row (B, P) long, filled up with its last.
    """

    def __init__(self, batch: int, num_pages: int, device: torch.device) -> None:
        self.token_ids, self.positions, self.lengths = (
            torch.zeros(batch, dtype=torch.long, device=device) for _ in range(3)
        )
        self.pages = torch.zeros(batch, num_pages, dtype=torch.long, device=device)

    def fill(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        tables: Sequence[PageTable],
        lengths: Sequence[int],
    ) -> None:
        """Write one step's values; rows without a sequence repeat the first one."""
        batch, width = self.pages.shape
        spare = batch - len(tables)
        numbers = [[*t.pages[:width], *[t.pages[-1]] * (width - len(t))] for t in tables]
        for buffer, values in (
            (self.token_ids, list(token_ids)),
            (self.positions, list(positions)),
            (self.lengths, list(lengths)),
            (self.pages, numbers),
        ):
            buffer.copy_(torch.tensor([*values, *[values[0]] * spare]))


def decode_static(model: PhoneModel, cache: KVCache, step: StepBuffers) -> Tensor:
    """Return the logits (B, V) of one token a row: no value leaves the device, and shapes depend on none.

    Attention is dense over all pages of the buffers, what lies past a row's length hidden.
    """
    page, per_slot = cache.page, cache.pages_per_slot
    newest = step.lengths - 1  # (B,)
    target = step.pages.gather(1, (newest // page)[:, None])[:, 0]
    slot, place, offset = target // per_slot, target % per_slot, newest % page
    hidden = torch.arange(step.pages.shape[1] * page, device=newest.device) >= step.lengths[:, None]  # (B, T)
    x = model.embed_tokens(step.token_ids)  # (B, width)
    turns = [turn.to(x.dtype) for turn in token_turns(step.positions, model.config)]
    for i, block in enumerate(model.layers):
        q, k, v = block.project_token(x, *turns)
        cache.keys[i][slot, :, place * page + offset] = k
        cache.values[i][slot, :, place * page + offset] = v
        _update_bounds(cache.bounds[i], slot, place, offset, k)
        keys, values = (_read_pages(held[i], step.pages, cache) for held in (cache.keys, cache.values))
        x = block.finish_token(x, _attend(q, keys, values, hidden))
    return model.logits(model.norm(x))


def _update_bounds(bounds: Tensor, slot: Tensor, place: Tensor, offset: Tensor, k: Tensor) -> None:
    """Take the new keys (B, G, D) into the bounds of their pages, as ``topk.update_bounds`` does."""
    signed = torch.cat((k, -k), dim=-1)  # (B, G, 2 * D)
    grown = torch.maximum(bounds[slot, :, place], signed)
    bounds[slot, :, place] = torch.where((offset == 0)[:, None, None], signed, grown)


def _read_pages(held: Tensor, pages: Tensor, cache: KVCache) -> Tensor:
    """Copy pages (B, P) of one layer's keys or values together, (B, G, P * page, D)."""
    groups, dim = held.shape[1], held.shape[3]
    split = held.view(cache.num_slots, groups, cache.pages_per_slot, cache.page, dim)
    found = split[pages // cache.pages_per_slot, :, pages % cache.pages_per_slot]  # (B, P, G, page, D)
    return found.transpose(1, 2).flatten(2, 3)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attend for q (B, H, D) to k and v (B, G, T, D) where not ``hidden`` (B, T); return (B, H, D)."""
    grouped = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # (B, G, R, D)
    scores = grouped @ k.transpose(2, 3)
    scores.masked_fill_(hidden[:, None, None], -torch.inf)
    # A page may hold what is not finite behind a row's end, and 0 times NaN is NaN.
    seen = v.masked_fill(hidden[:, None, :, None], 0)
    return (scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ seen).flatten(1, 2)


class GraphDecoder:
    """The graphs of one release on one device.

    Args:
        model: the release's network.
        cache: its keys and values, which must stay where they are.
        capture: turns a function into its replay; the default captures a CUDA graph.
    """

    def __init__(
        self,
        model: PhoneModel,
        cache: KVCache,
        capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._model, self._cache = model, cache
        self._capture = capture or capture_cuda
        self._graphs: dict[tuple[int, int], tuple[StepBuffers, Callable[[], Tensor]]] = {}

    @property
    def num_graphs(self) -> int:
        """How many sizes were captured."""
        return len(self._graphs)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Tell whether all rows are short enough for dense attention."""
        gate = self._model.config.topk
        return max(lengths) < max(gate.dense_below, gate.keep * gate.page + 1)

    def step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        tables: Sequence[PageTable],
        lengths: Sequence[int],
    ) -> Tensor:
        """Decode one token a row; return logits (B, V), valid until the next step."""
        count, longest = len(tables), -(-max(lengths) // self._cache.page)
        size = (_power_of_two(count), min(_power_of_two(longest), self._cache.pages_per_slot))
        if size not in self._graphs:
            buffers = StepBuffers(*size, self._model.device)
            buffers.fill(token_ids, positions, tables, lengths)  # captured once for real, which is harmless
            run = self._capture(lambda: decode_static(self._model, self._cache, buffers))
            self._graphs[size] = (buffers, run)
        buffers, run = self._graphs[size]
        buffers.fill(token_ids, positions, tables, lengths)
        return run()[:count]


def _power_of_two(count: int) -> int:
    """Return the least power of two that is not below ``count``."""
    return 1 << (count - 1).bit_length()


def capture_cuda(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture ``function`` on the current CUDA device; return what replays it.

    Other threads may stage a release meanwhile: only this one's calls are watched.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits = function()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def graphs_for(model: PhoneModel, cache: KVCache) -> GraphDecoder | None:
    """Return a decoder by graphs where they are possible: all layers on one CUDA device; else None."""
    devices = {*cache.devices, model.device}
    return GraphDecoder(model, cache) if len(devices) == 1 and model.device.type == "cuda" else None
