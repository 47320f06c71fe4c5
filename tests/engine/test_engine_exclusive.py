"""Changing releases where memory holds only one: the old one leaves first, and requests wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoglm.engine import Engine, GenerationRequest
from autoglm.engine import devices as devices_module
from autoglm.engine import engine as engine_module
from autoglm.errors import EngineError, IntegrityError, OverloadedError

Ask = Callable[..., GenerationRequest]
PROMPTS = [f"question {i}" for i in range(6)]


class Callers:
    """Threads that each ask one question; what they got, in their order."""

    def __init__(self, engine: Engine, ask: Ask) -> None:
        self._engine, self._ask = engine, ask
        self.got: list[Any] = [None] * len(PROMPTS)
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(len(PROMPTS))]

    def _call(self, number: int) -> None:
        try:
            generation = self._engine.submit(self._ask(PROMPTS[number], max_tokens=16))
            self.got[number] = (generation.release, generation.result(60).token_ids)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.got[number] = error

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def wait_at_the_door(self) -> None:
        """Return when all of them wait."""
        door = self._engine._door
        with door._changed:
            assert door._changed.wait_for(lambda: door.num_waiting == len(PROMPTS), 60)

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def reference(old_dir: Path, new_dir: Path, ask: Ask) -> dict[str, list[Any]]:
    """What each release answers when it is alone."""
    found: dict[str, list[Any]] = {}
    for directory in (old_dir, new_dir):
        with Engine.load(directory, devices="cpu", threads=1) as engine:
            asked = [engine.submit(ask(prompt, max_tokens=16)) for prompt in PROMPTS]
            found[engine.active_version] = [(g.release, g.result(60).token_ids) for g in asked]
    return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let those at the door tell when they begin to wait."""
    from autoglm.engine.exclusive import Door

    wait = Door._wait

    def told(self: Door) -> None:
        condition = self._changed
        real = condition.wait_for

        def wait_for(predicate: Any, timeout: float | None = None) -> Any:
            condition.notify_all()
            return real(predicate, timeout)

        condition.wait_for = wait_for  # type: ignore[method-assign]
        wait(self)

    monkeypatch.setattr(Door, "_wait", told)
    yield


def test_requests_wait_for_the_new_release_and_none_is_lost(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, reference: dict[str, list[Any]], watched: None
) -> None:
    """Those under way end on the old release; those that come in the gap are answered by the new one."""
    before = [engine.submit(ask(prompt, max_tokens=16)) for prompt in PROMPTS]
    staged = engine.stage(new_dir, instead_of=old_dir)
    assert [(g.release, g.result(0).token_ids) for g in before] == reference["v1.2"]
    with Callers(engine, ask) as callers:
        callers.wait_at_the_door()
        assert engine.self_test(staged).ok
        assert engine.active_version == "v1.2"
        report = engine.swap(staged)
    assert callers.got == reference["v1.3"]
    assert (report.from_version, report.to_version) == ("v1.2", "v1.3")
    assert report.pause_s > 0
    assert (engine.previous_version, engine.loaded_versions) == (None, ("v1.3",))
    with pytest.raises(EngineError, match="no previous release"):
        engine.rollback()


def test_the_old_release_comes_back_when_the_new_one_is_no_good(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, reference: dict[str, list[Any]], watched: None
) -> None:
    """Discarded after its self-test: the same answers as before, to those who waited too."""
    staged = engine.stage(new_dir, instead_of=old_dir)
    with Callers(engine, ask) as callers:
        callers.wait_at_the_door()
        engine.discard(staged)
        engine.discard(staged)
    assert callers.got == reference["v1.2"]
    assert engine.loaded_versions == ("v1.2",)


def test_a_release_that_does_not_load_leaves_the_old_one(
    engine: Engine, old_dir: Path, nan_dir: Path, ask: Ask, reference: dict[str, list[Any]]
) -> None:
    """The error is the new release's; the engine serves on."""
    with pytest.raises(EngineError, match="finite"):
        engine.stage(nan_dir, instead_of=old_dir)
    asked = [engine.submit(ask(prompt, max_tokens=16)) for prompt in PROMPTS]
    assert [(g.release, g.result(60).token_ids) for g in asked] == reference["v1.2"]


