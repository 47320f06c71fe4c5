"""The Top-K gate: each query attends to the few pages of the past that can matter to it.

Keys lie in pages of 32 tokens. For each page the largest and the smallest value of every channel are
kept, ``bounds``; from them follows, for any query ``q``, an upper bound of its dot product with every
key of the page: ``sum_c max(q_c * max_c, q_c * min_c)`` (Quest, Tang et al. 2024, arXiv:2406.10774).
A KV group scores a page by the best of its heads and reads only the ``keep`` best pages, always the
first (attention sinks) and the last (the current sentence) among them.

Guarantees: with ``keep`` at the number of pages the result is that of dense attention; a key whose
bound beats all others is never missed; nothing past a row's length is looked at, whatever the cache
holds there. Values there must be finite, as in a cache made of zeros: a weight of 0 times NaN is NaN.

Not handled here: projections, rotation, when a slot is freed. These are functions over tensors::

    bounds = page_bounds(k, page=32)                      # once, after prefill
    update_bounds(bounds, k_new, slots, positions, 32)    # every decoded token
    out = gated_decode(q, k_cache, v_cache, bounds, slots, lengths, keep=64, page=32, dense_below=4096)

Dimensions: B rows, H query heads, G KV heads (groups), R = H / G heads a group, T tokens, P pages,
K pages kept, D channels a head. ``lengths`` counts the keys a row may see, its newest included; keep
it and ``slots`` on the CPU, for their values are read on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoglm.errors import ConfigError

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


def update_bounds(bounds: Tensor, k: Tensor, slots: Tensor, positions: Tensor, page: int) -> None:
    """Take one new key a row into the bounds of its page, in place.

    The first key of a page replaces what an earlier tenant of the slot left there.

    Args:
        bounds: (slots, G, P, 2 * D).
        k: the new keys (B, G, D).
        slots: the row's slot (B,), no slot twice.
        positions: index of the new key in its slot (B,), from 0.
        page: tokens a page.
    """
    signed = torch.cat((k, -k), dim=-1)  # (B, G, 2 * D)
    # A few rows by host integers cost less than one advanced index: this runs at every token and layer.
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        entry = bounds[slot, :, position // page]
        if position % page:
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


def select_pages(q: Tensor, bounds: Tensor, lengths: Tensor, keep: int, page: int) -> Tensor:
    """Choose the pages each KV group of each row reads.

    Args:
        q: queries (B, H, D).
        bounds: page bounds of the rows (B, G, P, 2 * D).
        lengths: keys a row may see (B,), 1 <= length <= P * page.
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
    for row, length in enumerate(lengths.tolist()):
        last = (length - 1) // page
        _force(scores[row], last, last)
    return _best(scores, keep)


def dense_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
    """Attend to everything: one query a row against its slot's whole past.

    Two products grouped by KV head, the heads of a group as the rows of one matrix: on a CPU this
    beats ``scaled_dot_product_attention``, with ``enable_gqa`` by far.

    Args:
        q: queries (B, H, D).
        k_cache: keys (slots, G, Tmax, D).
        v_cache: values, the same.
        slots: the row's slot (B,).
        lengths: keys a row may see (B,).

    Returns:
        (B, H, D).
    """
    at, seen = slots.tolist(), lengths.tolist()
    if _in_line(at) and len(seen) * max(seen) <= _MAX_PADDING * sum(seen):
        held = slice(at[0], at[0] + len(at))
        return _attend_rows(q, k_cache[held], v_cache[held], seen)
    rows = zip(q.split(1), at, seen, strict=True)
    return torch.cat([_attend_rows(one, k_cache[i : i + 1], v_cache[i : i + 1], [n]) for one, i, n in rows])


