"""Pages, prefixes that are found again, and prompts that are read piece by piece."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoglm.engine import Completion, Finished, GenerationRequest, Sampling
from autoglm.engine.encodings import Encodings
from autoglm.engine.pages import PagePool
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.errors import EngineError
from autoglm.model.pages import PageTable
from autoglm.model.prompt import AudioPart, ImagePart, Message, Part, TextPart

Ask = Callable[..., GenerationRequest]
CLIP = (np.sin(np.arange(8000, dtype=np.float32) / 9), 16_000)


def ignore(sequence: Sequence, ending: object) -> None:
    """Nothing to settle."""


@pytest.fixture
def make_resident(old_dir: Path) -> Callable[..., Resident]:
    """Load v1.2 with an empty cache: ``make_resident(cache_tokens=256)``."""

    def make(**placement: int) -> Resident:
        with torch.inference_mode():
            return load_resident(old_dir, Placement(**placement))  # type: ignore[arg-type]

    return make


def screenshot(seed: int) -> Image.Image:
    """Return a picture that differs from seed to seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def dialogue(num_steps: int) -> GenerationRequest:
    """Return the last step of a phone agent's dialogue: a screenshot a step, the first one sent again."""
    messages = [Message("system", "You tap where you are told to.")]
    for step in range(num_steps):
        seen: list[Part] = [ImagePart(screenshot(step % 2)), TextPart(f"step {step}")]
        messages += [Message("user", seen), Message("assistant", "ok")]
    return GenerationRequest(messages[:-1], max_tokens=12)


def run(
    resident: Resident, requests: list[GenerationRequest], *, prefill_tokens: int = 128, max_batch: int = 6
) -> tuple[list[Completion], Scheduler]:
    """Run requests to their end on a fresh scheduler."""
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch, prefill_tokens), ignore)
    with torch.inference_mode():
        sequences = [Sequence(request, resident) for request in requests]
        for sequence in sequences:
            scheduler.waiting.put(sequence)
        while scheduler.has_work:
            scheduler.step()
    return [sequence.generation.result(0.0) for sequence in sequences], scheduler


def held(resident: Resident, table: PageTable, num_tokens: int) -> list[torch.Tensor]:
    """Return the keys and values of every layer of a sequence's first tokens."""
    page, cache = resident.cache.page, resident.cache
    return [table.read(layer, page, 0, num_tokens).clone() for layer in (*cache.keys, *cache.values)]


def read(resident: Resident, request: GenerationRequest, prefill_tokens: int) -> list[torch.Tensor]:
    """Read a prompt in pieces; return what the cache then holds of it, and the logits after it."""
    scheduler = Scheduler(WaitingQueue(1), Limits(1, prefill_tokens), ignore)
    with torch.inference_mode():
        sequence = Sequence(request, resident)
        scheduler.waiting.put(sequence)
        logits: list[torch.Tensor] = []
        head = resident.release.model.logits
        resident.release.model.logits = lambda hidden: logits.append(head(hidden)) or logits[-1]  # type: ignore
        while not sequence.token_ids:
            scheduler.step()
        resident.release.model.logits = head  # type: ignore[method-assign]
        assert sequence.table is not None
        found = [*held(resident, sequence.table, sequence.num_prompt_tokens), logits[0]]
        sequence.generation.cancel()
        scheduler.step()
    return found


@pytest.mark.parametrize("prefill_tokens", [1, 32, 64, 100])
def test_pieces_give_what_one_piece_gives_to_the_last_bit(
    make_resident: Callable[..., Resident], prefill_tokens: int
) -> None:
    """Keys, values and logits of a prompt with media do not depend on how it was cut."""
    parts: list[Part] = [TextPart("a" * 50), ImagePart(screenshot(1)), TextPart("b" * 70), AudioPart(CLIP)]
    request = GenerationRequest([Message("user", parts)], max_tokens=4)
    whole = read(make_resident(), request, 1000)
    assert all(map(torch.equal, whole, read(make_resident(), request, prefill_tokens)))


def test_a_long_prompt_lets_others_go_on(make_resident: Callable[..., Resident], ask: Ask) -> None:
    """While a long prompt is read, a running request gets a token in every step."""
    resident, scheduler = make_resident(), Scheduler(WaitingQueue(8), Limits(2, 32), ignore)
    with torch.inference_mode():
        short, long = (Sequence(ask(text, max_tokens=20), resident) for text in ("hi", "x" * 220))
        scheduler.waiting.put(short)
        scheduler.step()
        scheduler.waiting.put(long)
        counts: list[tuple[int, int]] = []
        while not long.token_ids:
            scheduler.step()
            counts.append((len(short.token_ids), long.num_cached))
    assert counts == [(2, 32), (3, 64), (4, 96), (5, 128), (6, 160), (7, 192), (8, long.num_prompt_tokens)]


