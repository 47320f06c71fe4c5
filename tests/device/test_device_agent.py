"""The scheduled, silent agent and the rules by which it holds back; no thread sleeps to be right."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from autoglm.device import Agent, Reading, UpdateResult, UpdateSettings, parse_every
from autoglm.device.agent import Schedule
from autoglm.errors import ConfigError, NetworkError

NONE = UpdateResult("none")
FAILED = UpdateResult("failed", code="E_NETWORK")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("6h", 21600), ("1d", 86400), (2.5, 2.5)]
)
def test_intervals(text: str | float, seconds: float) -> None:
    """Seconds, minutes, hours and days are understood."""
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "-1h", "0s", "6 hours", "1e9d", 0, float("nan")])
def test_what_is_no_interval_is_refused(text: str | float) -> None:
    """The error shows what was given and how to write it."""
    with pytest.raises(ConfigError, match="every"):
        parse_every(text)


@pytest.mark.parametrize(
    "settings",
    [
        {"tries": 0},
        {"trial_answers": -1},
        {"every": "soon"},
        {"chunk_bytes": 1},
        {"quiet_hours": ("22:00-25:00",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        UpdateSettings(**settings)


def test_checks_are_spread_around_the_interval() -> None:
    """Each wait lies within the jitter, and they differ."""
    schedule = Schedule(1000, 0.1, random.Random(1))
    waits = [schedule.seconds_after(NONE) for _ in range(100)]
    assert all(900 <= wait <= 1100 for wait in waits)
    assert max(waits) - min(waits) > 150


def test_failures_are_retried_soon_and_then_ever_more_rarely() -> None:
    """Anywhere within 30 s, 60 s, 120 s ... up to the interval, never at once; a success begins again."""
    spans = [30, 60, 120, 240, 480, 960, 1000, 1000]
    all_waits: list[list[float]] = []
    for seed in range(200):
        schedule = Schedule(1000, 0.0, random.Random(seed))
        all_waits.append([schedule.seconds_after(FAILED) for _ in spans])
        assert schedule.seconds_after(NONE) == 1000
        assert 1 <= schedule.seconds_after(None) <= 30
    for span, waits in zip(spans, zip(*all_waits, strict=True), strict=True):
        assert 1 <= min(waits) < span / 10 and span * 9 / 10 < max(waits) <= span


def test_the_hub_may_say_when_to_ask_again() -> None:
    """``retry_after_s`` counts, never earlier, spread later; after an update it does not matter."""
    schedule = Schedule(1000, 0.1, random.Random(1))
    waits = [schedule.seconds_after(UpdateResult("none", retry_after_s=5)) for _ in range(50)]
    assert all(5 <= wait <= 5.5 for wait in waits)
    assert schedule.seconds_after(UpdateResult("updated", retry_after_s=5)) > 800


def test_rules_about_the_device_need_someone_to_ask(lab: Any) -> None:
    """An agent told to wait for Wi-Fi without a way to know of it is refused."""
    lab.change(wifi_only=True)
    with pytest.raises(ConfigError, match="environment"):
        Agent(lab.open())


def make_agent(lab: Any, updater: Any, runtime: Any = None, **more: Any) -> Agent:
    return Agent(updater, runtime, every="1h", random_source=random.Random(1), **more)


def test_the_agent_checks_at_once_and_then_at_its_interval(lab: Any, hub: Any, clock: Any) -> None:
    """Between two checks it does nothing; the wait is never longer than a tick."""
    agent = make_agent(lab, lab.install("v1.2"))
    hub.requests.clear()
    assert agent.step() <= 60
    for _ in range(53):
        clock.seconds += 60
        agent.step()
    assert len(hub.requests) == 1
    for _ in range(14):
        clock.seconds += 60
        agent.step()
    assert len(hub.requests) == 2


def test_the_agent_updates_and_confirms_by_itself(lab: Any, hub: Any, clock: Any, make_runtime: Any) -> None:
    """Nobody calls anything but its steps: the new release is fetched, swapped in and confirmed."""
    updater, runtime = lab.install("v1.2"), make_runtime("v1.2")
    hub.target = "v1.3"
    agent = make_agent(lab, updater, runtime)
    assert agent.step() == 60
    assert (runtime.serving, agent.last_result.kind) == ("v1.3", "updated")
    clock.seconds += 600
    agent.step()
    assert updater.status().confirmed
    assert updater.status().next_check is not None


def test_a_runtime_that_tells_of_its_answers_is_listened_to(
    lab: Any, hub: Any, clock: Any, make_runtime: Any
) -> None:
    """A failed live answer reaches the trial through ``on_answer`` and is acted on at the next step."""
    updater, runtime = lab.install("v1.2"), make_runtime("v1.2")
    listeners: list[Any] = []
    runtime.on_answer = listeners.append
    hub.target = "v1.3"
    agent = make_agent(lab, updater, runtime)
    agent.step()
    agent.answered(False, "v1.3")  # heard already, does not count twice
    agent.step()
    assert runtime.serving == "v1.3"
    listeners[0]("v1.3", False, "details")
    agent.step()
    assert runtime.serving == "v1.2"


def test_a_paused_agent_updates_nothing_until_it_is_told(lab: Any, hub: Any, clock: Any) -> None:
    """A pause holds the schedule back, not a person who says now."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    agent = make_agent(lab, updater)
    agent.pause()
    clock.seconds += 10 * 3600
    assert agent.step() == 60
    assert updater.status().current == "v1.2"
    agent.update_now()
    agent.step()
    assert updater.status().current == "v1.3"


