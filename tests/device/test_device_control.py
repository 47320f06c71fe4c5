"""Pause, "update now", progress, changes of state and the last error: what people ask and are told."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autoglm.device import Agent, Control, SettableEnvironment, read_status
from autoglm.device.progress import Throttle
from autoglm.device.states import State
from autoglm.errors import NetworkError
from autoglm.releases import EventAnswer, EventBatch


def make_agent(lab: Any, updater: Any, **more: Any) -> Agent:
    return Agent(updater, every="1h", random_source=random.Random(1), **more)


def test_a_pause_outlives_the_process_and_is_seen_from_another(lab: Any, hub: Any, clock: Any) -> None:
    """Paused in one life, still paused in the next; whoever has the directory may end it."""
    updater = lab.install("v1.2")
    make_agent(lab, updater).pause()
    updater = lab.open()
    hub.target = "v1.3"
    agent = make_agent(lab, updater)
    agent.step()
    assert read_status(lab.root).paused
    assert updater.status().current == "v1.2"
    Control(lab.root).resume()
    agent.step()
    assert (updater.status().current, read_status(lab.root).paused) == ("v1.3", False)


def test_a_request_to_update_is_taken_once(lab: Any, hub: Any, clock: Any) -> None:
    """Asked for while nothing ran: the next life obeys, and then keeps to its schedule again."""
    updater = lab.install("v1.2")
    agent = make_agent(lab, updater)
    agent.step()
    hub.requests.clear()
    Control(lab.root).ask()
    agent.step()
    agent.step()
    assert len(hub.requests) == 1
    assert Control(lab.root).take() is None


def test_now_keeps_to_the_rules_unless_it_is_forced(lab: Any, hub: Any, clock: Any) -> None:
    """The schedule and a pause give way to a person; Wi-Fi and battery only when the person says so."""
    lab.change(wifi_only=True)
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    agent = make_agent(lab, updater, environment=SettableEnvironment(net="cellular"))
    agent.pause()
    agent.update_now()
    agent.step()
    assert (agent.last_result.kind, agent.last_result.message) == ("held", "waiting for Wi-Fi")
    agent.update_now(force=True)
    agent.step()
    assert agent.last_result.kind == "updated"


def test_a_pause_stops_a_download_and_keeps_what_came(lab: Any, hub: Any, clock: Any) -> None:
    """The gate sees the pause after the next chunk; resumed, the download goes on from there."""
    lab.change(chunk_bytes=4096)
    hub.target = "v1.2"
    updater = lab.open(progress=lambda phase, done, total: Control(lab.root).pause() if done > 8192 else None)
    agent = make_agent(lab, updater)
    agent.step()
    assert (agent.last_result.kind, agent.last_result.message) == ("held", "paused")
    assert updater.status().state == "DOWNLOADING"
    agent = make_agent(lab, lab.open())
    agent.resume()
    agent.step()
    assert agent.last_result.kind == "updated"


def test_a_damaged_request_is_a_plain_one(lab: Any) -> None:
    """Rubbish in the control directory forces nothing and breaks nothing."""
    control = Control(lab.root)
    control.ask(force=True)
    (lab.root / "control/now.json").write_text("{")
    request = control.take()
    assert request is not None and not request.force


def test_metered_traffic_is_bounded_by_the_day(lab: Any, hub: Any, clock: Any) -> None:
    """The allowance is used up in the middle of a download, which goes on the next day or over Wi-Fi."""
    lab.change(chunk_bytes=4096, metered_bytes_per_day=20_000)
    hub.target = "v1.2"
    environment = SettableEnvironment(net="cellular")
    updater = lab.open(transport=Metered(hub.transport))
    agent = make_agent(lab, updater, environment=environment)
    agent.step()
    assert agent.last_result.kind == "held" and "metered" in agent.last_result.message
    spent = updater.wire_bytes
    assert 20_000 <= spent < 30_000
    clock.seconds += 3600
    agent.step()
    assert agent.last_result.kind == "held" and updater.wire_bytes == spent
    environment.set(net="wifi")
    clock.seconds += 3600
    agent.step()
    assert agent.last_result.kind == "updated"


class Metered:
    """A transport that counts the bytes of packages, as one over a network does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.wire_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fetch(self, url: str, offset: int, etag: str | None, /) -> Any:
        body = self._inner.fetch(url, offset, etag)
        chunks = body.chunks

        def counted() -> Any:
            for piece in chunks():
                for start in range(0, len(piece), 1024):
                    part = piece[start : start + 1024]
                    self.wire_bytes += len(part)
                    yield part

        body.chunks = counted
        return body


def test_an_environment_that_breaks_is_one_that_knows_nothing(lab: Any, hub: Any, clock: Any) -> None:
    """Whatever the app's code raises, the rules see unknowns, and the agent goes on."""

    class Broken:
        def read(self) -> Any:
            raise RuntimeError("no permission")

    lab.change(wifi_only=True)
    agent = make_agent(lab, lab.install("v1.2"), environment=Broken())
    agent.step()
    assert agent.last_result.message == "the network is not known"


