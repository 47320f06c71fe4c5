"""The engine as its callers see it: threads, tasks, cancelling, errors, the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from autoglm.engine import Engine, Event, Finished, GenerationRequest, TextDelta
from autoglm.errors import EngineError, OverloadedError, RequestError
from autoglm.model.prompt import Message

Ask = Callable[..., GenerationRequest]


def test_a_thread_iterates_the_events(engine: Engine, ask: Ask) -> None:
    """Deltas come in order and end with exactly one Finished; a second iteration is empty."""
    generation = engine.submit(ask("hello", max_tokens=12))
    events = list(generation)
    assert all(isinstance(event, TextDelta) and event.text for event in events[:-1])
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.release, finished.usage.completion_tokens) == ("length", "v1.2", 12)
    assert 0 < finished.first_token_s <= finished.total_s
    assert finished.tokens_per_s > 0
    assert list(generation) == []


def test_asyncio_tasks_take_the_same_answers(engine: Engine, ask: Ask) -> None:
    """Many tasks of one event loop get what the threads get."""
    prompts = [f"question {i}" for i in range(10)]
    wanted = [engine.submit(ask(prompt, max_tokens=20)).result().token_ids for prompt in prompts]

    async def gather() -> list[tuple[int, ...]]:
        generations = [engine.submit(ask(prompt, max_tokens=20)) for prompt in prompts]
        completions = await asyncio.gather(*(generation.complete() for generation in generations))
        return [completion.token_ids for completion in completions]

    assert asyncio.run(gather()) == wanted


def test_leaving_an_iteration_cancels(engine: Engine, ask: Ask) -> None:
    """A consumer that walks away, in a thread or a task, gives its slot to the next request."""

    async def walk_away() -> None:
        async with aclosing(aiter(engine.submit(ask("hello")))) as events:  # type: ignore[type-var]
            async for _ in events:
                return

    for _ in range(engine.stats().running + 8):
        for _event in engine.submit(ask("hello")):
            break
    asyncio.run(walk_away())
    assert engine.submit(ask("next", max_tokens=3)).result().finished.reason == "length"
    engine.close(grace_s=60)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.finished + stats.cancelled == stats.requests


def test_cancel_is_heard(engine: Engine, ask: Ask, hold_decoding: Callable[..., Any]) -> None:
    """After cancel() the generation ends by itself with the reason, and nothing runs on."""
    gate = hold_decoding(engine.active.model)
    generation = engine.submit(ask("hello"))
    generation.cancel()
    gate.opened.set()
    assert generation.result().finished.reason == "cancelled"
    assert engine.stats().running == 0


def test_a_closed_event_loop_cancels(engine: Engine, ask: Ask, hold_decoding: Callable[..., Any]) -> None:
    """When the loop of the consumer is gone, the request ends instead of running for nobody."""
    gate = hold_decoding(engine.active.model)
    generation = engine.submit(ask("hello"))
    generation.cancel()
    gate.opened.set()
    ended = generation.result()
    gate = hold_decoding(engine.active.model)
    abandoned = engine.submit(ask("hello"))
    events = aiter(abandoned)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(events))
    loop.close()
    gate.opened.set()
    engine.close(grace_s=60)
    assert ended.finished.reason == "cancelled"
    assert abandoned.is_cancelled


def test_a_result_may_be_bounded_in_time(engine: Engine, ask: Ask, hold_decoding: Callable[..., Any]) -> None:
    """A caller that does not want to wait gets an error and the request is cancelled."""
    gate = hold_decoding(engine.active.model)
    generation = engine.submit(ask("hello"))
    with pytest.raises(EngineError, match="longer than the time"):
        generation.result(timeout_s=0.0)
    gate.opened.set()
    assert generation.is_cancelled


def test_a_stop_string_ends_the_answer(engine: Engine, ask: Ask) -> None:
    """The answer stops before the string; the reason is "stop"."""
    full = engine.submit(ask("hello", max_tokens=30)).result().answer
    stop = full[4:6]
    cut = engine.submit(ask("hello", max_tokens=30, stop=(stop,))).result()
    assert cut.answer == full[: full.index(stop)]
    assert cut.finished.reason == "stop"


def test_a_prompt_too_long_is_refused_at_once(engine: Engine, ask: Ask) -> None:
    """The caller of submit hears it, and no hold on the release is left."""
    with pytest.raises(RequestError, match="256"):
        engine.submit(ask("x" * 300))
    with pytest.raises(RequestError, match="unknown role"):
        engine.submit(GenerationRequest([Message("wizard", "hi")]))
    assert engine.stats().requests == 0


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"stop": ("",)}, {"stop": ("x",) * 17}, {"stop": ("x" * 257,)}]
)
def test_wrong_requests_name_their_field(ask: Ask, wrong: dict[str, object]) -> None:
    """A request that cannot be served is not even made."""
    with pytest.raises(RequestError) as caught:
        ask("hi", **wrong)
    assert caught.value.param in wrong
    with pytest.raises(RequestError, match="at least one message"):
        GenerationRequest([])


def test_an_unknown_release_is_refused(engine: Engine, ask: Ask) -> None:
    """A version that is not loaded is a RequestError that lists those that are."""
    assert engine.submit(ask("hi", max_tokens=2, release="v1.2")).release == "v1.2"
    with pytest.raises(RequestError, match=r"'v9' is not loaded; loaded: v1\.2"):
        engine.submit(ask("hi", release="v9"))


def test_a_full_queue_refuses_and_recovers(
    old_dir: Path, ask: Ask, hold_decoding: Callable[..., Any]
) -> None:
    """Past the queue's limit callers hear OverloadedError; when it empties, requests pass again."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=1, queue=2) as engine:
        gate = hold_decoding(engine.active.model)
        running = engine.submit(ask("a", max_tokens=4))
        assert gate.reached.wait(60)
        waiting = [engine.submit(ask("b", max_tokens=4)) for _ in range(2)]
        with pytest.raises(OverloadedError):
            engine.submit(ask("c"))
        assert (engine.stats().running, engine.stats().waiting) == (1, 2)
        gate.opened.set()
        assert all(len(g.result().token_ids) == 4 for g in (running, *waiting))
        assert engine.submit(ask("c", max_tokens=4)).result().finished.reason == "length"


