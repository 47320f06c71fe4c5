"""Replacing the model while it answers."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.engine import Engine, GenerationRequest
from autoglm.errors import EngineError, FormatError, HealthError, IntegrityError, RequestError, TrustError
from engine.conftest import place_of

Ask = Callable[..., GenerationRequest]
MakeRelease = Callable[..., Path]
PROMPTS = [f"question {i}" for i in range(20)]
TOKENS = 64


def answers(engine: Engine, ask: Ask, release: str | None = None) -> list[tuple[int, ...]]:
    """The greedy answers to all prompts."""
    submitted = [engine.submit(ask(prompt, max_tokens=TOKENS, release=release)) for prompt in PROMPTS]
    return [generation.result().token_ids for generation in submitted]


def swap_in(engine: Engine, directory: Path) -> None:
    """Stage, examine and swap."""
    staged = engine.stage(directory)
    assert engine.self_test(staged).ok
    engine.swap(staged)


@pytest.fixture
def references(old_dir: Path, new_dir: Path, ask: Ask) -> dict[str, list[tuple[int, ...]]]:
    """What each release answers to all prompts when it is alone."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for directory in (old_dir, new_dir):
        with Engine.load(directory, devices="cpu", threads=1) as engine:
            found[engine.active_version] = answers(engine, ask)
    assert not set(found["v1.2"]) & set(found["v1.3"])
    return found


def test_a_swap_between_requests(
    engine: Engine, new_dir: Path, ask: Ask, references: dict[str, list[tuple[int, ...]]]
) -> None:
    """Before it the old release answers, after it the new one; both may be named while both are loaded."""
    fingerprint = engine.active.fingerprint
    assert answers(engine, ask) == references["v1.2"]
    staged = engine.stage(new_dir)
    assert (staged.version, engine.active_version) == ("v1.3", "v1.2")
    report = engine.self_test(staged)
    assert (report.ok, report.score, report.failures) == (True, 1.0, ())
    assert report.first_token_s > 0 and report.tokens_per_s > 0 and report.peak_memory_bytes > 0
    swapped = engine.swap(staged)
    assert (swapped.from_version, swapped.to_version) == ("v1.2", "v1.3")
    assert (engine.active_version, engine.previous_version) == ("v1.3", "v1.2")
    assert engine.loaded_versions == ("v1.3", "v1.2")
    assert engine.active.fingerprint != fingerprint
    assert answers(engine, ask) == references["v1.3"]
    assert answers(engine, ask, "v1.2") == references["v1.2"]


def test_streams_in_flight_finish_on_the_release_they_began_with(
    old_dir: Path,
    new_dir: Path,
    ask: Ask,
    references: dict[str, list[tuple[int, ...]]],
    hold_decoding: Callable[..., Any],
) -> None:
    """A swap in the middle of 20 streams truncates and mixes none; streams after it are the new release's."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=20) as engine:
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        middle, committed = threading.Event(), threading.Event()
        gate = hold_decoding(engine.active.model)  # nobody may be done before the last has asked
        decode = engine.active.model.decode
        steps_with_all = 0

        def watched(*arguments: torch.Tensor) -> torch.Tensor:
            nonlocal steps_with_all
            steps_with_all += len(arguments[0]) == len(PROMPTS)
            if steps_with_all == 10:
                middle.set()
                assert queued.wait(60)
            return decode(*arguments)

        queued = threading.Event()
        engine.active.model.decode = watched  # type: ignore[method-assign,assignment]

        def swap() -> None:
            assert middle.wait(60)
            queued.set()
            assert engine.swap(staged).to_version == "v1.3"
            committed.set()

        swapper = threading.Thread(target=swap)
        swapper.start()
        before = [engine.submit(ask(prompt, max_tokens=TOKENS)) for prompt in PROMPTS]
        gate.opened.set()
        assert committed.wait(60)
        after = [engine.submit(ask(prompt, max_tokens=TOKENS)) for prompt in PROMPTS]
        swapper.join()
        assert [generation.release for generation in before] == ["v1.2"] * 20
        assert [generation.release for generation in after] == ["v1.3"] * 20
        assert [generation.result().token_ids for generation in before] == references["v1.2"]
        assert [generation.result().token_ids for generation in after] == references["v1.3"]


def test_a_commit_inside_a_step_tears_nothing(
    old_dir: Path,
    new_dir: Path,
    ask: Ask,
    references: dict[str, list[tuple[int, ...]]],
    hold_decoding: Callable[..., Any],
) -> None:
    """Even a swap called from within the model's own step leaves all streams whole, all 20 in flight."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=20) as engine:
        staged = engine.stage(new_dir)
        assert engine.self_test(staged).ok
        gate = hold_decoding(engine.active.model)  # nobody may be done before the last has asked
        decode = engine.active.model.decode
        in_flight: list[int] = []

        def swapping(*arguments: torch.Tensor) -> torch.Tensor:
            if len(arguments[0]) == len(PROMPTS) and not in_flight:
                in_flight.append(engine.swap(staged).in_flight)
            return decode(*arguments)

        engine.active.model.decode = swapping  # type: ignore[method-assign,assignment]
        generations = [engine.submit(ask(prompt, max_tokens=TOKENS)) for prompt in PROMPTS]
        gate.opened.set()
        tokens = [generation.result().token_ids for generation in generations]
        assert in_flight == [20]
        assert [generation.release for generation in generations] == ["v1.2"] * 20
        assert tokens == references["v1.2"]