def test_the_hub_is_told_what_is_known(lab: Any, hub: Any, clock: Any) -> None:
    """The surroundings travel with the check, as on the wire."""
    agent = make_agent(lab, lab.install("v1.2"), environment=SettableEnvironment(net="wifi", battery=55))
    agent.step()
    env = hub.requests[-1].env
    assert (env.net, env.battery, env.charging) == ("wifi", 55, None)
    assert env.free_bytes > 0


def test_a_clock_off_by_years_changes_nothing_about_the_schedule(lab: Any, hub: Any, clock: Any) -> None:
    """Waits are reckoned in uptime; the wall clock only dates what people read."""
    years = [2026]
    clock.now = lambda: datetime(years[0], 11, 22, 12, 0, tzinfo=UTC)
    agent = make_agent(lab, lab.install("v1.2"))
    agent.step()
    hub.requests.clear()
    for year in (1970, 2060):
        years[0] = year
        agent.step()
        assert hub.requests == []
    clock.seconds += 4000
    agent.step()
    assert len(hub.requests) == 1
    assert agent.last_result.code == "E_EXPIRED"
    assert "clock" in agent.last_result.message


# Progress and changes


def test_progress_is_told_in_phases_and_not_too_often() -> None:
    """At most four times a second, but each new phase and each end at once."""
    told: list[tuple[str, int, int]] = []
    seconds = 0.0
    throttle = Throttle(lambda *what: told.append(what), lambda: seconds)
    for done in range(101):
        throttle("download", done, 100)
        seconds += 0.01
    throttle("load", 0, 0)
    assert told[0] == ("download", 0, 100) and told[-2:] == [("download", 100, 100), ("load", 0, 0)]
    assert 4 <= len(told) <= 8


def test_an_app_hears_of_every_phase(lab: Any, hub: Any, make_runtime: Any) -> None:
    """In their order; what its callback raises harms nothing."""
    lab.install("v1.2")
    hub.target = "v1.3"
    phases: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in phases:
            phases.append(phase)
        raise RuntimeError("a bug in the app")

    assert lab.open(progress=progress).update(make_runtime("v1.2")).kind == "updated"
    assert phases == ["check", "download", "apply", "load", "self_test", "swap"]


def test_an_app_hears_of_every_change_of_state(lab: Any, hub: Any, make_runtime: Any) -> None:
    """With the release it leads to; what a listener raises harms nothing."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    changes: list[Any] = []

    def broken(change: Any) -> None:
        raise RuntimeError("a bug in the app")

    updater.on_change(broken)
    updater.on_change(changes.append)
    updater.update(make_runtime("v1.2"))
    lab.prove(updater)
    assert [(c.state, c.version) for c in changes] == [
        (State.DOWNLOADING, "v1.3"),
        (State.APPLYING, "v1.3"),
        (State.TRIAL, "v1.3"),
        (State.CONFIRMED, "v1.3"),
        (State.IDLE, None),
    ]


# The last error


def test_an_error_is_shown_until_a_success_overtakes_it(lab: Any, hub: Any) -> None:
    """A hub out of reach is forgotten after the next check; a bad release after the next good one."""
    updater = lab.install("v1.2")
    check = hub.check

    def unreachable(request: Any) -> Any:
        raise NetworkError("no line")

    hub.check = unreachable
    assert updater.update().kind == "failed"
    assert updater.status().last_error["code"] == "E_NETWORK"
    hub.check = check
    assert updater.update().kind == "none"
    assert updater.status().last_error is None


def test_the_error_of_a_release_stays_until_another_one_is_installed(
    lab: Any, hub: Any, make_runtime: Any
) -> None:
    """That nothing is offered after a failure does not make it good."""
    updater, runtime = lab.install("v1.2"), make_runtime("v1.2")
    hub.target = "v1.3"
    runtime.faults["stage"] = ValueError("cannot be read")
    assert updater.update(runtime).kind == "failed"
    assert updater.update(runtime).kind == "none"
    assert updater.status().last_error["version"] == "v1.3"
    runtime.faults.clear()
    hub.target = "v1.4"
    assert updater.update(runtime).kind == "updated"
    assert updater.status().last_error is None


# The outbox


def test_a_hub_that_acknowledges_strangers_ends_no_loop(lab: Any, hub: Any) -> None:
    """Events that it was not sent do not count as progress; ours stay queued."""
    updater = lab.install("v1.2")
    hub.record = lambda batch: EventAnswer(("somebody-else",), "continue")
    hub.target = "v1.3"
    updater.update()
    assert updater.status().queued_events > 0
    seen: list[str] = []

    def record(batch: EventBatch) -> EventAnswer:
        seen.extend(event.event_id for event in batch.events)
        return EventAnswer(tuple(seen), "continue")

    hub.record = record
    updater.tick()
    assert updater.status().queued_events == 0
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("content", ["", "[]", '{"day": 3, "bytes": "x"}'])
def test_damaged_counts_begin_anew(lab: Any, hub: Any, content: str, clock: Any) -> None:
    """A traffic file that makes no sense costs a count, not the update."""
    lab.root.mkdir(parents=True)
    Path(lab.root / "traffic.json").write_text(content)
    lab.change(metered_bytes_per_day=1 << 30)
    hub.target = "v1.2"
    agent = make_agent(lab, lab.open(), environment=SettableEnvironment(net="cellular"))
    agent.step()
    assert agent.last_result.kind == "updated"
