"""Working beside the live model: when it rests, when it has its turn, and that nothing waits for ever."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.engine import Engine, GenerationRequest
from autoglm.engine.pace import Pace, Turn
from autoglm.engine.release import Placement, load_resident
from autoglm.engine.selftest import examine_resident

MakeRelease = Callable[..., Path]
Ask = Callable[..., GenerationRequest]


class Machine:
    """A clock that moves only when somebody works or rests, and an engine that steps meanwhile."""

    def __init__(self, step_s: float) -> None:
        self.now, self.slept, self.is_busy = 0.0, list[float](), True
        self._step_s = step_s

    def pace(self, **options: Any) -> Pace:
        """Return a pace on this machine."""
        return Pace(
            lambda: self.is_busy, self.num_steps, clock=lambda: self.now, sleep=self._sleep, **options
        )

    def num_steps(self) -> int:
        """Return how many steps the engine has made."""
        return round(self.now / self._step_s)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def work(machine: Machine, pace: Pace, *pieces_s: float) -> list[float]:
    """Work so long, asking after each piece; return the rests that this brought."""
    machine.slept.clear()
    for seconds in pieces_s:
        machine.now += seconds
        pace()
    return machine.slept


def test_of_short_steps_one_in_two_hundred_waits() -> None:
    """Pieces are put together up to 8 ms; then so many steps follow alone."""
    machine = Machine(step_s=0.001)
    with machine.pace() as pace:
        assert work(machine, pace, *[0.003] * 6) == pytest.approx([0.2, 0.2])


def test_of_long_steps_four_fifths_of_the_time_are_left_to_them() -> None:
    """A piece is a quarter of a step, and the rest four times as long as the piece took."""
    machine = Machine(step_s=0.006)
    with machine.pace() as pace:
        assert work(machine, pace, 0.001, 0.001, 0.003) == pytest.approx([0.008, 0.012])


def test_a_rest_has_an_end() -> None:
    """A piece that took seconds, or an engine that makes no steps, does not put staging off for long."""
    machine = Machine(step_s=100.0)
    with machine.pace() as pace:
        assert work(machine, pace, 3.0, 3.0) == [0.4, 0.4]


def test_when_nobody_asks_there_is_no_rest() -> None:
    """Also when requests end half way."""
    machine = Machine(step_s=0.001)
    with machine.pace() as pace:
        work(machine, pace, 0.01)
        machine.is_busy = False
        assert work(machine, pace, 1.0, 1.0) == []
    assert not machine.pace().__enter__().rested_s


def test_all_rests_together_have_a_limit() -> None:
    """After that, work goes on without: a self-test has a time to keep."""
    machine = Machine(step_s=0.001)
    with machine.pace(most_s=0.5) as pace:
        work(machine, pace, *[0.01] * 10)
    assert 0.5 <= pace.rested_s < 1.0


def test_a_piece_works_while_the_engine_waits() -> None:
    """The engine's thread is let go again by the next rest, and by the end."""
    machine, given = Machine(step_s=0.001), list[threading.Thread]()

    def post(command: Callable[[], None]) -> None:
        given.append(threading.Thread(target=command))
        given[-1].start()

    with machine.pace(post=post) as pace:
        work(machine, pace, 0.01)
        given[0].join()
    given[1].join()
    assert len(given) == 2


def test_a_turn_that_is_never_ended_holds_nobody_up() -> None:
    """A self-test that hangs keeps its turn; the engine goes on without hearing of it."""
    Turn().give()


def test_a_turn_that_is_never_given_holds_nobody_up() -> None:
    """Work goes on without it, and the engine does not wait when it comes to it later."""
    turn = Turn()
    turn.take()
    turn.give()


def test_a_command_is_posted_to_the_thread_between_two_steps(engine: Engine, ask: Ask) -> None:
    """It runs there, and its fault harms nobody."""
    ran = threading.Event()

    def broken() -> None:
        ran.set()
        raise RuntimeError("not the engine's business")

    engine._worker.post(broken)
    assert ran.wait(60)
    assert engine.submit(ask("hello", max_tokens=3)).result().token_ids
    engine.close()
    engine._worker.post(ran.clear)
    assert ran.is_set()


def test_a_self_test_rests_between_layers_and_steps(new_dir: Path) -> None:
    """Resting changes no answer, is not counted as slowness, and leaves nothing behind in the release."""
    resident = load_resident(new_dir, Placement(max_batch=1))
    seconds, slept = itertools.count(0.0, 1000.0), list[float]()
    pace = Pace(lambda: True, clock=lambda: next(seconds), sleep=slept.append)
    with torch.inference_mode():
        plain = examine_resident(resident, budget_s=60)
        report = examine_resident(resident, budget_s=60, pace=pace)
    model = resident.release.model
    assert plain.ok and report.ok
    assert len(slept) >= len(model.layers) + 7  # layers of the prompt, and steps of the answer
    assert report.first_token_s < -1000  # rests are taken off, and these did not take place
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_tokenizer_is_in_memory_once(make_release: MakeRelease) -> None:
    """Two releases with the same file share it; reading it takes as long as many steps."""
    old, new = make_release("v1.2", seed=60), make_release("v1.3", seed=61)
    with Engine.load(old, devices="cpu", threads=1, max_batch=1) as engine:
        staged = engine.stage(new).held().release
        assert staged.tokenizer is engine.active.tokenizer