@dataclass
class Churn:
    """Clients that ask without a break, and what became of their streams."""

    engine: Engine
    ask: Ask
    references: dict[str, list[tuple[int, ...]]]
    done: Counter[str] = field(default_factory=Counter[str])
    torn: list[str] = field(default_factory=list[str])
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        """Ask one prompt after the other and compare each answer with its release's own."""
        while not self.stop.is_set():
            number = (number + 7) % len(PROMPTS)
            generation = self.engine.submit(self.ask(PROMPTS[number], max_tokens=TOKENS))
            if generation.result().token_ids != self.references[generation.release][number]:
                self.torn.append(PROMPTS[number])
            self.done[generation.release] += 1

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        """Keep the clients going for the length of the block."""
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    ("cycles", "requests"),
    [pytest.param(3, 0, id="short"), pytest.param(50, 10_000, id="long", marks=pytest.mark.long)],
)
def test_swapping_back_and_forth_under_load(
    old_dir: Path,
    new_dir: Path,
    ask: Ask,
    references: dict[str, list[tuple[int, ...]]],
    cycles: int,
    requests: int,
) -> None:
    """Through all commits, most slots in flight at each, every stream is whole and its release's own."""
    with Engine.load(old_dir, devices="cpu", threads=1, max_batch=8) as engine:
        churn = Churn(engine, ask, references)
        in_flight: list[int] = []
        with churn.running(clients=16):
            for _ in range(cycles):
                staged = engine.stage(new_dir)
                assert engine.self_test(staged).ok
                in_flight.append(engine.swap(staged).in_flight)
                for _ in range(4):
                    engine.submit(ask("between", max_tokens=10)).result()
                in_flight.append(engine.rollback().in_flight)
            while sum(churn.done.values()) < requests:
                engine.submit(ask("between", max_tokens=10)).result()
        stats = engine.stats()
    assert churn.torn == []
    assert set(churn.done) == {"v1.2", "v1.3"}
    assert (stats.swaps, stats.failed, stats.cancelled, stats.retiring) == (2 * cycles, 0, 0, 0)
    assert stats.finished == stats.requests
    assert sum(count >= 4 for count in in_flight) >= 0.95 * len(in_flight)


