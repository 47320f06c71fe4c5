"""Choose the frequency tables of a package: one small pool, shared by every context of every tensor.

Contexts whose tokens are distributed alike share a table, so a package with thousands of contexts carries
at most 64 tables. The search is k-means with code length as its distance; all of its arithmetic is on
integers (held in float64 where that is exact), so it gives the same tables on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from autoglm.patch.package import MAX_TABLES, NUM_TOKENS, TABLE_BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOTAL = 1 << TABLE_BITS
# While searching, tables are finer than they will be, which saves the rounding.
_FINE = 1 << 14
_ROUNDS = 12
# Costs are in 1/1024 bit: counts below 2^36 times costs below 2^15 stay exact in float64.
_BIT = 1 << 10
# What a token costs that a table does not have: while searching it may still get it, later it may not.
_RARE, _NEVER = 16 * _BIT, 1 << 40
# What a table and a context's place in the map cost in the header, roughly, in bits.
_FREQUENCY_BITS, _ENTRY_BITS = 9, 12
# How often maps and tables are fitted to each other, and how many maps are looked at for a like one.
_MAP_ROUNDS, _LIKENESSES = 2, 64


@dataclass(frozen=True)
class Pool:
    """Tables, and for each histogram the table of every context and the cost in bits without raw bits."""

    tables: tuple[tuple[int, ...], ...]
    maps: tuple[bytes, ...]
    costs: tuple[int, ...]


def conditional_entropy(histogram: NDArray[np.int64]) -> float:
    """Return the empirical entropy of tokens given their contexts, in bits: what no tables can go below."""
    import numpy as np

    counts = histogram[histogram.any(axis=1)].astype(np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True) if counts.size else counts
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return float(-(counts * logs).sum())


def entropy_bits(histogram: NDArray[np.int64]) -> float:
    """Return the bits that coding takes with tables of its own, those tables included, roughly."""
    return conditional_entropy(histogram) + 4.0 * float((histogram > 0).sum())


def pool(histograms: Sequence[NDArray[np.int64]]) -> Pool:
    """Find the tables for all histograms, each of (contexts, 64) counts, that cost least in all."""
    import numpy as np

    if not histograms:
        return Pool((), (), ())
    rows = np.concatenate(histograms).astype(np.float64)
    used = np.asarray(rows.any(axis=1), np.bool_)
    tables, labels = _search(rows[used])
    place = np.zeros(len(rows), np.int64)
    for _ in range(_MAP_ROUNDS):
        place[used] = labels
        maps, place = _mapped(histograms, rows, used, _costs(tables, _NEVER))
        # tables that fit what the maps now give them
        labels, sums = _sums(rows[used], place[used])
        tables = np.stack([_normalise(row.astype(np.int64)) for row in sums])
    place[used] = labels
    maps, place = _mapped(histograms, rows, used, _costs(tables, _NEVER))
    costs = np.zeros(len(rows))
    costs[used] = _price(rows[used], _costs(tables, _NEVER))[np.arange(int(used.sum())), place[used]]
    starts = np.cumsum([0, *(len(histogram) for histogram in histograms)])
    totals = np.add.reduceat(costs, starts[:-1]) // _BIT
    return Pool(
        tuple(tuple(int(f) for f in table) for table in tables),
        tuple(maps),
        tuple(int(total) for total in totals),
    )


def _mapped(
    histograms: Sequence[NDArray[np.int64]],
    rows: NDArray[np.float64],
    used: NDArray[np.bool_],
    table_costs: NDArray[np.float64],
) -> tuple[list[bytes], NDArray[np.int64]]:
    """Choose every map, a little dearer where that makes it like another, and so the table of each row."""
    import numpy as np

    maps: list[bytes] = []
    place = np.zeros(len(rows), np.int64)
    known: dict[int, list[NDArray[np.int64]]] = {}
    start = 0
    for histogram in histograms:
        block = slice(start, start := start + len(histogram))
        costs = _price(rows[block], table_costs)
        costs[~used[block]] = 0.0
        entries = _map(costs, used[block], known.setdefault(len(histogram), []))
        place[block] = entries if len(entries) > 1 else entries[0]
        maps.append(bytes(entries.astype(np.uint8).tolist()))
    return maps, place


def _map(
    costs: NDArray[np.float64], used: NDArray[np.bool_], known: list[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return the map of least cost, its own writing included: one entry, or one a context."""
    import numpy as np

    contexts = np.arange(len(costs))
    own = costs.argmin(axis=1)
    least = costs[contexts, own]
    together = costs.sum(axis=0)
    best_cost, best = float(together.min()) + _ENTRY_BITS * _BIT, np.array([int(together.argmin())])
    for like in known[-_LIKENESSES:]:
        there = costs[contexts, like]
        change = there - least > _ENTRY_BITS * _BIT
        cost = float(np.where(change, least + _ENTRY_BITS * _BIT, there).sum())
        if cost < best_cost:
            best_cost, best = cost, np.where(change, own, like)
    runs = _in_runs(costs, own)
    changes = float((np.diff(runs) != 0).sum() + 1)
    if float(costs[contexts, runs].sum()) + changes * _ENTRY_BITS * _BIT < best_cost:
        best = runs
    if len(best) > 1 and not any((best == like).all() for like in known[-_LIKENESSES:]):
        known.append(best)
    return best


