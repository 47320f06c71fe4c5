"""The Top-K gate against a plain slow reference, and the promises its docstring makes."""

from __future__ import annotations

import itertools
import math
from typing import TypedDict

import pytest
import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model.pages import PageTable, Rows
from autoglm.model.prefill import dense_prefill, gated_prefill, span_limits, topk_prefill
from autoglm.model.topk import (
    dense_decode,
    gated_decode,
    page_bounds,
    page_scores,
    select_pages,
    topk_decode,
    update_bounds,
)

PAGE = 32
HEADS, GROUPS, DIM = 6, 2, 16


def in_slots(slots: Tensor, lengths: Tensor, tokens: int) -> Rows:
    """Return where rows lie that fill a slot of ``tokens`` tokens each."""
    count = -(-tokens // PAGE)
    tables = [PageTable(count, range(slot * count, (slot + 1) * count)) for slot in slots.tolist()]
    return Rows(tables, lengths.tolist(), PAGE)


class Gate(TypedDict):
    keep: int
    page: int
    dense_below: int


def make_cache(num_slots: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return random keys, values (slots, G, T, D) and their bounds."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, num_slots, GROUPS, tokens, DIM, generator=generator)
    return k.clone(), v.clone(), page_bounds(k, PAGE)


def make_queries(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_attention(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> Tensor:
    """One head, one query, one key at a time: softmax over the keys in ``seen``."""
    scores = [sum(float(a) * float(b) for a, b in zip(q, k[j], strict=True)) for j in seen]
    weights = [math.exp(score / math.sqrt(len(q))) for score in scores]
    total = torch.zeros(v.shape[-1], dtype=torch.float64)
    for j, weight in zip(seen, weights, strict=True):
        total += weight / sum(weights) * v[j].double()
    return total.float()


def slow_pages(queries: Tensor, k: Tensor, length: int, keep: int) -> list[int]:
    """The design's rule for one group, in loops: ``queries`` are its heads (R, D), ``k`` its keys (T, D)."""
    last = (length - 1) // PAGE
    scores = {}
    for page in range(1, last):
        keys = k[page * PAGE : (page + 1) * PAGE]
        high, low = keys.max(0).values.tolist(), keys.min(0).values.tolist()
        scores[page] = max(
            sum(max(c * h, c * s) for c, h, s in zip(q.tolist(), high, low, strict=True)) for q in queries
        )
    best = sorted(scores, key=lambda page: -scores[page])[: keep - len({0, last})]
    return sorted({0, last, *best})


def visible_keys(pages: list[int], length: int) -> list[int]:
    return [j for page in pages for j in range(page * PAGE, (page + 1) * PAGE) if j < length]


def test_dense_decode_is_attention_with_a_ragged_batch_in_any_slots() -> None:
    """Each row sees its own slot up to its own length, whatever the order of the slots."""
    k, v, _ = make_cache(4, 96)
    slots, lengths = torch.tensor([3, 0, 2]), torch.tensor([96, 1, 50])
    q = make_queries(3, HEADS, DIM)

    out = dense_decode(q, k, v, in_slots(slots, lengths, k.shape[2]))

    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            expected = slow_attention(q[row, head], k[slot, group], v[slot, group], list(range(length)))
            torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-5)


def test_topk_decode_reads_the_pages_of_the_rule_and_no_others() -> None:
    """Chosen pages and the result match loops over the rule, for each group and each ragged row."""
    k, v, bounds = make_cache(3, 320)
    slots, lengths, keep = torch.tensor([2, 0]), torch.tensor([315, 200]), 4
    q = make_queries(2, HEADS, DIM)

    out = topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), keep)

    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            heads = q[row, group * (HEADS // GROUPS) : (group + 1) * (HEADS // GROUPS)]
            pages = slow_pages(heads, k[slot, group], length, keep)
            expected = slow_attention(
                q[row, head], k[slot, group], v[slot, group], visible_keys(pages, length)
            )
            torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[256, 256], [256, 1], [33, 200], [32, 64]])
def test_all_pages_kept_is_dense_to_the_last_bit(lengths: list[int]) -> None:
    """With K at the number of pages the gate changes nothing, ragged rows included."""
    k, v, bounds = make_cache(2, 256)
    q = make_queries(2, HEADS, DIM)
    slots, lens = torch.tensor([1, 0]), torch.tensor(lengths)

    gated = topk_decode(q, k, v, bounds, in_slots(slots, lens, k.shape[2]), 8)
    dense = dense_decode(q, k, v, in_slots(slots, lens, k.shape[2]))

    torch.testing.assert_close(gated, dense, atol=1e-5, rtol=1e-5)
    if max(lengths) % PAGE == 0:  # the same sums over the same keys in the same order
        assert torch.equal(gated, dense)


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 1), (8, 2)])
def test_any_grouping_of_heads_agrees_with_dense(heads: int, groups: int) -> None:
    """One head a group, one group in all, and between: full selection is dense attention."""
    generator = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, 1, groups, 128, DIM, generator=generator)
    q = make_queries(1, heads, DIM)
    slots, lengths = torch.tensor([0]), torch.tensor([128])

    gated = topk_decode(q, k, v, page_bounds(k, PAGE), in_slots(slots, lengths, k.shape[2]), 4)

    assert torch.equal(gated, dense_decode(q, k, v, in_slots(slots, lengths, k.shape[2])))


