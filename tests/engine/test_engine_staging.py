"""Staging beside the live model: what is shared, what is refused, and who may commit when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.engine import Engine, Generation, GenerationRequest, Sampling
from autoglm.engine.exclusive import Door
from autoglm.errors import EngineError, HealthError, OverloadedError, RequestError
from engine.conftest import place_of, rewrite_weights
from tiny_model import random_state

Ask = Callable[..., GenerationRequest]
MakeRelease = Callable[..., Path]


def load(directory: Path, **options: Any) -> Engine:
    return Engine.load(directory, devices="cpu", threads=1, max_batch=4, **options)


def swap_in(engine: Engine, directory: Path) -> None:
    staged = engine.stage(directory)
    assert engine.self_test(staged).ok
    engine.swap(staged)


# What is shared


def test_only_changed_weights_take_memory(make_release: MakeRelease) -> None:
    """A release that changes one matrix has that one of its own; all others are the live release's."""
    changed = "blocks.0.ffn.up.weight"
    other = random_state(99)
    name = changed if changed in other else next(key for key in other if key.startswith("blocks.0."))
    old, new = make_release("v1.2", seed=50), make_release("v1.3", seed=50, change={name: other[name]})
    with load(old) as engine:
        live = {key: place_of(weight.value) for key, weight in engine.active.weights.items()}
        staged = engine.stage(new).held().release.weights
        assert {key for key, weight in staged.items() if place_of(weight.value) != live[key]} == {name}


def test_a_shared_weight_outlives_the_release_it_came_from(make_release: MakeRelease, ask: Ask) -> None:
    """When the old release is let go of, the new one answers as it does alone."""
    old, new = make_release("v1.2", seed=51), make_release("v1.3", seed=51, expect="")
    with load(new) as engine:
        alone = engine.submit(ask("hello", max_tokens=20)).result().token_ids
    with load(old) as engine:
        swap_in(engine, new)
        engine.release_previous()
        assert engine.submit(ask("hello", max_tokens=20)).result().token_ids == alone


def test_what_is_stored_decides_and_not_what_is_in_memory(
    make_release: MakeRelease, poison: Callable[..., None]
) -> None:
    """A live weight that was exchanged by hand is not handed on: the hash is of what was loaded."""
    old, new = make_release("v1.2", seed=52), make_release("v1.3", seed=52)
    with load(old) as engine:
        poison(engine.active.model)
        staged = engine.stage(new)
        assert engine.self_test(staged).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["vector", "scale"])
def test_one_value_that_is_not_finite_is_refused(
    make_release: MakeRelease, engine: Engine, ask: Ask, kind: str, value: float
) -> None:
    """In a float vector or in a scale: the release is refused while it is staged; the live one answers."""
    directory = make_release("v1.9", seed=53)
    stored = "norm.weight" if kind == "vector" else "head.weight.scale"
    rewrite_weights(directory, stored, value)
    with pytest.raises(EngineError):
        engine.stage(directory)
    assert engine.submit(ask("hello", max_tokens=3)).result().finished.release == "v1.2"


# Bad releases


