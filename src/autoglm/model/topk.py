"""The Top-K gate: each query attends to the few pages of the past that can matter to it.

Keys lie in pages of 32 tokens. For each page the largest and the smallest value of every channel are
kept, ``bounds``; from them follows, for any query ``q``, an upper bound of its dot product with every
key of the page: ``sum_c max(q_c * max_c, q_c * min_c)`` (Quest, Tang et al. 2024, arXiv:2406.10774).
A KV group scores a page by the best of its heads and reads only the ``keep`` best pages, always the
first (attention sinks) and the last (the current sentence) among them.

Guarantees: with ``keep`` at the number of pages the result is that of dense attention; a key whose
bound beats all others is never missed; nothing past a row's length is looked at, whatever the cache
holds there. Values there must be finite, as in a cache made of zeros: a weight of 0 times NaN is NaN.

Not handled here: projections, rotation, which pages a sequence owns (:class:`~autoglm.model.pages.Rows`
says it). These are functions over tensors::

    bounds = page_bounds(k, page=32)                      # once, after prefill
    update_bounds(bounds, k_new, rows)                    # every decoded token
    out = gated_decode(q, k_cache, v_cache, bounds, rows, keep=64, page=32, dense_below=4096)

Dimensions: B rows, H query heads, G KV heads (groups), R = H / G heads a group, T tokens, P pages,
K pages kept, D channels a head. ``lengths`` counts the keys a row may see, its newest included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model.pages import Rows

MIN_KEEP = 2  # the first page and the last
# Rows of about one length go as one product; where padding would cost more than this, row by row.
_MAX_PADDING = 1.25


def page_bounds(k: Tensor, page: int) -> Tensor:
    """Return the largest and the smallest key of every page, channel by channel.

    Args:
        k: keys (..., T, D), T >= 1; the last page may be part full.
        page: tokens a page.

    Returns:
        Bounds (..., P, 2 * D): maxima, then negated minima, so that both grow by ``maximum`` and one
        product scores them.
    """
    short = -k.shape[-2] % page
    if short:  # repeat the newest key: it moves no bound
        k = torch.cat((k, k[..., -1:, :].expand(*k.shape[:-2], short, k.shape[-1])), dim=-2)
    pages = k.unflatten(-2, (-1, page))  # (..., P, page, D)
    return torch.cat((pages.amax(-2), pages.amin(-2).neg()), dim=-1)


def update_bounds(bounds: Tensor, k: Tensor, rows: Rows) -> None:
    """Take one new key a row into the bounds of its page, in place.

    The first key of a page replaces what an earlier tenant of the page left there.

    Args:
        bounds: (slots, G, P, 2 * D).
        k: the new keys (B, G, D).
        rows: where they lie, no page twice.
    """
    signed = torch.cat((k, -k), dim=-1)  # (B, G, 2 * D)
    # A few rows by host integers cost less than one advanced index: this runs at every token and layer.
    for row, (slot, page, offset) in enumerate(rows.newest):
        entry = bounds[slot, :, page]
        if offset:
            torch.maximum(entry, signed[row], out=entry)
        else:
            entry.copy_(signed[row])


def page_scores(q: Tensor, bounds: Tensor) -> Tensor:
    """Return the best dot product that any head of a group could have with a key of each page.

    Args:
        q: queries (N, R, D), N groups of R.
        bounds: (N, P, 2 * D).

    Returns:
        Scores (N, P). ``max(q * max, q * min)`` picks the maximum where q is positive and the minimum
        where it is negative, so it is one product with q split by sign.
    """
    split = torch.cat((q, -q), dim=-1).relu_()
    return torch.bmm(split, bounds.transpose(1, 2)).amax(1)


def select_pages(q: Tensor, bounds: Tensor, lengths: Sequence[int], keep: int, page: int) -> Tensor:
    """Choose the pages each KV group of each row reads.

    Args:
        q: queries (B, H, D).
        bounds: page bounds of the rows (B, G, P, 2 * D).
        lengths: keys a row may see, 1 <= length <= P * page.
        keep: pages to choose, at least 2.
        page: tokens a page.

    Returns:
        Page indices (B, G, min(keep, P)), ascending. A row shorter than the others may get pages
        past its end as fill, after its own.

    Raises:
        ConfigError: ``keep`` is below 2.
    """
    groups = bounds.shape[1]
    scores = page_scores(_split_groups(q, groups), bounds.flatten(0, 1)).unflatten(0, (-1, groups))
    for row, length in enumerate(lengths):
        last = (length - 1) // page
        force_pages(scores[row], last, last)
    return best_pages(scores, keep)


def dense_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Rows) -> Tensor:
    """Attend to everything: one query a row against its whole past.

    Two products grouped by KV head, the heads of a group as the rows of one matrix: on a CPU this
    beats ``scaled_dot_product_attention``, with ``enable_gqa`` by far.

    Args:
        q: queries (B, H, D).
        k_cache: keys (slots, G, Tmax, D).
        v_cache: values, the same.
        rows: where each row's keys lie, and how many it may see.

    Returns:
        (B, H, D).
    """
    seen = rows.lengths
    if len(seen) * max(seen) <= _MAX_PADDING * sum(seen):
        k, v = rows.in_line(k_cache, rows.page), rows.in_line(v_cache, rows.page)
        if k is not None and v is not None:
            return _attend_rows(q, k, v, seen)
    parts = enumerate(q.split(1))
    return torch.cat([_attend_rows(one, rows.read(i, k_cache), rows.read(i, v_cache)) for i, one in parts])


def topk_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, bounds: Tensor, rows: Rows, keep: int) -> Tensor:
    """Attend to the chosen pages only: one query a row.

    Args:
        q: queries (B, H, D).
        k_cache: keys (slots, G, Tmax, D), contiguous, Tmax a multiple of the page.
        v_cache: values, the same.
        bounds: page bounds (slots, G, Tmax / page, 2 * D).
        rows: where each row's keys lie, and how many it may see.
        keep: pages a group reads, at least 2.

    Returns:
        (B, H, D).

    Raises:
        ConfigError: ``keep`` is below 2, or the cache is not whole pages.
    """
    page, groups, per_slot = rows.page, k_cache.shape[1], _whole_pages(k_cache.shape[2], rows.page)
    lines = rows.page_rows(groups, q.device)  # (B, pages)
    chosen = select_pages(q, _bounds_of(bounds, rows, lines), rows.lengths, keep, page)  # (B, G, K)
    shift = torch.arange(groups, device=q.device)[:, None] * per_slot
    found = lines[:, None].expand(-1, groups, -1).gather(2, chosen) + shift  # (B, G, K)
    k, v = (gather_pages(cache, found, page) for cache in (k_cache, v_cache))  # (B, G, K * page, D)
    # A row's pages come in order and its fill last, so what it may see of them is again a prefix.
    hidden = [max(0, -(-length // page) - chosen.shape[2]) * page for length in rows.lengths]
    seen = [length - skipped for length, skipped in zip(rows.lengths, hidden, strict=True)]
    return _attend_rows(q, k, v, seen)


def _bounds_of(bounds: Tensor, rows: Rows, lines: Tensor) -> Tensor:
    """Return the rows' page bounds (B, G, P, 2 * D): a view when they lie in a line, else a copy."""
    count = lines.shape[1]
    view = rows.in_line(bounds, 1)
    if view is not None:
        return view[:, :, :count]
    groups, per_slot = bounds.shape[1], bounds.shape[2]
    shift = torch.arange(groups, device=lines.device)[:, None] * per_slot
    found = (lines[:, None] + shift).flatten()  # (B * G * P,)
    return bounds.view(-1, bounds.shape[3]).index_select(0, found).view(len(rows), groups, count, -1)