def test_where_nobody_waits_for_a_token_a_prompt_is_read_in_larger_pieces(
    make_resident: Callable[..., Resident], ask: Ask
) -> None:
    """The smaller bound holds only beside answers that are being written."""
    resident, scheduler = make_resident(), Scheduler(WaitingQueue(8), Limits(2, 32, idle_tokens=128), ignore)
    with torch.inference_mode():
        first, second = (Sequence(ask("x" * 220, max_tokens=20), resident) for _ in range(2))
        scheduler.waiting.put(first)
        scheduler.step()
        assert first.num_cached == 128
        scheduler.step()
        assert first.token_ids
        resident.pages.forget_all()
        scheduler.waiting.put(second)
        scheduler.step()
        assert second.num_cached == 32


def test_no_piece_cuts_an_image_or_a_clip(make_resident: Callable[..., Resident]) -> None:
    """Wherever a span lies, a piece ends at whole pages, and before or after the span."""
    resident = make_resident()
    for lead in range(0, 60, 7):
        parts: list[Part] = [
            TextPart("a" * lead),
            AudioPart(CLIP),
            ImagePart(screenshot(1)),
            TextPart("b" * 40),
        ]
        with torch.inference_mode():
            sequence = Sequence(GenerationRequest([Message("user", parts)]), resident)
        spans = sequence.prompt.spans
        sequence.enter(resident.pages.open([]))
        while sequence.num_cached < sequence.num_tokens:
            start, stop = sequence.next_piece(32)
            assert start == sequence.num_cached < stop
            assert stop == sequence.num_tokens or stop % 32 == 0
            assert stop == sequence.num_tokens or not spans[stop] or spans[stop] != spans[stop - 1]
            sequence.num_cached = stop
        sequence.leave()


@pytest.mark.parametrize("prefill_tokens", [32, 64, 128])
def test_spans_that_share_pages_are_read_to_the_end(
    make_resident: Callable[..., Resident], prefill_tokens: int
) -> None:
    """Images and clips so close that a page holds the ends of two leave a piece no room, and still end."""
    resident = make_resident()
    for lead in range(0, 32, 3):
        parts: list[Part] = [TextPart("a" * lead), ImagePart(screenshot(1)), AudioPart(CLIP), AudioPart(CLIP)]
        parts += [ImagePart(screenshot(2)), AudioPart(CLIP), TextPart("b" * 30)]
        with torch.inference_mode():
            sequence = Sequence(GenerationRequest([Message("user", parts)]), resident)
        sequence.enter(resident.pages.open([]))
        spans = sequence.prompt.spans
        while sequence.num_cached < sequence.num_tokens:
            start, stop = sequence.next_piece(prefill_tokens)
            assert start < stop
            assert stop == sequence.num_tokens or not spans[stop] or spans[stop] != spans[stop - 1]
            sequence.num_cached = stop
        sequence.leave()


def test_an_agents_next_step_reads_only_what_is_new(make_resident: Callable[..., Resident]) -> None:
    """Each step of a dialogue finds the steps before it in the cache, its screenshots included."""
    resident = make_resident()
    for num_steps in (1, 2, 3, 4):
        completions, scheduler = run(resident, [dialogue(num_steps)])
        usage = completions[0].finished.usage
        assert usage.cached_tokens == scheduler.counters.reused_tokens
        assert usage.prompt_tokens - usage.cached_tokens == scheduler.counters.computed_tokens
        if num_steps > 1:
            assert usage.prompt_tokens - usage.cached_tokens < 96
    assert resident.encodings.misses == 2  # two screenshots, sent over and over
    assert resident.encodings.hits >= 1


def test_answers_are_the_same_with_and_without_reuse(
    make_resident: Callable[..., Resident], ask: Ask
) -> None:
    """What is found in the cache are the very bits that a fresh computation gives, and so is the answer."""
    warm = make_resident()
    requests = [dialogue(steps) for steps in (1, 2, 3)] + [ask("x" * 90, max_tokens=12)] * 2
    for request in [*requests, *requests]:
        [reused], _ = run(warm, [request])
        [fresh], _ = run(make_resident(), [request])
        assert reused.token_ids == fresh.token_ids
    assert all(map(torch.equal, read(warm, dialogue(3), 128), read(make_resident(), dialogue(3), 128)))


def test_another_image_of_the_same_shape_is_not_taken_for_the_first(
    make_resident: Callable[..., Resident],
) -> None:
    """Media are part of a page's identity by their content, not by their place."""
    resident = make_resident()
    requests = [
        GenerationRequest([Message("user", [ImagePart(screenshot(seed)), TextPart("b" * 80)])], max_tokens=8)
        for seed in (1, 2)
    ]
    answers = [run(resident, [request])[0][0] for request in requests]
    assert answers[1].finished.usage.cached_tokens == 0
    assert answers[0].token_ids != answers[1].token_ids


