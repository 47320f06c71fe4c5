"""One request that breaks a step which it shares: it fails, and the others do not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

from autoglm.engine import Completion, Engine, Finished, GenerationRequest, JsonAnswer, Sampling
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.errors import EngineError

Ask = Callable[..., GenerationRequest]
PROMPTS = ["hello", "what is this", "你好", "打开微信", "a much longer question than the others", "z"]
FAULTY = 2


@pytest.fixture
def resident(old_dir: Path) -> Resident:
    """One loaded release with six slots."""
    with torch.inference_mode():
        return load_resident(old_dir, Placement(max_batch=6))


def requests(ask: Ask) -> list[GenerationRequest]:
    """Greedy ones and seeded ones, whose chance must not be drawn twice."""
    seeded = Sampling(temperature=1.0, seed=5, top_k=40)
    chances = [Sampling(), seeded, Sampling(), seeded, Sampling(frequency_penalty=0.5), seeded]
    return [ask(text, max_tokens=24, sampling=each) for text, each in zip(PROMPTS, chances, strict=True)]


def run(scheduler: Scheduler, sequences: list[Sequence]) -> None:
    with torch.inference_mode():
        for sequence in sequences:
            scheduler.waiting.put(sequence)
        while scheduler.has_work:
            scheduler.step()


def ended(resident: Resident, wanted: list[GenerationRequest]) -> tuple[list[Sequence], list[Sequence]]:
    """Run requests together; return them, and those that failed in the order in which they did."""
    failed: list[Sequence] = []
    scheduler = Scheduler(
        WaitingQueue(64),
        Limits(6, 512),
        lambda sequence, ending: None if isinstance(ending, Finished) else failed.append(sequence),
    )
    sequences = [Sequence(request, resident) for request in wanted]
    run(scheduler, sequences)
    assert resident.pages.num_free == resident.pages.num_pages
    assert scheduler.counters.failed == len(failed)
    return sequences, failed


def answers(sequences: list[Sequence]) -> list[Completion]:
    return [sequence.generation.result(0.0) for sequence in sequences]


def break_decoding(resident: Resident, is_faulty: Callable[[Any, int], bool]) -> None:
    """Let a step break after the model computed it, when ``is_faulty(rows, step)`` says so."""
    model, steps = resident.release.model, [0]
    decode = model.decode

    def broken(ids: Any, positions: Any, cache: Any, rows: Any) -> torch.Tensor:
        steps[0] += len(rows) > 1
        hidden = decode(ids, positions, cache, rows)
        if is_faulty(rows, steps[0]):
            raise ValueError("a kernel broke")
        return hidden

    model.decode = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("at_step", [1, 7])
def test_a_fault_in_a_shared_step_ends_the_faulty_request_alone(
    resident: Resident, ask: Ask, at_step: int
) -> None:
    """The step breaks whenever one of six takes part: it fails, five answer as if it were not there."""
    wanted = [completion.token_ids for completion in answers(ended(resident, requests(ask))[0])]
    sequences: list[Sequence] = []
    break_decoding(
        resident,
        lambda rows, step: step >= at_step and any(t is sequences[FAULTY].table for t in rows.tables),
    )
    scheduler = Scheduler(WaitingQueue(64), Limits(6, 512), lambda sequence, ending: None)
    sequences += [Sequence(request, resident) for request in requests(ask)]
    run(scheduler, sequences)
    faulty = sequences.pop(FAULTY)
    with pytest.raises(EngineError, match=r"v1\.2 failed on this request: a kernel broke"):
        faulty.generation.result(0.0)
    assert [c.token_ids for c in answers(sequences)] == wanted[:FAULTY] + wanted[FAULTY + 1 :]
    assert scheduler.counters.failed == 1
    assert resident.pages.num_free == resident.pages.num_pages


def test_a_fault_that_passes_ends_nobody(resident: Resident, ask: Ask) -> None:
    """A step that breaks only together, as when memory is short for a moment, costs no answer."""
    wanted = [completion.token_ids for completion in answers(ended(resident, requests(ask))[0])]
    break_decoding(resident, lambda rows, step: len(rows) > 1 and step in (3, 4))
    sequences, failed = ended(resident, requests(ask))
    assert not failed
    assert [completion.token_ids for completion in answers(sequences)] == wanted


def test_a_fault_that_strikes_all_fails_all(resident: Resident, ask: Ask) -> None:
    """A release that cannot decode any more fails every request under way, each with an error of its own."""
    break_decoding(resident, lambda rows, step: True)
    sequences, failed = ended(resident, requests(ask))
    assert set(failed) == set(sequences)
    for sequence in sequences:
        with pytest.raises(EngineError, match="a kernel broke"):
            sequence.generation.result(0.0)


@pytest.mark.parametrize("where", ["allowed", "accept"])
def test_a_form_that_breaks_ends_its_own_request(resident: Resident, ask: Ask, where: str) -> None:
    """A parser that fails in the middle of an answer fails that answer; nobody's chance is drawn twice."""
    plain = requests(ask)
    wanted = [completion.token_ids for completion in answers(ended(resident, plain)[0])]
    scheduler = Scheduler(WaitingQueue(64), Limits(6, 512), lambda sequence, ending: None)
    sequences = [Sequence(request, resident) for request in plain]
    bound = Sequence(ask("z", max_tokens=24, structure=JsonAnswer()), resident)

    def broken(*_: object) -> None:
        raise ValueError("the parser broke")

    assert bound.constraint is not None
    setattr(bound.constraint, where, broken)
    sequences[FAULTY] = bound
    run(scheduler, sequences)
    with pytest.raises(EngineError, match="the parser broke"):
        sequences.pop(FAULTY).generation.result(0.0)
    assert [c.token_ids for c in answers(sequences)] == wanted[:FAULTY] + wanted[FAULTY + 1 :]
    assert resident.pages.num_free == resident.pages.num_pages


def test_a_request_that_cannot_begin_fails_alone(resident: Resident, ask: Ask) -> None:
    """What breaks when a request is let in ends it with an error; its caller does not wait for ever."""
    scheduler = Scheduler(WaitingQueue(64), Limits(6, 512), lambda sequence, ending: None)
    ill, well = (Sequence(ask("hello", max_tokens=8), resident) for _ in range(2))

    def broken(table: object) -> None:
        raise ValueError("no way in")

    ill.enter = broken  # type: ignore[method-assign]
    run(scheduler, [ill, well])
    with pytest.raises(EngineError, match="no way in"):
        ill.generation.result(0.0)
    assert well.generation.result(0.0).token_ids


def test_a_trial_counts_the_faulty_answer_alone(engine: Engine, ask: Ask) -> None:
    """Listeners, by whom a release on trial is judged, hear of one bad answer and of the good ones."""
    heard: Queue[bool] = Queue()
    engine.on_answer(lambda version, ok, finished: heard.put(ok))
    model = engine.active.model
    decode, marked = model.decode, model.config.vocab_size - 1

    def broken(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if marked in ids.tolist():
            raise ValueError("a kernel broke")
        return decode(ids, *rest)

    model.decode = broken  # type: ignore[method-assign,assignment]
    always = Sampling(logit_bias={marked: 100.0})
    asked = [ask("hello", max_tokens=12, sampling=each) for each in (Sampling(), always, Sampling())]
    generations = [engine.submit(request) for request in asked]
    good = [generations[index].result() for index in (0, 2)]
    with pytest.raises(EngineError):
        generations[1].result()
    assert len({completion.token_ids for completion in good}) == 1
    assert sorted(heard.get(timeout=60) for _ in asked) == [False, True, True]
