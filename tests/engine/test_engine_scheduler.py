"""Steps, slots and the queue, driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoglm.engine import Completion, Finished, GenerationRequest, Sampling
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.errors import EngineError, OverloadedError, RequestError
from autoglm.model.prompt import AudioPart, ImagePart, Message, Part, TextPart

Ask = Callable[..., GenerationRequest]
PROMPTS = ["hello", "what is this", "你好", "打开微信", "a much longer question than the others", "z"]


@pytest.fixture(scope="module")
def resident(old_dir: Path) -> Resident:
    """One loaded release with six slots."""
    with torch.inference_mode():
        return load_resident(old_dir, Placement(max_batch=6))


def ignore(sequence: Sequence, ending: object) -> None:
    """Nothing to settle."""


def generate(
    resident: Resident, requests: list[GenerationRequest], *, max_batch: int = 6, prefill_tokens: int = 512
) -> list[Completion]:
    """Run requests to their end on a fresh scheduler."""
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch, prefill_tokens), ignore)
    with torch.inference_mode():
        sequences = [Sequence(request, resident) for request in requests]
        for sequence in sequences:
            scheduler.waiting.put(sequence)
        while scheduler.has_work:
            scheduler.step()
    return [sequence.generation.result(0.0) for sequence in sequences]


def test_together_equals_alone(resident: Resident, ask: Ask) -> None:
    """Greedy answers of six requests in one batch are token-identical to the same ones alone."""
    requests = [ask(prompt, max_tokens=40) for prompt in PROMPTS]
    together = generate(resident, requests)
    alone = [generate(resident, [request])[0] for request in requests]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together}) == len(PROMPTS)


def test_waiting_for_slots_changes_no_answer(resident: Resident, ask: Ask) -> None:
    """With two slots and one prompt a step, six requests get the same answers as with room for all."""
    requests = [ask(prompt, max_tokens=3 + 7 * i) for i, prompt in enumerate(PROMPTS)]
    tight = generate(resident, requests, max_batch=2, prefill_tokens=1)
    assert [c.token_ids for c in tight] == [c.token_ids for c in generate(resident, requests)]


def test_a_seed_makes_sampling_repeat_in_any_company(resident: Resident, ask: Ask) -> None:
    """A seeded request draws the same tokens alone and among others; unseeded company does not matter."""
    seeded = ask("hello", max_tokens=30, sampling=Sampling(temperature=1.0, seed=42))
    others = [ask(prompt, max_tokens=30, sampling=Sampling(temperature=1.0)) for prompt in PROMPTS[1:4]]
    alone = generate(resident, [seeded])[0]
    assert generate(resident, [*others, seeded])[-1].token_ids == alone.token_ids


def test_pictures_and_sound_run_beside_text(resident: Resident) -> None:
    """Requests with an image, a clip and text answer in one batch as they do alone."""
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    clip = (np.sin(np.arange(8000, dtype=np.float32) / 9), 16_000)
    contents: list[list[Part]] = [
        [ImagePart(picture), TextPart("what is this")],
        [AudioPart(clip), TextPart("what is this")],
        [TextPart("what is this")],
    ]
    requests = [GenerationRequest([Message("user", content)], max_tokens=20) for content in contents]
    alone = [generate(resident, [request])[0].token_ids for request in requests]
    assert [completion.token_ids for completion in generate(resident, requests)] == alone
    assert len(set(alone)) == 3


def test_a_slot_leaves_nothing_behind(resident: Resident, ask: Ask) -> None:
    """A short answer in a slot that held a long one is the same as in a fresh slot."""
    fresh = generate(resident, [ask("z", max_tokens=20)])[0]
    generate(resident, [ask("x" * 200, max_tokens=40)], max_batch=1)
    assert generate(resident, [ask("z", max_tokens=20)], max_batch=1)[0].token_ids == fresh.token_ids


def test_prompts_are_let_in_by_a_token_budget(resident: Resident, ask: Ask) -> None:
    """One step reads at most the budget of prompt tokens, but always one prompt."""
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch=6, prefill_tokens=20), ignore)
    with torch.inference_mode():
        for _ in range(5):
            scheduler.waiting.put(Sequence(ask("hello", max_tokens=40), resident))  # 9 prompt tokens each
        in_batch: list[int] = []
        while scheduler.has_work:
            scheduler.step()
            in_batch.append(len(scheduler.running))
    assert in_batch[:3] == [3, 5, 5]


def test_cancelling_frees_the_slot_in_one_step(resident: Resident, ask: Ask) -> None:
    """The step after a cancellation ends the request and lets the next one in."""
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch=1), ignore)
    with torch.inference_mode():
        first, second = (Sequence(ask(prompt, max_tokens=50), resident) for prompt in ("a", "b"))
        scheduler.waiting.put(first)
        scheduler.waiting.put(second)
        scheduler.step()
        assert scheduler.running == [first]
        first.generation.cancel()
        scheduler.step()
        assert scheduler.running == [second]
        second.generation.cancel()
        scheduler.step()
    finished = list(first.generation)[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.usage.completion_tokens) == ("cancelled", 1)
    assert scheduler.counters.cancelled == 2


def test_a_cancelled_request_leaves_the_queue_without_running(resident: Resident, ask: Ask) -> None:
    """Giving up while waiting costs nothing."""
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch=1), ignore)
    with torch.inference_mode():
        waiting = Sequence(ask("a"), resident)
        scheduler.waiting.put(waiting)
        waiting.generation.cancel()
        scheduler.step()
    assert not scheduler.has_work
    assert waiting.generation.result(0.0).finished.reason == "cancelled"
    assert scheduler.counters.prompt_tokens == 0


def test_a_full_queue_refuses(resident: Resident, ask: Ask) -> None:
    """Past the limit a request is refused at once, with a time to come back."""
    queue = WaitingQueue(1)
    queue.put(Sequence(ask("a"), resident))
    with pytest.raises(OverloadedError) as caught:
        queue.put(Sequence(ask("b"), resident))
    assert caught.value.retry_after_s >= 1
    queue.close()
    with pytest.raises(OverloadedError, match="shutting down"):
        queue.put(Sequence(ask("c"), resident))


def test_a_prompt_over_the_context_is_refused_with_the_limit(resident: Resident, ask: Ask) -> None:
    """The message says how long a prompt may be; how long this one is was not worth finding out."""
    with pytest.raises(RequestError, match="more than the 256 tokens"):
        Sequence(ask("x" * 296), resident)


def test_the_context_bounds_the_answer(resident: Resident, ask: Ask) -> None:
    """A request without max_tokens, or with a huge one, ends where the context is full."""
    for max_tokens in (None, 10_000):
        finished = generate(resident, [ask("x" * 200, max_tokens=max_tokens)])[0].finished
        assert finished.reason == "length"
        assert finished.usage.prompt_tokens + finished.usage.completion_tokens == 256


def test_thinking_is_a_matter_of_the_request(resident: Resident, ask: Ask) -> None:
    """With thinking the turn opens as a thought, without it as an answer."""
    thinking, plain = generate(
        resident, [ask("hello", enable_thinking=flag, max_tokens=10) for flag in (True, False)]
    )
    assert thinking.thought and not thinking.answer
    assert plain.answer and not plain.thought
    assert thinking.finished.usage.thought_tokens == 10


def test_a_thought_does_not_end_the_turn(resident: Resident, ask: Ask) -> None:
    """However much the model would like to stop in its thought, an answer must follow; an answer may end."""
    eos = resident.release.tokenizer.eos
    wishes = Sampling(logit_bias={eos: 100.0})
    requests = [ask("hello", enable_thinking=flag, max_tokens=10, sampling=wishes) for flag in (True, False)]
    thinking, plain = generate(resident, requests)
    assert (thinking.finished.reason, thinking.finished.usage.thought_tokens) == ("length", 10)
    assert (plain.finished.reason, plain.finished.usage.completion_tokens) == ("stop", 1)


def test_logprobs_explain_every_token(resident: Resident, ask: Ask) -> None:
    """Greedy tokens are the first of their own alternatives, and carry that log-probability."""
    completion = generate(
        resident, [ask("hello", max_tokens=12, sampling=Sampling(logprobs=True, top_logprobs=3))]
    )[0]
    assert tuple(entry.token_id for entry in completion.logprobs) == completion.token_ids
    for entry in completion.logprobs:
        assert len(entry.top) == 3
        assert (entry.top[0][0], entry.top[0][2]) == (entry.token_id, entry.logprob)
        assert entry.logprob < 0


def test_a_nan_ends_only_its_own_request(resident: Resident, ask: Ask) -> None:
    """A row that turns NaN fails; its neighbour is unharmed and its slot comes back clean."""
    wanted = generate(resident, [ask("hello", max_tokens=20)])[0]
    scheduler = Scheduler(WaitingQueue(64), Limits(max_batch=2), ignore)
    with torch.inference_mode():
        well, ill = (Sequence(ask("hello", max_tokens=20), resident) for _ in range(2))
        scheduler.waiting.put(well)
        scheduler.waiting.put(ill)
        scheduler.step()
        assert ill.table is not None
        ill.table.write(resident.cache.keys[0], 32, 0, torch.full((2, 32, 8), float("nan")))
        while scheduler.has_work:
            scheduler.step()
    with pytest.raises(EngineError, match=r"v1\.2 computed values that are not finite"):
        ill.generation.result(0.0)
    assert well.generation.result(0.0).token_ids == wanted.token_ids
    assert scheduler.counters.failed == 1
    assert all(bool(torch.isfinite(keys).all()) for keys in resident.cache.keys)