class Nets:
    """An environment that changes its network with every look; cellular when the list is over."""

    def __init__(self, nets: Iterator[str]) -> None:
        self.nets = nets

    def read(self) -> Reading:
        return Reading(net=next(self.nets, "cellular"))


def test_conditions_hold_back_and_stop_what_is_under_way(lab: Any, hub: Any, clock: Any) -> None:
    """Leaving the Wi-Fi stops a download after its chunk; coming back goes on from there."""
    lab.change(wifi_only=True, chunk_bytes=4096)
    hub.target = "v1.2"
    surroundings = Nets(iter(["cellular"] + ["wifi"] * 4))
    agent = make_agent(lab, lab.open(), environment=surroundings)
    agent.step()
    assert (agent.last_result.kind, agent.last_result.message) == ("held", "waiting for Wi-Fi")
    clock.seconds += 400
    agent.step()
    assert (agent.last_result.kind, agent.last_result.to_version) == ("held", "v1.2")
    assert lab.opened[-1].status().state == "DOWNLOADING"
    surroundings.nets = iter(["wifi"] * 1000)
    clock.seconds += 400
    agent.step()
    assert agent.last_result.kind == "updated"


def test_errors_never_reach_the_app(lab: Any, hub: Any, clock: Any) -> None:
    """Whatever breaks in an update is logged and tried again later."""
    agent = make_agent(lab, lab.install("v1.2"))
    faults: list[Exception] = [NetworkError("no line"), ValueError("a bug"), NetworkError("no line")]

    def check(request: Any) -> Any:
        raise faults.pop(0)

    hub.check = check
    for _ in range(3):
        agent.step()
        clock.seconds += 3600
    assert faults == []


def test_the_thread_starts_updates_and_stops(lab: Any, hub: Any) -> None:
    """The real thread, driven by events: started once, woken by update_now, joined by stop."""
    updater = lab.install("v1.2")
    asked = threading.Semaphore(0)
    check = hub.check

    def counted(request: Any) -> Any:
        asked.release()
        return check(request)

    hub.check = counted
    agent = make_agent(lab, updater)
    agent.start()
    agent.start()
    assert asked.acquire(timeout=30)
    agent.update_now()
    assert asked.acquire(timeout=30)
    assert agent.is_running
    agent.stop()
    assert not agent.is_running
    assert [t.name for t in threading.enumerate()].count("autoglm-update") == 0
