"""Attention of many queries at once, as a prompt is read: dense, or by the Top-K gate.

What it guarantees: a query's result is the same to the last bit however a prompt is cut into pieces, so that
what one request read may serve another; media spans are bidirectional, all else is causal. Memory grows
with the length, not with its square. Dimensions as in :mod:`autoglm.model.topk`.

    out = gated_prefill(q, k, v, bounds, span_limits(spans), keep=64, page=32, dense_below=4096)
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoglm.model.topk import (
    MIN_KEEP,
    attention_weights,
    best_pages,
    force_pages,
    gather_pages,
    page_scores,
)

# Prefill sums values over this many keys at a time, always the same ones. A matrix library cuts one long
# sum as it sees fit, by its length; cut here, masked keys that follow add exactly nothing.
_KEYS_A_SUM = 128


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

    Each query's result is the same to the last bit however a prompt is cut into pieces, as long as ``k``
    holds whole pages and a piece has a few queries (measured with MKL; a lone row takes another path
    there). What lies past the limits must be finite.

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
        end = min(-(-int(allowed[-1]) // _KEYS_A_SUM) * _KEYS_A_SUM, k.shape[1])
        visible = torch.arange(end, device=q.device) < allowed[:, None]  # (block, end)
        out[:, start : start + block] = _attend_block(
            q[:, start : start + block], k[:, :end], v[:, :end], visible[None]
        )
    return out


def topk_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    limits: Tensor,
    *,
    keep: int,
    page: int,
    first_block: int | None = None,
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
        first_block: queries of the first block, where it is to be shorter.

    Returns:
        (H, T, D).

    Raises:
        ConfigError: ``keep`` is below 2.
    """
    groups, size = k.shape[0], k.shape[1]
    short = -size % page
    if short:  # whole pages, so that they can be read as rows
        k, v = (torch.cat((x, x.new_zeros(groups, short, x.shape[2])), dim=1) for x in (k, v))
    k, v = k.contiguous(), v.contiguous()
    shift = torch.arange(groups, device=q.device)[:, None] * (k.shape[1] // page)
    out = torch.empty_like(q)
    starts = [0, *range(page if first_block is None else first_block, q.shape[1], page)]
    for start, stop in zip(starts, [*starts[1:], q.shape[1]], strict=True):
        queries, allowed = q[:, start:stop], limits[start:stop]
        first, end = int(allowed[0]), int(allowed[-1])
        # Every query of the block sees the keys before `first`; later ones are under the mask.
        own, last = (first - 1) // page, (end - 1) // page
        scores = page_scores(queries.reshape(groups, -1, q.shape[2]), bounds[:, : last + 1])
        force_pages(scores, own, last)
        chosen = best_pages(scores[None], keep if keep < MIN_KEEP else max(keep, last - own + 2))
        near, far = (gather_pages(x, chosen + shift, page)[0] for x in (k, v))  # (G, K * page, D)
        positions = (chosen[0, :, :, None] * page + torch.arange(page, device=q.device)).flatten(1)
        visible = positions[:, None] < allowed[None, :, None]  # (G, block, K * page)
        out[:, start:stop] = _attend_block(queries, near, far, visible)
    return out


def gated_prefill(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, limits: Tensor, *, keep: int, page: int, dense_below: int
) -> Tensor:
    """Attend by the gate from ``dense_below`` visible keys on, densely before.

    Blocks of queries begin at multiples of ``page``, so that pieces of whole pages choose as one piece does.

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
    parts.append(
        topk_prefill(
            q[:, cut:], k, v, bounds, limits[cut:], keep=keep, page=page, first_block=-cut % page or page
        )
    )
    return torch.cat(parts, dim=1)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attend for q (H, block, D) to k and v (G, T, D) where ``visible`` (1 or G, block, T) says so."""
    groups, block = k.shape[0], q.shape[1]
    split = q.reshape(groups, -1, q.shape[2])  # (G, R * block, D)
    seen = visible.repeat(1, q.shape[0] // groups, 1)  # (1 or G, R * block, T)
    weights = attention_weights(split, k, seen).to(v.dtype)
    out = torch.bmm(weights[:, :, :_KEYS_A_SUM], v[:, :_KEYS_A_SUM])  # (G, R * block, D)
    for start in range(_KEYS_A_SUM, v.shape[1], _KEYS_A_SUM):
        keys = slice(start, start + _KEYS_A_SUM)
        out.baddbmm_(weights[:, :, keys], v[:, keys])
    return out.unflatten(1, (-1, block)).flatten(0, 1)