def test_a_pages_score_bounds_every_dot_product_in_it() -> None:
    """No key of a page can score above the page, and the bound is that of the formula."""
    k, _, bounds = make_cache(1, 128)
    q = make_queries(GROUPS, HEADS // GROUPS, DIM)

    scores = page_scores(q, bounds[0])

    pages = k[0].unflatten(1, (-1, PAGE))  # (G, P, page, D)
    high, low = pages.amax(2)[:, None], pages.amin(2)[:, None]  # (G, 1, P, D)
    products = torch.einsum("grd,gptd->grpt", q, pages).amax((1, 3))
    formula = torch.maximum(q[:, :, None] * high, q[:, :, None] * low).sum(-1).amax(1)
    assert (scores >= products - 1e-5).all()
    torch.testing.assert_close(scores, formula, atol=1e-5, rtol=1e-5)


def test_first_and_last_pages_are_always_kept() -> None:
    """Even with the worst scores of all, the first page and the page of the newest token are chosen."""
    k, _, _ = make_cache(1, 320)
    q = torch.ones(1, HEADS, DIM)
    k[:, :, :PAGE] = -50
    k[:, :, 256:] = -50  # page 8, where the row ends, and page 9 past it

    chosen = select_pages(q, page_bounds(k, PAGE), [257], keep=3, page=PAGE)

    assert (chosen[..., 0] == 0).all()
    assert (chosen[..., -1] == 8).all()


def test_pages_past_the_end_are_never_looked_at() -> None:
    """What an earlier tenant left behind a row's end, NaN bounds among it, changes nothing."""
    k, v, bounds = make_cache(1, 256)
    slots, lengths = torch.tensor([0]), torch.tensor([150])
    q = make_queries(1, HEADS, DIM)
    clean = topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), 4)

    k[:, :, 150:], v[:, :, 150:] = 1e4, 1e4
    bounds[:, :, 5:] = torch.nan

    dirty = topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), 4)
    assert torch.equal(dirty, clean)