def test_a_model_that_breaks_fails_its_requests_and_the_engine_goes_on(engine: Engine, ask: Ask) -> None:
    """An exception inside the model reaches the callers as EngineError with its cause; then all is well."""
    wanted = engine.submit(ask("hello", max_tokens=10)).result().token_ids
    model = engine.active.model
    decode = model.decode

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    model.decode = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineError, match=r"v1\.2 failed on this request: out of memory") as caught:
        engine.submit(ask("hello", max_tokens=10)).result()
    assert isinstance(caught.value.__cause__, RuntimeError)
    model.decode = decode  # type: ignore[method-assign]
    assert engine.submit(ask("hello", max_tokens=10)).result().token_ids == wanted


def test_a_model_that_turns_nan_fails_its_requests_and_the_engine_goes_on(
    engine: Engine, ask: Ask, poison: Callable[..., None]
) -> None:
    """NaN logits end the request with EngineError; with the weight restored answers are as before."""
    wanted = engine.submit(ask("hello", max_tokens=10)).result().token_ids
    model = engine.active.model
    weight = model.norm.weight
    poison(model)
    with pytest.raises(EngineError, match="not finite"):
        engine.submit(ask("hello", max_tokens=10)).result()
    model.norm.weight = weight
    assert engine.submit(ask("hello", max_tokens=10)).result().token_ids == wanted


def test_listeners_hear_of_each_answer(engine: Engine, ask: Ask, hold_decoding: Callable[..., Any]) -> None:
    """Answers are announced with version and outcome, cancelled ones are not; a bad listener is harmless."""
    heard: SimpleQueue[tuple[str, bool, Finished | None]] = SimpleQueue()

    def bad(version: str, ok: bool, finished: Finished | None) -> None:
        raise ValueError("a listener's own trouble")

    engine.on_answer(bad)
    engine.on_answer(lambda *news: heard.put(news))
    gate = hold_decoding(engine.active.model)
    cancelled = engine.submit(ask("a"))
    cancelled.cancel()
    gate.opened.set()
    cancelled.result()
    done = engine.submit(ask("b", max_tokens=5)).result()
    assert heard.get(timeout=60) == ("v1.2", True, done.finished)

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    engine.active.model.prefill = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineError):
        engine.submit(ask("c")).result()
    assert heard.get(timeout=60) == ("v1.2", False, None)
    assert heard.empty()


def test_layers_over_two_devices_answer_the_same(old_dir: Path, engine: Engine, ask: Ask) -> None:
    """Splitting the layers over devices changes where they run, not what they compute."""
    wanted = engine.submit(ask("hello", max_tokens=30)).result().token_ids
    with Engine.load(old_dir, devices=["cpu", "cpu:0"], threads=1) as split:
        assert [str(device) for device in split.active.model.layer_devices] == ["cpu", "cpu:0"]
        assert split.submit(ask("hello", max_tokens=30)).result().token_ids == wanted


def test_closing_ends_everything(old_dir: Path, ask: Ask) -> None:
    """Running and waiting requests end with an error, later ones are refused, closing twice is harmless."""
    engine = Engine.load(old_dir, devices="cpu", threads=1, max_batch=1)
    generations = [engine.submit(ask("hello")) for _ in range(5)]
    engine.close()
    endings: list[Event | EngineError] = []
    for generation in generations:
        try:
            endings.append(list(generation)[-1])
        except EngineError as error:
            endings.append(error)
    assert isinstance(endings[-1], EngineError)
    with pytest.raises(OverloadedError):
        engine.submit(ask("late"))
    with pytest.raises(EngineError, match="closed"):
        engine.rollback()
    engine.close()


def test_closing_with_grace_lets_requests_finish(old_dir: Path, ask: Ask) -> None:
    """Accepted requests are answered whole before the engine ends."""
    engine = Engine.load(old_dir, devices="cpu", threads=1, max_batch=2)
    generations = [engine.submit(ask("hello", max_tokens=10)) for _ in range(5)]
    engine.close(grace_s=60)
    assert [generation.result().finished.reason for generation in generations] == ["length"] * 5


@pytest.mark.parametrize("wait", ["result().finished", "release"])
def test_a_program_may_end_without_closing_its_engine(old_dir: Path, wait: str) -> None:
    """The process ends with 0, after its last answer as well as in the middle of one."""
    program = (
        "import sys\nfrom autoglm.engine import Engine, GenerationRequest, Sampling\n"
        "from autoglm.model.prompt import Message\n"
        "engine = Engine.load(sys.argv[1])\n"
        "request = GenerationRequest((Message('user', 'hi'),), sampling=Sampling(), max_tokens=64)\n"
        f"engine.submit(request).{wait}\n"
    )
    command = [sys.executable, "-c", program, str(old_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