def topk_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    bounds: Tensor,
    slots: Tensor,
    lengths: Tensor,
    *,
    keep: int,
    page: int,
) -> Tensor:
    """Attend to the chosen pages only: one query a row.

    Args:
        q: queries (B, H, D).
        k_cache: keys (slots, G, Tmax, D), contiguous, Tmax a multiple of ``page``.
        v_cache: values, the same.
        bounds: page bounds (slots, G, Tmax / page, 2 * D).
        slots: the row's slot (B,).
        lengths: keys a row may see (B,).
        keep: pages a group reads, at least 2.
        page: tokens a page.

    Returns:
        (B, H, D).

    Raises:
        ConfigError: ``keep`` is below 2, or the cache is not whole pages.
    """
    seen = lengths.tolist()
    num_pages = -(-max(seen) // page)
    chosen = select_pages(q, _slot_rows(bounds[:, :, :num_pages], slots), lengths, keep, page)
    rows = _page_rows(chosen, slots, k_cache.shape[2], page)
    k, v = (_gather(cache, rows, chosen, page) for cache in (k_cache, v_cache))  # (B, G, K * page, D)
    # A row's pages come in order and its fill last, so what it may see of them is again a prefix.
    hidden = [max(0, -(-length // page) - chosen.shape[2]) * page for length in seen]
    return _attend_rows(q, k, v, [length - skipped for length, skipped in zip(seen, hidden, strict=True)])


def gated_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    bounds: Tensor,
    slots: Tensor,
    lengths: Tensor,
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
    pays = max(dense_below, keep * page + 1)  # with all pages kept, dense is the cheaper way
    gated = [length >= pays for length in lengths.tolist()]
    if not any(gated):
        return dense_decode(q, k_cache, v_cache, slots, lengths)
    if all(gated):
        return topk_decode(q, k_cache, v_cache, bounds, slots, lengths, keep=keep, page=page)
    long = torch.tensor(gated)
    here, there = (~long).to(q.device), long.to(q.device)
    out = torch.empty_like(q)
    out[here] = dense_decode(q[here], k_cache, v_cache, slots[~long], lengths[~long])
    out[there] = topk_decode(
        q[there], k_cache, v_cache, bounds, slots[long], lengths[long], keep=keep, page=page
    )
    return out


def span_limits(spans: Tensor, start: int = 0) -> Tensor:
    """Return how many keys each token may see: causal, but to the end of its own media span.

    Args:
        spans: (T,) 0 for text, k > 0 for the k-th span; a span is one run of equal numbers.
        start: keys that precede these tokens in the cache.

    Returns:
        (T,) exclusive upper limits, never falling from token to token.
    """
    index = torch.arange(1, len(spans) + 1, device=spans.device)
    if not len(spans):
        return index
    _, run, sizes = torch.unique_consecutive(spans, return_inverse=True, return_counts=True)
    return start + torch.where(spans > 0, sizes.cumsum(0)[run], index)


def dense_prefill(q: Tensor, k: Tensor, v: Tensor, limits: Tensor, *, block: int = 128) -> Tensor:
    """Attend to all that is visible, a block of queries at a time, so memory grows with T, not T².

    Args:
        q: queries (H, T, D).
        k: keys (G, S, D), S >= every limit.
        v: values, the same.
        limits: keys that each query may see (T,), from 1, never falling; see :func:`span_limits`.
        block: queries a step.

    Returns:
        (H, T, D).
    """
    out = torch.empty_like(q)
    for start in range(0, q.shape[1], block):
        allowed = limits[start : start + block]
        end = int(allowed[-1])
        visible = torch.arange(end, device=q.device) < allowed[:, None]  # (block, end)
        out[:, start : start + block] = _attend_block(
            q[:, start : start + block], k[:, :end], v[:, :end], visible[None]
        )
    return out


def topk_prefill(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, limits: Tensor, *, keep: int, page: int
) -> Tensor:
    """Attend to the chosen pages, ``page`` queries at a time: they share one choice a KV group.

    A page's score is the best over the block's queries. The first page is always read, and so are
    those from the first query's last visible page to the last query's, under the exact mask.

    Args:
        q: queries (H, T, D).
        k: keys (G, S, D), S >= every limit.
        v: values, the same.
        bounds: page bounds of ``k`` (G, >= ceil(S / page), 2 * D).
        limits: keys that each query may see (T,), from 1, never falling; see :func:`span_limits`.
        keep: pages a group reads, at least 2; more when a block's own pages need it.
        page: tokens a page, and queries a block.

    Returns:
        (H, T, D).

    Raises:
        ConfigError: ``keep`` is below 2.
    """
    groups, size = k.shape[0], k.shape[1]
    short = -size % page
    if short:  # whole pages, so that they can be read as rows
        k, v = (torch.cat((x, x.new_zeros(groups, short, x.shape[2])), dim=1) for x in (k, v))
    k, v = k.contiguous()[None], v.contiguous()[None]
    slot = torch.zeros(1, dtype=torch.long)
    out = torch.empty_like(q)
    for start in range(0, q.shape[1], page):
        queries, allowed = q[:, start : start + page], limits[start : start + page]
        first, end = int(allowed[0]), int(allowed[-1])
        # Every query of the block sees the keys before `first`; later ones are under the mask.
        own, last = (first - 1) // page, (end - 1) // page
        scores = page_scores(queries.reshape(groups, -1, q.shape[2]), bounds[:, : last + 1])
        _force(scores, own, last)
        chosen = _best(scores[None], keep if keep < MIN_KEEP else max(keep, last - own + 2))
        rows = _page_rows(chosen, slot, k.shape[2], page)
        near, far = (_gather(x, rows, chosen, page)[0] for x in (k, v))  # (G, K * page, D)
        positions = (chosen[0, :, :, None] * page + torch.arange(page, device=q.device)).flatten(1)
        visible = positions[:, None] < allowed[None, :, None]  # (G, block, K * page)
        out[:, start : start + page] = _attend_block(queries, near, far, visible)
    return out


def gated_prefill(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, limits: Tensor, *, keep: int, page: int, dense_below: int
) -> Tensor:
    """Attend by the gate from ``dense_below`` visible keys on, densely before.

    Args:
        dense_below: keys from which the gate pays; the rest as for :func:`topk_prefill`.

    Returns:
        (H, T, D).

    Raises:
        ConfigError: as :func:`topk_prefill`.
    """
    cut = int((limits < max(dense_below, keep * page + 1)).sum())  # limits never fall
    if cut == q.shape[1]:
        return dense_prefill(q, k, v, limits)
    parts = [dense_prefill(q[:, :cut], k, v, limits[:cut])] if cut else []
    parts.append(topk_prefill(q[:, cut:], k, v, bounds, limits[cut:], keep=keep, page=page))
    return torch.cat(parts, dim=1)


def _force(scores: Tensor, own: int, last: int) -> None:
    """Mark in scores (G, P), in place: page 0 and ``own`` to ``last`` always, none past ``last``."""
    scores[:, last + 1 :] = -torch.inf
    scores[:, own : last + 1] = torch.inf
    scores[:, 0] = torch.inf


def _best(scores: Tensor, keep: int) -> Tensor:
    """Return the ``keep`` best pages of scores (B, G, P), ascending, (B, G, K)."""
    if keep < MIN_KEEP:
        raise ConfigError(f"keep is {keep}: the gate needs at least {MIN_KEEP} pages, the first and the last")
    # In ascending order the rows are read forwards, and keeping all pages is dense to the last bit.
    return scores.topk(min(keep, scores.shape[-1]), sorted=False).indices.sort().values


def _split_groups(q: Tensor, groups: int) -> Tensor:
    """View queries (B, H, D) as (B * G, R, D)."""
    return q.reshape(q.shape[0] * groups, -1, q.shape[2])


def _in_line(slots: list[int]) -> bool:
    """Say whether the slots follow each other, so that their rows are a view of the cache."""
    return slots == list(range(slots[0], slots[0] + len(slots)))


def _slot_rows(cache: Tensor, slots: Tensor) -> Tensor:
    """Return the rows of ``slots``: a view when they lie in a line, as they mostly do, else a copy."""
    at = slots.tolist()
    if _in_line(at):
        return cache[at[0] : at[0] + len(at)]
    return cache.index_select(0, slots.to(cache.device))


def _page_rows(chosen: Tensor, slots: Tensor, max_tokens: int, page: int) -> Tensor:
    """Return the row of each chosen page in a cache read as (slots * G * P, page * D)."""
    if max_tokens % page:
        raise ConfigError(f"a cache of {max_tokens} tokens is not whole pages of {page}; round it up")
    groups, num_pages = chosen.shape[1], max_tokens // page
    first = [[[(slot * groups + group) * num_pages] for group in range(groups)] for slot in slots.tolist()]
    return (chosen + torch.tensor(first, device=chosen.device)).flatten()


def _gather(cache: Tensor, rows: Tensor, chosen: Tensor, page: int) -> Tensor:
    """Copy the chosen pages together, (B, G, K * page, D): long rows, which index_select moves whole."""
    lines = cache.view(-1, page * cache.shape[-1]).index_select(0, rows)
    return lines.view(*chosen.shape[:2], -1, cache.shape[-1])


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> Tensor:
    """Attend for one query a row, q (B, H, D), to the first ``seen`` of its keys and values (B, G, T, D)."""
    longest, visible = max(seen), None
    k, v = k[:, :, :longest], v[:, :, :longest]
    if min(seen) < longest:
        limits = torch.tensor(seen, device=q.device).repeat_interleave(k.shape[1])
        visible = torch.arange(longest, device=q.device) < limits[:, None, None]  # (B * G, 1, T)
    return _attend(_split_groups(q, k.shape[1]), k.flatten(0, 1), v.flatten(0, 1), visible).view(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attend in the plain way: q (N, R, D), k and v (N, T, D), softmax in float32 at least."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attend for q (H, block, D) to k and v (G, T, D) where ``visible`` (1 or G, block, T) says so."""
    groups, block = k.shape[0], q.shape[1]
    split = q.reshape(groups, -1, q.shape[2])  # (G, R * block, D)
    seen = visible.repeat(1, q.shape[0] // groups, 1)  # (1 or G, R * block, T)
    return _attend(split, k, v, seen).unflatten(1, (-1, block)).flatten(0, 1)