@pytest.mark.parametrize("needle", range(5, 2048, 97))
def test_a_planted_key_is_always_found(needle: int) -> None:
    """One key along the query among 64 pages of noise: its page is kept and its value comes out."""
    k, v, _ = make_cache(1, 2048)
    q = make_queries(1, HEADS, DIM)
    for group in range(GROUPS):
        k[0, group, needle] = 40 * q[0, group * (HEADS // GROUPS)]
    v[0, :, needle] = 7
    slots, lengths = torch.tensor([0]), torch.tensor([2048])

    bounds = page_bounds(k, PAGE)
    chosen = select_pages(q, bounds, [2048], keep=4, page=PAGE)
    out = topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), 4)

    assert (chosen == needle // PAGE).any(-1).all()
    torch.testing.assert_close(out[0, :: HEADS // GROUPS], torch.full((GROUPS, DIM), 7.0), atol=1e-2, rtol=0)


def test_bounds_kept_token_by_token_equal_those_made_at_once() -> None:
    """Appending over a slot's stale bounds gives what one pass over its keys gives."""
    k, _, _ = make_cache(2, 96)
    bounds = torch.full((2, GROUPS, 3, 2 * DIM), torch.nan)
    slots = torch.tensor([1, 0])
    for step in range(80):
        positions = torch.tensor([step, step + 16]) if step >= 16 else torch.tensor([step, step])
        update_bounds(bounds, k[slots, :, positions], in_slots(slots, positions + 1, 96))
    for step in range(16, 32):  # the row that jumped ahead left a hole in its first page
        update_bounds(bounds, k[:1, :, step], in_slots(torch.tensor([0]), torch.tensor([step + 1]), 96))

    assert torch.equal(bounds[0], page_bounds(k[0], PAGE))
    assert torch.equal(bounds[1], page_bounds(k[1, :, :80], PAGE))


def test_bounds_of_a_part_full_page_hold_its_keys_only() -> None:
    """A last page of one key has that key as its maximum and as its minimum."""
    k, _, _ = make_cache(1, 65)

    bounds = page_bounds(k, PAGE)

    assert bounds.shape == (1, GROUPS, 3, 2 * DIM)
    assert torch.equal(bounds[:, :, 2], torch.cat((k[:, :, 64], -k[:, :, 64]), -1))


def test_a_rows_path_does_not_depend_on_its_company() -> None:
    """In a batch of short and long rows each gets the result it gets alone."""
    k, v, bounds = make_cache(4, 512)
    slots, lengths = torch.tensor([3, 1, 0]), torch.tensor([512, 100, 300])
    q = make_queries(3, HEADS, DIM)
    gate = Gate(keep=3, page=PAGE, dense_below=256)

    together = gated_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), **gate)

    for row in range(3):
        one = slice(row, row + 1)
        alone = gated_decode(q[one], k, v, bounds, in_slots(slots[one], lengths[one], 512), **gate)
        torch.testing.assert_close(together[one], alone, atol=1e-6, rtol=1e-6)
    sparse = topk_decode(q[:1], k, v, bounds, in_slots(slots[:1], lengths[:1], 512), 3)
    dense = dense_decode(q[1:2], k, v, in_slots(slots[1:2], lengths[1:2], 512))
    torch.testing.assert_close(together[:1], sparse, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together[1:2], dense, atol=1e-6, rtol=1e-6)


def test_the_gate_leaves_short_contexts_dense() -> None:
    """Below ``dense_below``, and where all pages would be kept anyway, the result is dense bit for bit."""
    k, v, bounds = make_cache(1, 256)
    q, slots, lengths = make_queries(1, HEADS, DIM), torch.tensor([0]), torch.tensor([250])
    dense = dense_decode(q, k, v, in_slots(slots, lengths, k.shape[2]))

    below = gated_decode(
        q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), keep=2, page=PAGE, dense_below=251
    )
    kept = gated_decode(
        q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), keep=8, page=PAGE, dense_below=0
    )

    assert torch.equal(below, dense)
    assert torch.equal(kept, dense)