def test_the_old_release_leaves_memory_before_the_new_one_comes(
    engine: Engine, old_dir: Path, new_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the new one is about to be read, no weight and no cache of the old one is there any more."""
    from autoglm.engine import exclusive

    old = engine._versions.active
    weight = weakref.ref(next(old.release.model.parameters()).untyped_storage())
    held: list[int] = []
    load = exclusive.load_resident

    def counting(*arguments: Any, **named: Any) -> Any:
        held.append(sum(p.numel() for p in old.release.model.parameters()) + len(old.cache.keys))
        held.append(weight() is not None and weight().nbytes())
        return load(*arguments, **named)

    monkeypatch.setattr(exclusive, "load_resident", counting)
    staged = engine.stage(new_dir, instead_of=old_dir)
    assert held == [0, False]
    assert engine.self_test(staged).ok
    engine.swap(staged)


def test_requests_that_do_not_end_put_the_exchange_off(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, hold_decoding: Any
) -> None:
    """After the time given, the old release serves on, and nothing was unloaded."""
    gate = hold_decoding(engine.active.model)
    generation = engine.submit(ask("hello", max_tokens=16))
    assert gate.reached.wait(60)
    with pytest.raises(OverloadedError, match="longer than"):
        engine.stage(new_dir, instead_of=old_dir, drain_s=0.0)
    gate.opened.set()
    assert generation.result(60).finished.reason == "length"
    assert engine.submit(ask("hello", max_tokens=4)).result(60).finished.release == "v1.2"


def test_two_exchanges_at_once_are_refused(engine: Engine, old_dir: Path, new_dir: Path) -> None:
    """The second is told so, and harms nothing."""
    staged = engine.stage(new_dir, instead_of=old_dir)
    with pytest.raises(EngineError, match="changing places"):
        engine.stage(new_dir, instead_of=old_dir)
    engine.discard(staged)
    assert engine.active_version == "v1.2"


def test_more_than_the_queue_holds_are_sent_away_in_the_gap(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, watched: None
) -> None:
    """Waiting costs a thread each, so it is bounded; those in time are answered."""
    engine._door._limit = len(PROMPTS)
    staged = engine.stage(new_dir, instead_of=old_dir)
    with Callers(engine, ask) as callers:
        callers.wait_at_the_door()
        with pytest.raises(OverloadedError, match="wait already"):
            engine.submit(ask("one too many"))
        engine.discard(staged)
    assert [got[0] for got in callers.got] == ["v1.2"] * len(PROMPTS)


def test_closing_in_the_gap_tells_those_who_wait(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, watched: None
) -> None:
    """Nobody waits for ever."""
    engine.stage(new_dir, instead_of=old_dir)
    with Callers(engine, ask) as callers:
        callers.wait_at_the_door()
        engine.close()
    assert all(isinstance(got, OverloadedError) for got in callers.got)


def test_an_engine_left_without_a_release_says_so_and_recovers(
    engine: Engine, old_dir: Path, new_dir: Path, ask: Ask, make_release: Any
) -> None:
    """Should the old release have rotted meanwhile, requests fail at once until a release loads again."""
    rotten = make_release("v1.2", seed=12)
    weights = rotten / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    staged = engine.stage(new_dir, instead_of=rotten)
    with pytest.raises(IntegrityError):
        engine.discard(staged)
    with pytest.raises(EngineError, match="no release is in memory"):
        engine.submit(ask("hello"))
    staged = engine.stage(new_dir)
    assert engine.self_test(staged).ok
    engine.swap(staged)
    assert engine.submit(ask("hello", max_tokens=4)).result(60).finished.release == "v1.3"


def test_a_model_without_room_for_a_second_one_runs_and_says_so(
    old_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no longer refused at start: updates make requests wait instead."""
    with Engine.load(old_dir, devices="cpu", threads=1) as engine:
        needed = engine.room(old_dir).needed_bytes
    free = iter([needed, needed - 1])  # before it is loaded, and after
    monkeypatch.setattr(devices_module, "free_bytes", lambda devices: next(free))
    warned: list[str] = []
    monkeypatch.setattr(engine_module._log, "warning", lambda text, *given: warned.append(text % given))
    Engine.load(old_dir, devices="cpu", threads=1).close()
    assert ["no room for two releases" in line for line in warned] == [True]


def test_under_a_limit_of_one_and_a_half_models(tmp_path: Path) -> None:
    """A real limit of the kernel on a process with a model of 450 MB: beside each other two do not fit, one
    after the other they do; requests in flight are all answered; a bad release makes way for the old one."""
    program = Path(__file__).with_name("memory_limit.py")
    command = [sys.executable, str(program), str(tmp_path)]
    # The limit counts what the C library reserves for each thread, used or not.
    surroundings = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=surroundings)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["model_bytes"] > 200_000_000
    assert said["limit_bytes"] <= 1.5 * said["model_bytes"] + said["base_bytes"]
    assert said["beside"] == ["OutOfMemoryError", "EngineError"]
    assert (said["good_mode"], said["bad_mode"]) == ("exclusive", "exclusive")
    assert said["lost"] == 0
    assert said["answered_by"] == {"before": ["v1.2"], "during": ["v1.3"], "bad": ["v1.3"]}
    assert said["score"] == 0.0
