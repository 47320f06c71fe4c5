"""The Top-K gate in the native core: torch's choices, and the bits of dense where all pages are kept."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model import core, topk
from autoglm.model.cache import KVCache
from autoglm.model.config import TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.pages import PageTable
from autoglm.model.weights import load_release

pytestmark = pytest.mark.skipif(
    core.library() is None and sys.platform != "linux", reason="the native core is not built here"
)
PAGE = 8
CONTEXT = 40 * PAGE
Models = tuple[PhoneModel, PhoneModel]


@pytest.fixture(scope="module")
def models(tiny_release: Path) -> Models:
    """The tiny model, held for the core, and multiplied out."""
    return load_release(tiny_release, by_core=True).model, load_release(tiny_release).model


def filled(model: PhoneModel, slots: int = 1, seed: int = 0) -> KVCache:
    """Return a cache full of random keys, values and their bounds."""
    cache, generator = model.new_cache(slots, CONTEXT), torch.Generator().manual_seed(seed)
    for k, v, bounds in zip(cache.keys, cache.values, cache.bounds, strict=True):
        k.normal_(generator=generator).mul_(2)
        v.normal_(generator=generator)
        bounds.copy_(topk.page_bounds(k, PAGE))
    return cache


def logits(
    model: PhoneModel,
    cache: KVCache,
    lengths: list[int],
    gate: TopKConfig,
    tables: list[PageTable] | None = None,
) -> Tensor:
    """Run one step that brings each sequence to its length, by this gate; return the logits (B, V)."""
    before, ids = model.config, torch.arange(7, 7 + len(lengths))
    tables = tables or [cache.slot(i) for i in range(len(lengths))]
    model.config = dataclasses.replace(before, topk=gate)
    try:
        with torch.inference_mode():
            return model.logits(
                model.decode(ids, torch.tensor(lengths) - 1, cache, cache.rows(tables, lengths))
            )
    finally:
        model.config = before


def gate(keep: int, dense_below: int = 0) -> TopKConfig:
    return TopKConfig(page=PAGE, keep=keep, dense_below=dense_below)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("keep", [2, 3, 8])
@pytest.mark.parametrize("length", [17, 25, 32, 65, 72, 73, 119, 200, 255, 256, 257, CONTEXT])
def test_it_reads_the_pages_that_torch_reads(models: Models, keep: int, length: int) -> None:
    """At lengths around every edge the gated step is torch's; which pages are read shows in it."""
    found, wanted = (logits(model, filled(model), [length], gate(keep)) for model in models)
    assert apart(found, wanted) < 1e-3
    if length > keep * PAGE:  # and not because pages did not matter
        dense = logits(models[0], filled(models[0]), [length], gate(keep, dense_below=CONTEXT + 1))
        assert apart(found, dense) > 1e-2


@pytest.mark.parametrize("length", [1, 7, 9, 160, 251, CONTEXT])
def test_with_all_pages_kept_it_is_dense_to_the_last_bit(
    models: Models, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """The gate forced on at every length, with as many pages as there are, or more."""
    wanted = logits(models[0], filled(models[0]), [length], gate(2, dense_below=CONTEXT + 1))

    def always(**sizes: int) -> int:
        return 1

    monkeypatch.setattr(topk, "gated_from", always)
    for keep in (max(2, -(-length // PAGE)), 64):
        assert torch.equal(logits(models[0], filled(models[0]), [length], gate(keep)), wanted)


def test_of_pages_that_score_the_same_the_earlier_are_read(models: Models) -> None:
    """With one key in all pages every score is a tie: page 0, those after it, and the last are read."""
    length, results = 20 * PAGE, list[Tensor]()
    for model in models:
        cache = filled(model)
        for k, bounds in zip(cache.keys, cache.bounds, strict=True):
            k.copy_(k[:, :, :1].expand_as(k))
            bounds.copy_(topk.page_bounds(k, PAGE))
        for values in cache.values:
            values[:, :, 4 * PAGE : length - PAGE] = 1e6  # pages 4 to 18: whoever reads one is far off
        results.append(logits(model, cache, [length], gate(5)))
    assert apart(*results) < 1e-3


def test_a_gated_row_does_not_depend_on_its_company(models: Models) -> None:
    """Beside a short row, a dense one and a longer gated one: the bits that it has alone."""
    model, lengths, some = models[0], [275, 12, 80, 150], gate(4, dense_below=120)
    together = logits(model, filled(model, 4), lengths, some)
    for row, length in enumerate(lengths):
        cache = filled(model, 4)
        ids = [cache.slot(row)] * (row + 1)
        alone = logits(model, cache, [length] * (row + 1), some, ids)[row]
        assert torch.equal(together[row], alone)


def test_it_does_not_matter_where_gated_pages_lie(models: Models) -> None:
    """Pages scattered over two slots are chosen and read as those in a line."""
    model, length, count = models[0], 179, -(-179 // PAGE)
    line, spread = filled(model), filled(model, 2, seed=1)
    per_slot = spread.pages_per_slot
    order = [page for pair in zip(range(per_slot, per_slot + 20), range(20), strict=True) for page in pair]
    table = PageTable(per_slot, order[:count])
    for held, unit in [(pair, PAGE) for pair in zip(line.keys, spread.keys, strict=True)] + [
        *((pair, PAGE) for pair in zip(line.values, spread.values, strict=True)),
        *((pair, 1) for pair in zip(line.bounds, spread.bounds, strict=True)),
    ]:
        table.write(held[1], unit, 0, held[0][0, :, : count * unit])
    found = logits(model, spread, [length], gate(4), [table])
    assert torch.equal(found, logits(model, line, [length], gate(4)))


def test_a_broken_key_is_read_and_breaks_its_own_row_alone(models: Models) -> None:
    """NaN makes its page's bounds NaN, which no score beats: a broken cache shows, in its sequence."""
    model, cache = models[0], filled(models[0], 2)
    cache.keys[1][1, 0, 9 * PAGE + 3, 2] = torch.nan
    cache.bounds[1].copy_(topk.page_bounds(cache.keys[1], PAGE))
    finite = logits(model, cache, [250, 250], gate(3)).isfinite()
    assert finite[0].all() and not finite[1].any()


def test_nothing_past_the_end_is_rated(models: Models) -> None:
    """What an earlier tenant left behind a sequence's last page is neither rated nor read."""
    model, length = models[0], 125
    clean, dirty = filled(model), filled(model)
    for held, unit in ((dirty.keys, PAGE), (dirty.values, PAGE), (dirty.bounds, 1)):
        for tensor in held:
            tensor[:, :, -(-length // PAGE) * unit :] = torch.nan
    assert torch.equal(logits(model, dirty, [length], gate(3)), logits(model, clean, [length], gate(3)))


def test_a_gate_of_one_page_is_refused(models: Models) -> None:
    """It could not keep the first page and the last; while no row is gated nobody asks."""
    cache = filled(models[0])
    assert logits(models[0], cache, [PAGE], gate(1)).isfinite().all()
    with pytest.raises(ConfigError, match="at least 2"):
        logits(models[0], cache, [200], gate(1))