@pytest.mark.parametrize("part", ["decode", "prefill", "logits"])
def test_a_release_that_raises_in_its_self_test_fails_it(engine: Engine, new_dir: Path, part: str) -> None:
    """Whatever part of the network breaks, it is a failure in the report and nothing more."""
    staged = engine.stage(new_dir)

    def broken(*arguments: Any, **more: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    setattr(staged.held().release.model, part, broken)
    report = engine.self_test(staged)
    assert not report.ok and "shapes do not match" in report.failures[0]
    with pytest.raises(HealthError):
        engine.swap(staged)


def test_a_release_of_nan_in_its_self_test_fails_it(
    engine: Engine, new_dir: Path, poison: Callable[..., None]
) -> None:
    """Logits that are not finite are a failure, whatever answer is expected."""
    staged = engine.stage(new_dir)
    poison(staged.held().release.model)
    report = engine.self_test(staged)
    assert not report.ok and "not finite" in report.failures[0]


def break_decoding(engine: Engine, position: int, fault: str) -> Callable[[], None]:
    """Let the active release go wrong at one rotary position; return what mends it."""
    model, decode = engine.active.model, engine.active.model.decode

    def faulty(ids: torch.Tensor, positions: torch.Tensor, cache: Any, rows: Any) -> torch.Tensor:
        hidden = decode(ids, positions, cache, rows)
        if fault == "exception" and bool((positions == position).any()):
            raise RuntimeError("index out of range")
        hidden[positions == position] = float("nan")
        return hidden

    model.decode = faulty  # type: ignore[method-assign,assignment]
    return lambda: setattr(model, "decode", decode)


def end_of_prompt(engine: Engine, request: GenerationRequest) -> int:
    prompt = engine.active.processor.prompt(request.messages, enable_thinking=request.enable_thinking)
    return prompt.next_position


@pytest.mark.parametrize("fault", ["nan", "exception"])
def test_a_live_fault_fails_the_request_and_nothing_else(
    engine: Engine, new_dir: Path, ask: Ask, fault: str
) -> None:
    """No token of the bad step is handed out, the listener hears of it, and the next request is right."""
    swap_in(engine, new_dir)
    request = ask("hello", max_tokens=30)
    expected = engine.submit(request).result().token_ids
    heard, told = list[bool](), threading.Event()

    def listen(version: str, ok: bool, finished: object) -> None:
        heard.append(ok)
        told.set()

    engine.on_answer(listen)
    mend = break_decoding(engine, end_of_prompt(engine, request) + 4, fault)
    failing = engine.submit(request)
    tokens: list[int] = []
    with pytest.raises(EngineError):
        for event in failing:
            tokens += getattr(event, "token_ids", ())
    mend()
    assert tuple(tokens) == expected[: len(tokens)] and len(tokens) <= 5
    assert told.wait(60) and heard == [False]
    assert engine.submit(request).result().token_ids == expected


def test_a_bad_row_spoils_no_other_row(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """In a batch of three, one request computes NaN: it fails, the others have their own answers."""
    swap_in(engine, new_dir)
    texts = ("row", "row" + "x" * 40, "row" + "y" * 80)
    requests = [ask(text, max_tokens=30) for text in texts]
    expected = [engine.submit(request).result().token_ids for request in requests]
    break_decoding(engine, end_of_prompt(engine, requests[1]) + 20, "nan")
    failed: list[int] = []
    for number, generation in enumerate([engine.submit(request) for request in requests]):
        try:
            assert generation.result().token_ids == expected[number]
        except EngineError as error:
            assert "not finite" in str(error)
            failed.append(number)
    assert failed == [1]


# Who may commit when


def test_of_many_swaps_of_one_release_one_happens(engine: Engine, new_dir: Path) -> None:
    """The others are told that it is no longer staged; the release before is kept for rollback."""
    staged = engine.stage(new_dir)
    assert engine.self_test(staged).ok
    outcomes: list[str] = []

    def swap() -> None:
        try:
            engine.swap(staged)
            outcomes.append("swapped")
        except EngineError as error:
            assert "no longer staged" in str(error)
            outcomes.append("refused")

    threads = [threading.Thread(target=swap) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["refused"] * 7 + ["swapped"]
    assert (engine.active_version, engine.previous_version) == ("v1.3", "v1.2")


def test_a_swap_to_the_same_release(engine: Engine, old_dir: Path, ask: Ask) -> None:
    """Takes no memory for weights, changes no answer, and can be rolled back."""
    before = engine.submit(ask("hello", max_tokens=20)).result().token_ids
    fingerprint = engine.active.fingerprint
    swap_in(engine, old_dir)
    assert engine.submit(ask("hello", max_tokens=20)).result().token_ids == before
    assert engine.active.fingerprint == fingerprint
    engine.rollback()
    assert engine.submit(ask("hello", max_tokens=20)).result().token_ids == before


def test_staged_twice_the_last_one_swaps_in(engine: Engine, new_dir: Path) -> None:
    """Two handles of one release are two; the one that is discarded cannot be used."""
    first, second = engine.stage(new_dir), engine.stage(new_dir)
    engine.discard(first)
    assert engine.self_test(second).ok
    engine.swap(second)
    with pytest.raises(EngineError, match="no longer staged"):
        engine.swap(first)
    assert engine.loaded_versions == ("v1.3", "v1.2")


def test_a_swap_and_a_rollback_while_the_queue_is_full(
    old_dir: Path, new_dir: Path, ask: Ask, hold_decoding: Callable[..., Any]
) -> None:
    """What runs and what waits belongs to the release it asked; what comes too much is refused as ever."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=2, queue=4) as engine:
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        gate = hold_decoding(engine.active.model)
        first = engine.submit(ask("first", max_tokens=10))
        assert gate.reached.wait(60)
        waiting = [engine.submit(ask(f"waiting {number}", max_tokens=10)) for number in range(4)]
        with pytest.raises(OverloadedError):
            engine.submit(ask("too many"))
        swapping = threading.Thread(target=engine.swap, args=(staged,))
        swapping.start()
        gate.opened.set()
        swapping.join(60)
        assert [g.result().finished.release for g in (first, *waiting)] == ["v1.2"] * 5
        after = [engine.submit(ask(f"after {number}", max_tokens=10)) for number in range(4)]
        engine.rollback()
        assert [generation.result().finished.release for generation in after] == ["v1.3"] * 4
        assert engine.stats().failed == 0
        assert engine.loaded_versions == ("v1.2",)


def test_a_swap_during_shutdown_is_refused_as_not_now(old_dir: Path, new_dir: Path) -> None:
    """It is no fault of the release."""
    engine = load(old_dir)
    staged = engine.stage(new_dir)
    assert engine.self_test(staged).ok
    engine.close()
    with pytest.raises(OverloadedError):
        engine.swap(staged)
    with pytest.raises(OverloadedError):
        engine.rollback()
    assert engine.active_version == "v1.2"


def test_rollback_is_bit_exact_in_logprobs(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """Greedy and sampled answers have the same log-probabilities, to the last bit, as before the swap."""
    wanted = [
        ask("hello", max_tokens=20, sampling=Sampling(logprobs=True, top_logprobs=3)),
        ask("hello", max_tokens=20, sampling=Sampling(temperature=0.9, seed=3, logprobs=True)),
    ]
    before = [engine.submit(request).result() for request in wanted]
    swap_in(engine, new_dir)
    between = [engine.submit(request).result() for request in wanted]
    pinned = [
        engine.submit(ask("hello", max_tokens=20, release="v1.2", sampling=request.sampling)).result()
        for request in wanted
    ]
    engine.rollback()
    after = [engine.submit(request).result() for request in wanted]
    for same in (pinned, after):
        assert [(c.token_ids, c.logprobs) for c in same] == [(c.token_ids, c.logprobs) for c in before]
    assert [c.token_ids for c in between] != [c.token_ids for c in before]


def test_two_releases_share_no_pages(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """The same prompt asked of the other release finds nothing in a cache, and its keys differ."""
    text = "a long prompt " * 10
    engine.submit(ask(text, max_tokens=4)).result()
    assert engine.submit(ask(text, max_tokens=4)).result().finished.usage.cached_tokens > 0
    old = engine._versions.active
    swap_in(engine, new_dir)
    assert engine.submit(ask(text, max_tokens=4)).result().finished.usage.cached_tokens == 0
    assert old.key_seed != engine._versions.active.key_seed


# Draining


def test_draining_commits_when_nothing_is_under_way(
    old_dir: Path, new_dir: Path, ask: Ask, hold_decoding: Callable[..., Any]
) -> None:
    """Requests under way end on the old release; those that came meanwhile waited and get the new one."""
    with load(old_dir, in_flight="drain") as engine:
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        gate = hold_decoding(engine.active.model)
        first = engine.submit(ask("first", max_tokens=10))
        assert gate.reached.wait(60)
        reports: list[Any] = []
        swapping = threading.Thread(target=lambda: reports.append(engine.swap(staged)))
        swapping.start()
        while (turn := engine.turn()) is None:
            pass
        later: list[Any] = []
        asking = threading.Thread(
            target=lambda: later.append(engine.submit(ask("later", max_tokens=10)).result())
        )
        asking.start()
        assert not turn.done()
        gate.opened.set()
        swapping.join(60)
        asking.join(60)
        assert turn.done()
        assert first.result().finished.release == "v1.2"
        assert later[0].finished.release == "v1.3"
        assert reports[0].in_flight == 0 and reports[0].drained_s > 0


def test_draining_has_a_limit(
    old_dir: Path, new_dir: Path, ask: Ask, hold_decoding: Callable[..., Any]
) -> None:
    """A request that outlasts it finishes beside, on its own release; nothing is lost."""
    with load(old_dir, in_flight="drain", drain_s=0.05) as engine:
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        ended = threading.Event()
        decode = engine.active.model.decode

        def slow(*arguments: Any) -> torch.Tensor:
            ended.wait(0.5)
            return decode(*arguments)

        engine.active.model.decode = slow  # type: ignore[method-assign,assignment]
        first = engine.submit(ask("first", max_tokens=30))
        report = engine.swap(staged)
        assert report.in_flight == 1
        ended.set()
        assert first.result().finished.release == "v1.2"
        assert engine.submit(ask("next", max_tokens=3)).result().finished.release == "v1.3"


def test_a_shut_door_counts_all_who_wait() -> None:
    """Those that hold a thread and those that hold a turn together; who gives up makes room."""
    door = Door(2)
    assert door.turn() is None
    door.shut()
    first, second = door.turn(), door.turn()
    assert isinstance(first, Future) and isinstance(second, Future)
    with pytest.raises(OverloadedError):
        door.turn()
    first.cancel()
    third = door.turn()
    assert door.num_waiting == 2
    door.open()
    assert second.done() and isinstance(third, Future) and third.done()
    assert (door.num_waiting, door.turn()) == (0, None)
    door.close()
    with pytest.raises(OverloadedError, match="shutting down"):
        door.turn()


def test_a_version_that_is_gone_cannot_be_named(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """While it is kept it answers beside the new one; afterwards the refusal names what is loaded."""
    swap_in(engine, new_dir)
    both = [engine.submit(ask("hello", max_tokens=30, release=name)) for name in ("v1.2", "v1.3") * 2]
    assert [g.result().finished.release for g in both] == ["v1.2", "v1.3"] * 2
    engine.release_previous()
    with pytest.raises(RequestError, match=r"'v1.2' is not loaded; loaded: v1.3"):
        engine.submit(ask("hello", release="v1.2"))


# A live step that hangs


def hang(engine: Engine, rows: int = 1) -> tuple[threading.Event, threading.Event]:
    """Let the active release's next decode step of ``rows`` sequences wait.

    Returns what is set when it does, and what ends it.
    """
    model, decode = engine.active.model, engine.active.model.decode
    reached, released = threading.Event(), threading.Event()

    def hanging(*arguments: Any) -> torch.Tensor:
        if not reached.is_set() and len(arguments[0]) >= rows:
            reached.set()
            assert released.wait(60)
        return decode(*arguments)

    model.decode = hanging  # type: ignore[method-assign,assignment]
    return reached, released


def submit_together(engine: Engine, requests: list[GenerationRequest]) -> list[Generation]:
    """Submit requests while the engine does nothing, so that it finds all of them at once."""
    paused, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        paused.set()
        assert go_on.wait(60)

    thread = threading.Thread(target=lambda: engine._worker.call(pause))
    thread.start()
    assert paused.wait(60)
    generations = [engine.submit(request) for request in requests]
    go_on.set()
    thread.join()
    return generations


def test_a_hanging_step_is_given_up_and_the_engine_goes_on(old_dir: Path, new_dir: Path, ask: Ask) -> None:
    """Its requests fail with a typed error; those that wait are answered, on an empty cache.

    A listener rolls back, as a trial does; the step that returns at last changes nothing.
    """
    with load(old_dir, step_s=4.0) as engine:
        expected = engine.submit(ask("later", max_tokens=20)).result().token_ids
        swap_in(engine, new_dir)
        heard: list[tuple[str, bool]] = []
        rolled_back = threading.Event()

        def judge(version: str, ok: bool, finished: object) -> None:
            heard.append((version, ok))
            if not ok and not rolled_back.is_set():
                engine.rollback()
                rolled_back.set()

        engine.on_answer(judge)
        reached, released = hang(engine, rows=4)
        failing = submit_together(engine, [ask(f"hello {number}", max_tokens=20) for number in range(6)])
        assert reached.wait(60)
        for generation in failing[:4]:
            with pytest.raises(EngineError, match="given up"):
                generation.result()
        assert [generation.result().finished.release for generation in failing[4:]] == ["v1.3"] * 2
        assert rolled_back.wait(60)
        assert ("v1.3", False) in heard
        assert engine.submit(ask("later", max_tokens=20)).result().token_ids == expected
        released.set()
        answers = [engine.submit(ask("later", max_tokens=20)).result().token_ids for _ in range(3)]
        assert answers == [expected] * 3
        stats = engine.stats()
        assert (engine.active_version, stats.failed, stats.retiring) == ("v1.2", 4, 0)
        assert stats.free_pages == stats.pages


def test_a_release_with_no_other_to_go_back_to_goes_on_after_a_hanging_step(old_dir: Path, ask: Ask) -> None:
    """With an empty cache and the same weights."""
    with load(old_dir, step_s=4.0) as engine:
        expected = engine.submit(ask("hello", max_tokens=20)).result().token_ids
        _, released = hang(engine)
        with pytest.raises(EngineError, match="given up"):
            engine.submit(ask("hello", max_tokens=20)).result()
        assert engine.submit(ask("hello", max_tokens=20)).result().token_ids == expected
        released.set()


def test_an_engine_whose_step_hangs_closes(old_dir: Path, ask: Ask) -> None:
    """Closing does not wait for the step for ever; the request ends with an error."""
    engine = load(old_dir, step_s=4.0)
    reached, released = hang(engine)
    generation = engine.submit(ask("hello", max_tokens=20))
    assert reached.wait(60)
    engine.close()
    with pytest.raises(EngineError):
        generation.result()
    released.set()


def test_staging_and_discarding_beside_running_requests(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """Whatever is staged, examined and dropped meanwhile, the answers are those of the live release alone."""
    requests = [ask(f"question {number}", max_tokens=40) for number in range(8)]
    expected = [engine.submit(request).result().token_ids for request in requests]
    running = [engine.submit(request) for request in requests]
    for _ in range(3):
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        engine.discard(staged)
    assert [generation.result().token_ids for generation in running] == expected
    assert engine.loaded_versions == ("v1.2",)