def gated_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    bounds: Tensor,
    rows: Rows,
    *,
    keep: int,
    page: int,
    dense_below: int,
) -> Tensor:
    """Attend by the gate where it pays: rows of ``dense_below`` keys or more, the others densely.

    A row's path depends on its own length only, never on the company it is batched with.

    Args:
        dense_below: keys from which the gate pays; the rest as for :func:`topk_decode`.

    Returns:
        (B, H, D).

    Raises:
        ConfigError: as :func:`topk_decode`.
    """
    gated = [is_gated(length, keep=keep, page=page, dense_below=dense_below) for length in rows.lengths]
    if not any(gated):
        return dense_decode(q, k_cache, v_cache, rows)
    if all(gated):
        return topk_decode(q, k_cache, v_cache, bounds, rows, keep)
    short, long = ([i for i, is_long in enumerate(gated) if is_long == wanted] for wanted in (False, True))
    here, there = (torch.tensor(chosen, device=q.device) for chosen in (short, long))
    out = torch.empty_like(q)
    out[here] = dense_decode(q[here], k_cache, v_cache, rows.select(short))
    out[there] = topk_decode(q[there], k_cache, v_cache, bounds, rows.select(long), keep)
    return out


def is_gated(length: int, *, keep: int, page: int, dense_below: int) -> bool:
    """Tell whether a row of so many keys goes through the gate: with all pages kept, dense is cheaper."""
    return length >= gated_from(keep=keep, page=page, dense_below=dense_below)