def test_choices_share_the_pages_of_their_prompt(make_resident: Callable[..., Resident], ask: Ask) -> None:
    """Requests with one prompt hold its full pages once, and answer as they do alone."""
    resident = make_resident()
    requests = [
        ask("x" * 130, max_tokens=20, sampling=Sampling(temperature=1.0, seed=seed)) for seed in range(4)
    ]
    scheduler = Scheduler(WaitingQueue(8), Limits(4, 256), ignore)
    with torch.inference_mode():
        sequences = [Sequence(request, resident) for request in requests]
        for sequence in sequences:
            scheduler.waiting.put(sequence)
        while not all(sequence.token_ids for sequence in sequences):
            scheduler.step()
        assert len({tuple(s.table.pages[:4]) for s in sequences if s.table}) == 1
        while scheduler.has_work:
            scheduler.step()
    alone = [run(make_resident(), [request])[0][0].token_ids for request in requests]
    assert [s.generation.result(0.0).token_ids for s in sequences] == alone
    assert resident.pages.num_free == resident.pages.num_pages


def test_when_pages_are_used_up_the_newest_waits_and_nobody_fails(
    make_resident: Callable[..., Resident], ask: Ask
) -> None:
    """With pages for one context, six requests take turns and give the answers of a roomy cache."""
    prompts = [f"{i}" * 40 for i in range(6)]
    requests = [ask(prompt, max_tokens=60) for prompt in prompts]
    tight, scheduler = run(make_resident(cache_tokens=256), requests)
    roomy, _ = run(make_resident(), requests)
    assert [c.token_ids for c in tight] == [c.token_ids for c in roomy]
    assert scheduler.counters.preempted > 0
    assert all(c.finished.reason == "length" for c in tight)


def test_a_sampled_answer_survives_being_put_back(make_resident: Callable[..., Resident], ask: Ask) -> None:
    """A seeded request that lost its pages goes on with the chance it had."""
    requests = [ask(f"{i}" * 40, max_tokens=60, sampling=Sampling(temperature=0.9, seed=i)) for i in range(6)]
    tight, scheduler = run(make_resident(cache_tokens=256), requests)
    assert [c.token_ids for c in tight] == [c.token_ids for c in run(make_resident(), requests)[0]]
    assert scheduler.counters.preempted > 0


def test_cancelling_in_the_middle_of_a_prompt_frees_everything_in_one_step(
    make_resident: Callable[..., Resident], ask: Ask
) -> None:
    """A request given up while its prompt is read holds no page after the next step."""
    resident, scheduler = make_resident(), Scheduler(WaitingQueue(8), Limits(2, 32), ignore)
    with torch.inference_mode():
        sequence = Sequence(ask("x" * 200), resident)
        scheduler.waiting.put(sequence)
        scheduler.step()
        assert 0 < sequence.num_cached < sequence.num_prompt_tokens
        sequence.generation.cancel()
        scheduler.step()
    assert not scheduler.has_work
    assert resident.pages.num_free == resident.pages.num_pages
    finished = list(sequence.generation)[-1]
    assert isinstance(finished, Finished) and finished.reason == "cancelled"


def test_a_request_that_failed_leaves_nothing_to_be_found(
    make_resident: Callable[..., Resident], ask: Ask, poison: Callable[..., None]
) -> None:
    """Pages that may hold NaN are wiped and never reused; later requests answer well."""
    resident, request = make_resident(), ask("x" * 100, max_tokens=8)
    [wanted], _ = run(make_resident(), [request])
    model = resident.release.model
    weight = model.layers[0].attention_norm.weight
    model.layers[0].attention_norm.weight = torch.nn.Parameter(torch.full_like(weight, float("nan")), False)
    with pytest.raises(EngineError, match="not finite"):
        run(resident, [request])
    model.layers[0].attention_norm.weight = weight
    assert resident.pages.num_kept == 0
    assert all(bool(keys.isfinite().all()) for keys in resident.cache.keys)
    [again], _ = run(resident, [request])
    assert again.token_ids == wanted.token_ids


def test_cancelled_requests_leave_nothing_behind(make_resident: Callable[..., Resident], ask: Ask) -> None:
    """After many requests were given up at every stage, all pages are free and the books agree."""
    resident, scheduler = make_resident(max_batch=3), Scheduler(WaitingQueue(64), Limits(3, 32), ignore)
    chance = random.Random(1)
    with torch.inference_mode():
        for number in range(300):
            sequence = Sequence(ask(f"{number % 7}" * chance.randrange(1, 120)), resident)
            scheduler.waiting.put(sequence)
            for _ in range(chance.randrange(3)):
                scheduler.step()
            sequence.generation.cancel()
        scheduler.step()
    assert not scheduler.has_work
    assert scheduler.counters.cancelled == 300
    assert resident.pages.num_free == resident.pages.num_pages