def _in_runs(costs: NDArray[np.float64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a map that changes from one context to the next only where that pays."""
    import numpy as np

    entries = np.empty(len(own), np.int64)
    last = int(own[np.flatnonzero(costs.any(axis=1))[0]]) if costs.any() else int(own[0])
    for context, table in enumerate(own.tolist()):
        if costs[context, last] - costs[context, table] > _ENTRY_BITS * _BIT:
            last = table
        entries[context] = last
    return entries


def _search(rows: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    import numpy as np

    best: tuple[float, NDArray[np.int64], NDArray[np.int64]] | None = None
    count = 1
    while count <= MAX_TABLES:
        tables, labels = _cluster(rows, min(count, len(rows)))
        cost = float(_price(rows, _costs(tables, _NEVER))[np.arange(len(rows)), labels].sum()) / _BIT
        cost += _FREQUENCY_BITS * float((tables > 0).sum())
        if best is None or cost < best[0]:
            best = cost, tables, labels
        if count >= len(rows) or cost > 1.02 * best[0]:
            break
        count *= 2
    assert best is not None
    return best[1], best[2]


def _cluster(rows: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into at most ``count`` groups; return their tables and each row's group."""
    import numpy as np

    labels = _first_labels(rows, count)
    for _ in range(_ROUNDS):
        labels, sums = _sums(rows, labels)
        shares = np.floor(sums * (_FINE / sums.sum(axis=1, keepdims=True)))
        shares = np.where(sums > 0, np.maximum(shares, 1), 0).astype(np.int64)
        costs = np.where(shares > 0, _cost_of_share()[shares], float(_RARE))
        moved = _price(rows, costs).argmin(axis=1)
        if (moved == labels).all():
            break
        labels = moved
    labels, sums = _sums(rows, labels)
    return np.stack([_normalise(row.astype(np.int64)) for row in sums]), labels


def _first_labels(rows: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Begin with groups of like entropy, each with a like share of the (square root of the) tokens."""
    import numpy as np

    totals = rows.sum(axis=1)
    tokens = np.arange(NUM_TOKENS, dtype=np.float64)
    order = np.lexsort((np.arange(len(rows)), rows @ tokens / totals))
    weight = np.floor(np.sqrt(totals[order])).cumsum()
    labels = np.empty(len(rows), np.int64)
    labels[order] = np.minimum((weight * count // (weight[-1] + 1)).astype(np.int64), count - 1)
    return labels


def _sums(
    rows: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels without gaps, and the summed counts of each group."""
    import numpy as np

    order = np.argsort(labels, kind="stable")
    _, starts, dense = np.unique(labels[order], return_index=True, return_inverse=True)
    dense_labels = np.empty(len(labels), np.int64)
    dense_labels[order] = dense
    return dense_labels, np.add.reduceat(rows[order], starts, axis=0)


def _normalise(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scale counts to sum to 2048, keeping at least 1 for every token that occurs."""
    import numpy as np

    total = int(counts.sum())
    table = np.where(counts > 0, np.maximum(1, (2 * counts * _TOTAL + total) // (2 * total)), 0)
    while (surplus := int(table.sum()) - _TOTAL) != 0:
        # where taking away (or giving) one hurts least: at the largest
        largest = int(table.argmax())
        step = min(surplus, max(1, int(table[largest]) // 16)) if surplus > 0 else surplus
        table[largest] -= step
    return table


@cache
def _cost_of_share() -> NDArray[np.float64]:
    """Return the cost of a token that has 0, 1, 2, ... of ``_FINE`` shares; that of 0 is not used."""
    import numpy as np

    bits = [0.0] + [math.log2(_FINE / share) for share in range(1, _FINE + 1)]
    return np.rint(np.array(bits) * _BIT)


def _costs(tables: NDArray[np.int64], missing: int) -> NDArray[np.float64]:
    import numpy as np

    return np.where(tables > 0, _cost_of_share()[tables * (_FINE // _TOTAL)], float(missing))


def _price(rows: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each row costs with each table: ``rows @ costs.T``.

    In pieces of 64 rows, because linear algebra libraries put larger products on threads, which takes a
    hundred times longer where the cores are busy.
    """
    import numpy as np

    padded = np.zeros((-(-len(rows) // NUM_TOKENS) * NUM_TOKENS, NUM_TOKENS))
    padded[: len(rows)] = rows
    pieces = padded.reshape(-1, NUM_TOKENS, NUM_TOKENS) @ costs.T
    return pieces.reshape(-1, len(costs))[: len(rows)]