def gated_from(*, keep: int, page: int, dense_below: int) -> int:
    """Return how many keys a row has when it begins to go through the gate."""
    return max(dense_below, keep * page + 1)


def check_keep(keep: int) -> None:
    """Refuse a gate that cannot keep the first page and the last.

    Raises:
        ConfigError: it cannot.
    """
    if keep < MIN_KEEP:
        raise ConfigError(f"keep is {keep}: the gate needs at least {MIN_KEEP} pages, the first and the last")


def force_pages(scores: Tensor, own: int, last: int) -> None:
    """Mark in scores (G, P), in place: page 0 and ``own`` to ``last`` always, none past ``last``."""
    scores[:, last + 1 :] = -torch.inf
    scores[:, own : last + 1] = torch.inf
    scores[:, 0] = torch.inf


def best_pages(scores: Tensor, keep: int) -> Tensor:
    """Return the ``keep`` best pages of scores (B, G, P), ascending, (B, G, K); of equals the earlier."""
    check_keep(keep)
    best = scores.sort(stable=True, descending=True).indices[..., :keep]
    # In ascending order the rows are read forwards, and keeping all pages is dense to the last bit.
    return best.sort().values


def _split_groups(q: Tensor, groups: int) -> Tensor:
    """View queries (B, H, D) as (B * G, R, D)."""
    return q.reshape(q.shape[0] * groups, -1, q.shape[2])


def _whole_pages(max_tokens: int, page: int) -> int:
    """Return the pages of a slot, which must be whole."""
    if max_tokens % page:
        raise ConfigError(f"a cache of {max_tokens} tokens is not whole pages of {page}; round it up")
    return max_tokens // page


def gather_pages(cache: Tensor, found: Tensor, page: int) -> Tensor:
    """Copy pages (B, G, K) of a cache read as rows of pages together, (B, G, K * page, D).

    Long rows, which index_select moves whole.
    """
    lines = cache.view(-1, page * cache.shape[-1]).index_select(0, found.flatten())
    return lines.view(*found.shape[:2], -1, cache.shape[-1])


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, seen: Sequence[int] | None = None) -> Tensor:
    """Attend for one query a row, q (B, H, D), to the first ``seen`` of its keys and values (B, G, T, D).

    Without ``seen`` to all of them.
    """
    seen = [k.shape[2]] * len(q) if seen is None else seen
    longest, visible = max(seen), None
    k, v = k[:, :, :longest], v[:, :, :longest]
    if min(seen) < longest:
        limits = torch.tensor(seen, device=q.device).repeat_interleave(k.shape[1])
        visible = torch.arange(longest, device=q.device) < limits[:, None, None]  # (B * G, 1, T)
    return _attend(_split_groups(q, k.shape[1]), k.flatten(0, 1), v.flatten(0, 1), visible).view(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attend in the plain way: q (N, R, D), k and v (N, T, D)."""
    return torch.bmm(attention_weights(q, k, visible).to(v.dtype), v)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """Return the attention weights of q (N, R, D) on k (N, T, D), softmax in float32 at least."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32)