def test_span_limits_are_causal_but_reach_the_end_of_a_media_span() -> None:
    """Text sees up to itself; an image or a clip sees itself whole; neighbours stay apart."""
    spans = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])

    assert span_limits(spans).tolist() == [1, 2, 4, 4, 7, 7, 7, 8]
    assert span_limits(spans, start=10).tolist() == [11, 12, 14, 14, 17, 17, 17, 18]
    assert span_limits(torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("tokens", [1, 31, 150, 192])
def test_prefill_agrees_with_a_plain_mask(tokens: int) -> None:
    """Dense prefill, and the gate with all pages kept, are masked attention, media spans included."""
    k, v, _ = make_cache(1, tokens)
    spans = torch.zeros(tokens, dtype=torch.long)
    spans[5:90], spans[120:130] = 1, 2
    limits = span_limits(spans)
    q = make_queries(HEADS, tokens, DIM)

    dense = dense_prefill(q, k[0], v[0], limits, block=50)
    gated = topk_prefill(q, k[0], v[0], page_bounds(k[0], PAGE), limits, keep=6, page=PAGE)

    mask = torch.arange(tokens) < limits[:, None]
    wide_k, wide_v = (x[0].repeat_interleave(HEADS // GROUPS, 0) for x in (k, v))
    scores = (q @ wide_k.transpose(1, 2) / math.sqrt(DIM)).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ wide_v
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gated, expected, atol=1e-5, rtol=1e-5)


def test_gated_prefill_reads_the_pages_of_the_rule_under_the_exact_mask() -> None:
    """A block of queries shares the pages that its best query finds; each query stays causal."""
    tokens, keep, start = 320, 3, 256
    k, v, bounds = make_cache(1, tokens)
    q = make_queries(HEADS, tokens, DIM)
    limits = span_limits(torch.zeros(tokens, dtype=torch.long))

    out = topk_prefill(q, k[0], v[0], bounds[0], limits, keep=keep, page=PAGE)

    for group in range(GROUPS):
        heads = range(group * (HEADS // GROUPS), (group + 1) * (HEADS // GROUPS))
        block = torch.cat([q[head, start : start + PAGE] for head in heads])
        pages = slow_pages(block, k[0, group], start + PAGE, keep)
        for head in heads:
            for i in (start, start + 7, start + PAGE - 1):
                seen = visible_keys(pages, i + 1)
                expected = slow_attention(q[head, i], k[0, group], v[0, group], seen)
                torch.testing.assert_close(out[head, i], expected, atol=1e-5, rtol=1e-5)


def test_a_span_wider_than_keep_still_sees_all_it_must() -> None:
    """A block whose visible keys end on several own pages reads them all, however small ``keep`` is."""
    k, v, bounds = make_cache(1, 256)
    spans = torch.zeros(256, dtype=torch.long)
    spans[40:250] = 1  # the first block with it sees from page 0 to page 7
    limits = span_limits(spans)
    q = make_queries(HEADS, 256, DIM)

    out = topk_prefill(q, k[0], v[0], bounds[0], limits, keep=2, page=PAGE)
    dense = dense_prefill(q, k[0], v[0], limits)

    torch.testing.assert_close(out[:, 32:64], dense[:, 32:64], atol=1e-5, rtol=1e-5)


def test_gated_prefill_is_dense_for_the_queries_with_a_short_past() -> None:
    """Only queries that see ``dense_below`` keys or more go through the gate, also after a prefix."""
    tokens, past = 200, 120
    k, v, bounds = make_cache(1, tokens)
    q = make_queries(HEADS, tokens - past, DIM)
    limits = span_limits(torch.zeros(tokens - past, dtype=torch.long), start=past)

    out = gated_prefill(q, k[0], v[0], bounds[0], limits, keep=2, page=PAGE, dense_below=150)

    dense = dense_prefill(q, k[0], v[0], limits)
    sparse = topk_prefill(q[:, 29:], k[0], v[0], bounds[0], limits[29:], keep=2, page=PAGE, first_block=3)
    torch.testing.assert_close(out[:, :29], dense[:, :29], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(out[:, 29:], sparse, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(out[:, 29:], dense[:, 29:], atol=1e-3)


def test_last_query_of_prefill_and_decode_choose_alike() -> None:
    """A lone query through prefill is the decode step of the same token."""
    k, v, bounds = make_cache(1, 320)
    q = make_queries(HEADS, 1, DIM)

    prefilled = topk_prefill(q, k[0], v[0], bounds[0], torch.tensor([320]), keep=4, page=PAGE)
    decoded = topk_decode(
        q.transpose(0, 1),
        k,
        v,
        bounds,
        in_slots(torch.tensor([0]), torch.tensor([320]), 320),
        4,
    )

    torch.testing.assert_close(prefilled[:, 0], decoded[0], atol=1e-6, rtol=1e-6)


def test_bfloat16_caches_work_within_their_precision() -> None:
    """The gate runs on bf16 caches and agrees with float32 to bf16's precision."""
    k, v, bounds = make_cache(1, 256)
    q, slots, lengths = make_queries(1, HEADS, DIM), torch.tensor([0]), torch.tensor([256])

    half = topk_decode(
        q.bfloat16(),
        k.bfloat16(),
        v.bfloat16(),
        bounds.bfloat16(),
        in_slots(slots, lengths, 256),
        8,
    )

    assert half.dtype == torch.bfloat16
    full = topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), 8)
    torch.testing.assert_close(half.float(), full, atol=3e-2, rtol=3e-2)


def test_impossible_settings_are_refused_by_name() -> None:
    """A gate of one page, or a cache that is not whole pages, is a clear configuration error."""
    k, v, bounds = make_cache(1, 100)
    q, slots, lengths = make_queries(1, HEADS, DIM), torch.tensor([0]), torch.tensor([100])

    with pytest.raises(ConfigError, match="at least 2 pages"):
        select_pages(q, bounds, [100], keep=1, page=PAGE)
    with pytest.raises(ConfigError, match="100 tokens is not whole pages of 32"):
        topk_decode(q, k, v, bounds, in_slots(slots, lengths, k.shape[2]), 2)


@pytest.mark.parametrize("keep", [3, 100])
def test_scattered_and_shared_pages_read_as_neighbouring_ones(keep: int) -> None:
    """Wherever the pages of a row lie, and whoever shares them, its result is the same to the last bit."""
    k, v, _ = make_cache(1, 256)
    whole, lengths = in_slots(torch.tensor([0]), torch.tensor([250]), 256), [250, 250, 70]
    tables = [
        PageTable(8, pages) for pages in ([9, 3, 4, 20, 1, 16, 17, 23], [9, 3, 4, 0, 5, 6, 7, 8], [9, 3, 4])
    ]
    spread = [torch.full((3, GROUPS, 256, DIM), torch.nan) for _ in range(2)]
    for table in tables:
        for held, source in zip(spread, (k, v), strict=True):
            table.write(held, PAGE, 0, source[0, :, : len(table) * PAGE])
    q, rows = make_queries(3, HEADS, DIM), Rows(tables, lengths, PAGE)
    gate = Gate(keep=keep, page=PAGE, dense_below=0)

    out = gated_decode(q, *spread, page_bounds(spread[0], PAGE), rows, **gate)

    for row in range(2):
        alone = gated_decode(q[row : row + 1], k, v, page_bounds(k, PAGE), whole, **gate)
        torch.testing.assert_close(out[row : row + 1], alone, atol=1e-6, rtol=1e-6)
    for row, table in enumerate(tables):
        one = Rows([table], lengths[row : row + 1], PAGE)
        alone = gated_decode(q[row : row + 1], *spread, page_bounds(spread[0], PAGE), one, **gate)
        torch.testing.assert_close(out[row : row + 1], alone, atol=1e-6, rtol=1e-6)


def test_pieces_of_whole_pages_choose_and_sum_as_one_piece_does() -> None:
    """Cut at page boundaries, prefill gives the same bits, by the gate and densely, media spans included."""
    k, v, bounds = make_cache(1, 320)
    spans = torch.zeros(320, dtype=torch.long)
    spans[70:150] = 1
    limits, q = span_limits(spans), make_queries(HEADS, 320, DIM)
    gate = Gate(keep=3, page=PAGE, dense_below=130)

    whole = gated_prefill(q, k[0], v[0], bounds[0], limits, **gate)

    for cuts in ([0, 64, 160, 320], [0, 32, 64, 192, 224, 320]):
        pieces: list[Tensor] = []
        for start, stop in itertools.pairwise(cuts):
            held = (k[0, :, :stop], v[0, :, :stop], bounds[0, :, : stop // PAGE])
            pieces.append(gated_prefill(q[:, start:stop], *held, limits[start:stop], **gate))
        assert torch.equal(torch.cat(pieces, 1), whole)
