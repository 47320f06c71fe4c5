"""Decoding by graphs: the arithmetic and the buffers on a CPU, capture itself where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoglm.engine import Engine, GenerationRequest
from autoglm.engine import release as releases
from autoglm.engine.graphs import GraphDecoder, StepBuffers, graphs_for
from autoglm.model.cache import KVCache
from autoglm.model.network import PhoneModel
from autoglm.model.pages import PageTable
from tiny_model import TINY, random_state

Ask = Callable[..., GenerationRequest]


@pytest.fixture
def model() -> PhoneModel:
    model = PhoneModel(TINY).eval().requires_grad_(False)
    model.load_state_dict(random_state(5))
    return model.place(["cpu"])


def uncaptured(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run instead of replay: what a graph does, on any device."""
    return function


def sequences(cache: KVCache) -> tuple[list[PageTable], list[int]]:
    """Return three sequences on pages in no order, the last one about to begin a page."""
    tables = [PageTable(cache.pages_per_slot, pages) for pages in ([3, 0], [5, 9, 1], [7, 2])]
    return tables, [40, 70, 33]


def filled(model: PhoneModel) -> KVCache:
    """Return a cache of random keys and values, and NaN in a page that nobody owns."""
    torch.manual_seed(1)
    cache = model.new_cache(2, 256)
    for held in (*cache.keys, *cache.values):
        held.normal_()
        held[1, :, -32:] = torch.nan
    return cache


def test_a_graph_step_computes_what_the_usual_way_does(model: PhoneModel) -> None:
    """Logits, keys, values and bounds, for rows of several lengths and a batch that is filled up."""
    usual, graphed = filled(model), filled(model)
    tables, lengths = sequences(usual)
    ids, places = [20, 30, 40], [39, 69, 32]
    with torch.inference_mode():
        rows = usual.rows(tables, lengths)
        wanted = model.logits(model.decode(torch.tensor(ids), torch.tensor(places), usual, rows))
        found = GraphDecoder(model, graphed, uncaptured).step(ids, places, tables, lengths)
    assert found.shape == (3, TINY.vocab_size)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for part in ("keys", "values", "bounds"):
        for ours, theirs in zip(getattr(graphed, part), getattr(usual, part), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_lies_behind_a_row_spoils_nothing(model: PhoneModel) -> None:
    """A page taken over from a broken request may hold NaN past the row's end."""
    cache = filled(model)
    cache.values[0][0, :, 3 * 32 + 20 :] = torch.nan
    with torch.inference_mode():
        logits = GraphDecoder(model, cache, uncaptured).step(
            [20], [15], [PageTable(cache.pages_per_slot, [3])], [16]
        )
    assert logits.isfinite().all()


def test_buffers_stay_where_they_are() -> None:
    """A replay reads addresses, so new values are copied into the old places."""
    buffers = StepBuffers(4, 4, torch.device("cpu"))
    held = (buffers.token_ids, buffers.positions, buffers.lengths, buffers.pages)
    before = [tensor.data_ptr() for tensor in held]
    tables = [PageTable(8, [3, 0]), PageTable(8, [5])]
    buffers.fill([7, 8], [40, 3], tables, [41, 4])
    assert [tensor.data_ptr() for tensor in held] == before
    assert buffers.token_ids.tolist() == [7, 8, 7, 7] and buffers.lengths.tolist() == [41, 4, 41, 41]
    assert buffers.pages.tolist() == [[3, 0, 0, 0], [5, 5, 5, 5], [3, 0, 0, 0], [3, 0, 0, 0]]


def test_one_graph_serves_all_steps_of_its_size(model: PhoneModel) -> None:
    """Sizes are powers of two: a growing answer is captured a few times, not at every token."""
    cache, captured = filled(model), list[int]()

    def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captured.append(1)
        return function

    decoder = GraphDecoder(model, cache, capture)
    with torch.inference_mode():
        for length in range(1, 129):
            decoder.step([20], [length - 1], [PageTable(8, range(-(-length // 32)))], [length])
    assert decoder.num_graphs == len(captured) == 3  # of 1, 2 and 4 pages


def test_long_rows_take_the_usual_way(model: PhoneModel) -> None:
    """From the Top-K gate's threshold on a graph would read what the gate spares."""
    decoder = GraphDecoder(model, filled(model), uncaptured)
    assert decoder.fits([4095, 3]) and not decoder.fits([4096, 3])


def test_an_engine_on_graphs_answers_and_swaps_the_same(
    old_dir: Path, new_dir: Path, ask: Ask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each release has graphs of its own: a swap and a rollback change which are used, and nothing else."""
    wanted = [engine.submit(ask(text, max_tokens=40)).result().token_ids for text in ("hello", "x")]
    monkeypatch.setattr(releases, "graphs_for", lambda model, cache: GraphDecoder(model, cache, uncaptured))
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=4) as graphed:
        answers = [graphed.submit(ask(text, max_tokens=40)) for text in ("hello", "x")]
        assert [answer.result().token_ids for answer in answers] == wanted
        staged = graphed.stage(new_dir)
        assert graphed.self_test(staged).ok
        graphed.swap(staged)
        assert graphed.submit(ask("hello", max_tokens=40)).result().token_ids != wanted[0]
        graphed.rollback()
        assert graphed.submit(ask("hello", max_tokens=40)).result().token_ids == wanted[0]


def test_a_cpu_has_no_graphs(model: PhoneModel) -> None:
    """They are for one CUDA device; a CPU and split layers take the usual way."""
    assert graphs_for(model, model.new_cache(1, 32)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_replays_the_step(model: PhoneModel) -> None:
    """On a real card: captured once, replayed with other tokens, near the usual way."""
    placed = model.place(["cuda:0"])
    cache, other = placed.new_cache(2, 256), placed.new_cache(2, 256)
    decoder, tables = GraphDecoder(placed, cache), [PageTable(8, [0])]
    with torch.inference_mode():
        for length, token in enumerate((20, 30, 40), start=1):
            found = decoder.step([token], [length - 1], tables, [length]).clone()
            rows = other.rows(tables, [length])
            ids, places = torch.tensor([token]), torch.tensor([length - 1])
            wanted = placed.logits(placed.decode(ids, places, other, rows))
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert decoder.num_graphs == 1