def test_rollback_is_bit_exact(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """After swap and rollback the very same tensors answer, and the other release is gone."""
    model = engine.active.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logprobs = engine.submit(ask("hello", max_tokens=20)).result()
    swap_in(engine, new_dir)
    report = engine.rollback()
    assert (report.from_version, report.to_version) == ("v1.3", "v1.2")
    assert engine.active.model is model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert engine.submit(ask("hello", max_tokens=20)).result().token_ids == logprobs.token_ids
    assert engine.previous_version is None
    with pytest.raises(RequestError):
        engine.submit(ask("hello", release="v1.3"))
    with pytest.raises(EngineError, match="no previous release"):
        engine.rollback()


def test_a_release_is_freed_when_nobody_uses_it(
    engine: Engine, new_dir: Path, ask: Ask, hold_decoding: Callable[..., Any]
) -> None:
    """The previous release stays for the trial, then for its last stream, then its memory is given back."""
    old = weakref.ref(engine.active)
    gate = hold_decoding(engine.active.model)
    staged = engine.stage(new_dir)
    assert engine.self_test(staged).ok
    generation = engine.submit(ask("hello", max_tokens=10))
    assert gate.reached.wait(60)
    gate.opened.set()
    engine.swap(staged)
    assert old() is not None
    engine.release_previous()
    assert engine.previous_version is None
    with pytest.raises(RequestError):
        engine.submit(ask("hello", release="v1.2"))
    assert generation.result().finished.release == "v1.2"
    engine.submit(ask("flush", max_tokens=2)).result()
    engine._announcer.submit(gc.collect).result()
    gc.collect()
    assert old() is None
    assert engine.stats().retiring == 0


def test_unchanged_tensors_are_shared_with_the_live_release(
    engine: Engine, old_dir: Path, new_dir: Path
) -> None:
    """A staged release with the same weights costs no further weight memory; one with others its own."""
    live = dict(engine.active.model.named_parameters())
    same, other = engine.stage(old_dir).held().release, engine.stage(new_dir).held().release
    assert all(p.data_ptr() == live[name].data_ptr() for name, p in same.model.named_parameters())
    tables = [place_of(release.weights["table.weight"].value) for release in (engine.active, same, other)]
    assert tables[0] == tables[1] != tables[2]


def test_a_release_that_computes_nan_never_serves(
    engine: Engine, new_dir: Path, ask: Ask, poison: Callable[..., None]
) -> None:
    """Its self-test fails, swap refuses it by type, and the old release goes on untouched."""
    wanted = engine.submit(ask("hello", max_tokens=10)).result().token_ids
    staged = engine.stage(new_dir)
    poison(staged.held().release.model)
    report = engine.self_test(staged)
    assert (report.ok, report.score) == (False, 0.0)
    assert "not finite" in report.failures[0]
    with pytest.raises(HealthError, match="not finite"):
        engine.swap(staged)
    engine.discard(staged)
    assert engine.active_version == "v1.2"
    assert engine.submit(ask("hello", max_tokens=10)).result().token_ids == wanted


def test_nan_weights_are_refused_before_they_are_staged(engine: Engine, nan_dir: Path) -> None:
    """A weight that is NaN in the file, hash in order, is an EngineError at staging."""
    with pytest.raises(EngineError, match="not finite"):
        engine.stage(nan_dir)
    assert engine.loaded_versions == ("v1.2",)


def test_corrupt_releases_are_refused_by_type(engine: Engine, make_release: MakeRelease, ask: Ask) -> None:
    """A flipped bit, a missing file and a missing release each raise their own error; serving goes on."""
    flipped = make_release("v1.5", seed=15)
    weights = bytearray((flipped / "model.safetensors").read_bytes())
    weights[-7] ^= 1
    (flipped / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError):
        engine.stage(flipped)
    missing = make_release("v1.6", seed=16)
    (missing / "tokenizer.json").unlink()
    with pytest.raises(TrustError):
        engine.stage(missing)
    with pytest.raises(FormatError):
        engine.stage(missing.parent / "nowhere")
    assert engine.submit(ask("hello", max_tokens=3)).result().finished.release == "v1.2"


def test_a_wrong_answer_fails_the_self_test(engine: Engine, make_release: MakeRelease) -> None:
    """A release that does not say what its own prompts expect may not serve."""
    staged = engine.stage(make_release("v1.7", seed=17, expect="sense"))
    report = engine.self_test(staged)
    assert not report.ok
    assert "not 'sense'" in report.failures[0]
    with pytest.raises(HealthError):
        engine.swap(staged)


def test_a_slow_release_fails_the_self_test(engine: Engine, make_release: MakeRelease) -> None:
    """Fewer tokens a second than the release itself demands is a failure."""
    report = engine.self_test(engine.stage(make_release("v1.8", seed=18, min_tokens_per_s=1e6)))
    assert not report.ok
    assert "1e+06 are needed" in report.failures[0]


def test_a_hanging_release_fails_the_self_test(engine: Engine, new_dir: Path, ask: Ask) -> None:
    """A step that never returns is abandoned after the time given; the live release is not held up."""
    staged = engine.stage(new_dir)
    forever = threading.Event()

    def hanging(*arguments: torch.Tensor) -> torch.Tensor:
        forever.wait()
        raise RuntimeError("released")

    staged.held().release.model.decode = hanging  # type: ignore[method-assign,assignment]
    report = engine.self_test(staged, budget_s=0.1)
    forever.set()
    assert not report.ok
    assert "abandoned" in report.failures[0]
    assert engine.submit(ask("hello", max_tokens=3)).result().finished.reason == "length"


def test_an_endless_self_test_is_cut_at_its_budget(engine: Engine, new_dir: Path) -> None:
    """A release with no time left fails, prompt by prompt."""
    report = engine.self_test(engine.stage(new_dir), budget_s=0.0)
    assert not report.ok


def test_swapping_needs_a_passed_self_test_and_happens_once(engine: Engine, new_dir: Path) -> None:
    """An unexamined release is refused, and one that was swapped in cannot be used again."""
    staged = engine.stage(new_dir)
    with pytest.raises(HealthError, match="has not run its self-test"):
        engine.swap(staged)
    assert engine.self_test(staged).ok
    engine.swap(staged)
    engine.discard(staged)
    for action in (engine.swap, engine.self_test):
        with pytest.raises(EngineError, match="no longer staged"):
            action(staged)
    assert engine.active_version == "v1.3"


def test_the_live_self_test_uses_the_live_path(engine: Engine, new_dir: Path) -> None:
    """It asks the active release's prompts like any caller, so listeners hear the answers."""
    swap_in(engine, new_dir)
    report = engine.live_self_test()
    assert (report.ok, report.score) == (True, 1.0)
    assert engine.stats().requests == 1


def test_a_listener_may_roll_back(
    engine: Engine, new_dir: Path, ask: Ask, poison: Callable[..., None]
) -> None:
    """A trial that goes wrong is ended from the listener itself."""
    swap_in(engine, new_dir)
    rolled_back = threading.Event()

    def judge(version: str, ok: bool, finished: object) -> None:
        if not ok:
            engine.rollback()
            rolled_back.set()

    engine.on_answer(judge)
    poison(engine.active.model)
    with pytest.raises(EngineError):
        engine.submit(ask("hello")).result()
    assert rolled_back.wait(60)
    assert engine.active_version == "v1.2"
    assert engine.submit(ask("hello", max_tokens=3)).result().finished.release == "v1.2"