class Ledger:
    """A pool whose pages hold one letter each, to see that moving and evicting keep them right."""

    def __init__(self, num_slots: int, pages_per_slot: int) -> None:
        self.text: list[bytes | None] = [None] * (num_slots * pages_per_slot)
        self.pool = PagePool(num_slots, pages_per_slot, self.move, lambda page: None)

    def move(self, source: int, target: int) -> None:
        """Copy one page."""
        self.text[target] = self.text[source]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_opened_grown_and_closed_each_reader_sees_its_own_pages(seed: int) -> None:
    """Over thousands of random steps pages are shared, moved and evicted, and none is ever mixed up."""
    chance, ledger = random.Random(seed), Ledger(3, 6)
    pool, running = ledger.pool, list[tuple[PageTable, list[bytes]]]()
    texts = [[bytes([kind, i]) for i in range(6)] for kind in range(5)]
    for text in texts[2:]:
        text[:3] = texts[0][:3]
    for _ in range(3000):
        if running and chance.random() < 0.4:
            table, _ = running.pop(chance.randrange(len(running)))
            pool.close(table)
        wanted = chance.choice(texts)
        keys = wanted[: pool.find(wanted[:5])]
        if len(running) < 4 and pool.has_room(keys, len(keys) + 1):
            running.append((pool.open(keys), wanted))
        for table, text in running:
            if len(table) < len(text) and chance.random() < 0.5 and pool.grow(table):
                ledger.text[table.pages[-1]] = text[len(table) - 1]
                pool.publish(table.pages[-1], text[len(table) - 1])
        for table, text in running:
            assert [ledger.text[page] for page in table.pages] == text[: len(table)]
            assert len(set(table.pages)) == len(table)
    for table, _ in running:
        pool.close(table)
    assert pool.num_free == pool.num_pages


def test_a_sequence_gets_one_run_by_moving_what_nobody_reads() -> None:
    """Pages that are only kept make way for a running sequence, and are found in their new place."""
    ledger = Ledger(2, 4)
    pool = ledger.pool
    first = pool.open([])
    for letter in (b"a", b"b", b"c"):
        assert pool.grow(first)
        ledger.text[first.pages[-1]] = letter
        pool.publish(first.pages[-1], letter)
    pool.close(first)
    second = pool.open([])
    assert all(pool.grow(second) for _ in range(4))
    assert second.runs == [(0, 4)]
    third = pool.open([b"a", b"b", b"c"])
    assert [ledger.text[page] for page in third.pages] == [b"a", b"b", b"c"]
    assert third.runs == [(4, 3)]


def test_the_least_recently_used_beginning_goes_first() -> None:
    """When room is needed, of two kept conversations the one that was not used again is evicted."""
    pool = PagePool(1, 4)
    for name in (b"old", b"new"):
        table = pool.open([])
        assert pool.grow(table)
        pool.publish(table.pages[0], name)
        pool.close(table)
    pool.close(pool.open([b"old"]))
    table = pool.open([])
    assert all(pool.grow(table) for _ in range(3))
    assert (pool.find([b"old"]), pool.find([b"new"])) == (1, 0)


def test_a_pool_can_forget_everything_that_nobody_reads() -> None:
    """Nothing is found any more, all pages but those in use are free, and running sequences go on."""
    pool = PagePool(1, 4)
    tables = [pool.open([]), pool.open([])]
    for table, key in zip(tables, (b"a", b"b"), strict=True):
        assert pool.grow(table)
        pool.publish(table.pages[0], key)
    pool.close(tables[0])
    pool.forget_all()
    assert (pool.num_kept, pool.num_free, pool.find([b"a"]), pool.find([b"b"])) == (0, 3, 0, 0)
    assert pool.grow(tables[1])
    pool.close(tables[1])
    assert pool.num_free == 4


def test_encodings_are_bounded_in_bytes_and_keep_no_broken_ones() -> None:
    """The oldest embedding goes when the bytes are used up; one that is not finite is not kept."""
    kept = Encodings(max_bytes=2 * 400)
    tokens = torch.ones(100)
    for digest in (b"a", b"b", b"a", b"c"):
        kept.get(digest, lambda: tokens)
    assert (kept.hits, kept.misses, kept.num_bytes) == (1, 3, 800)
    kept.get(b"b", lambda: tokens)  # went when c came
    kept.get(b"n", lambda: torch.full((100,), float("nan")))
    kept.get(b"n", lambda: tokens)
    assert (kept.hits, kept.misses) == (1, 6)
