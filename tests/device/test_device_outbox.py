"""Events on their way to the hub: durable, once, bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoglm.device.outbox import Outbox, count_queued
from autoglm.device.transport import LocalTransport, RefusedError
from autoglm.errors import NetworkError
from autoglm.releases import Event, EventAnswer, EventBatch


def event(name: str, result: str = "progress") -> Event:
    return Event(name, 0, "TRIAL", result)


class Receiver:
    """Takes batches; ``taken`` counts how often each event came."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []
        self.faults: list[Exception] = []
        self.poison: set[str] = set()
        self.accept = True

    def record(self, batch: EventBatch) -> EventAnswer:
        self.batches.append(batch)
        if self.faults:
            raise self.faults.pop(0)
        if self.poison & {event.event_id for event in batch.events}:
            raise RefusedError("400")
        return EventAnswer(tuple(e.event_id for e in batch.events) if self.accept else ())

    @property
    def transport(self) -> LocalTransport:
        def nothing(_: object) -> None:
            return None

        return LocalTransport(check=nothing, report=self.record, package=nothing, metadata=nothing)

    @property
    def ids(self) -> list[str]:
        return [event.event_id for batch in self.batches for event in batch.events]


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    outbox = Outbox(tmp_path / "outbox.db")
    yield outbox
    outbox.close()


def test_events_go_out_in_order_with_growing_numbers(outbox: Outbox) -> None:
    """They arrive as they were queued, numbered, and the box is empty afterwards."""
    receiver = Receiver()
    for number in range(130):
        outbox.add(event(f"e{number}"))
    assert outbox.flush(receiver.transport, "d1") == "continue"
    assert receiver.ids == [f"e{number}" for number in range(130)]
    sequence = [event.seq for batch in receiver.batches for event in batch.events]
    assert sequence == sorted(set(sequence))
    assert len(outbox) == 0


def test_the_same_event_is_queued_once(outbox: Outbox) -> None:
    """Queueing again after a crash changes nothing."""
    outbox.add(event("e1"))
    outbox.add(event("e1"))
    assert len(outbox) == 1


def test_a_lost_answer_leads_to_the_same_ids_again(outbox: Outbox) -> None:
    """What the hub did not confirm is sent again under its old id, so that it counts once."""
    receiver = Receiver()
    receiver.faults = [NetworkError("the line broke after the hub had it")]
    outbox.add(event("e1"))
    with pytest.raises(NetworkError):
        outbox.flush(receiver.transport, "d1")
    outbox.flush(receiver.transport, "d1")
    assert receiver.ids == ["e1", "e1"]
    assert receiver.batches[0] == receiver.batches[1]


def test_events_survive_a_restart(tmp_path: Path) -> None:
    """What was queued is there after the process is gone, and numbers are not used again."""
    first = Outbox(tmp_path / "outbox.db")
    first.add(event("e1"))
    first.close()
    receiver = Receiver()
    second = Outbox(tmp_path / "outbox.db")
    second.flush(receiver.transport, "d1")
    second.add(event("e2"))
    second.flush(receiver.transport, "d1")
    second.close()
    assert [e.seq for batch in receiver.batches for e in batch.events] == [1, 2]


def test_an_event_that_the_hub_cannot_take_does_not_block_the_others(outbox: Outbox) -> None:
    """A refused batch goes event by event, and only the refused one is given up."""
    receiver = Receiver()
    receiver.poison = {"bad"}
    for name in ("e1", "bad", "e2"):
        outbox.add(event(name))
    outbox.flush(receiver.transport, "d1")
    assert len(outbox) == 0
    assert receiver.ids[-3:] == ["e1", "bad", "e2"]


def test_a_hub_that_accepts_nothing_is_not_asked_for_ever(outbox: Outbox) -> None:
    """One try a flush; the events stay."""
    receiver = Receiver()
    receiver.accept = False
    outbox.add(event("e1"))
    outbox.flush(receiver.transport, "d1")
    assert (len(receiver.batches), len(outbox)) == (1, 1)


def test_a_full_box_lets_progress_go_first(tmp_path: Path) -> None:
    """Outcomes are what the fleet's failure rate is made of: they stay longest."""
    outbox, receiver = Outbox(tmp_path / "outbox.db", max_queued=5), Receiver()
    for name in ("outcome", "e0", "e1", "e2", "e3", "e4", "e5"):
        outbox.add(event(name, "fail" if name == "outcome" else "progress"))
    outbox.flush(receiver.transport, "d1")
    outbox.close()
    assert receiver.ids == ["outcome", "e2", "e3", "e4", "e5"]


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\0" * 8192])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """Better to lose reports than never to start again."""
    (tmp_path / "outbox.db").write_bytes(content)
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.add(event("e1"))
    assert len(outbox) == 1
    outbox.close()
    assert count_queued(tmp_path / "outbox.db") == 1


def test_an_update_is_reported_step_by_step_exactly_once(lab: Any, hub: Any, make_runtime: Any) -> None:
    """Over lost answers and restarts the hub counts begin, trial and outcome once each, with the health
    numbers of the self-test."""
    updater = lab.install("v1.2")
    hub.target, runtime = "v1.3", make_runtime("v1.2")
    hub.lost_answers = 2
    steps = iter([None, None, "the app is closing"])
    assert updater.update(runtime, gate=lambda: next(steps)).kind == "held"
    updater = lab.open()
    assert updater.update(runtime).kind == "updated"
    lab.prove(updater)
    assert [(e["state"], e["result"]) for e in hub.events] == [
        ("DOWNLOADING", "progress"),
        ("TRIAL", "progress"),
        ("CONFIRMED", "ok"),
    ]
    assert hub.events[1]["stats"] == {
        "score": 1.0,
        "first_token_ms": 250.0,
        "tokens_per_s": 12.0,
        "peak_memory_bytes": 1048576.0,
    }
    assert {e["rollout_id"] for e in hub.events} == {"r1"}
    assert {(e["from"], e["to"]) for e in hub.events} == {("v1.2", "v1.3")}
