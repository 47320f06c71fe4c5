"""Real processes against the real hub: crash loops, second starts, reports out of order, wrong clocks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ExpiredError
from autoglm.hub import Hub as RealHub
from autoglm.hub import HubConfig
from autoglm.releases import EventAnswer, EventBatch, UpdateAnswer, UpdateRequest
from device.conftest import StillClock, World
from device.wire import Wire

# What a phone has, beside the standard library.
CARRIED = ("autoglm", "backports", "securesystemslib", "tuf", "urllib3")
PROGRAM = Path(__file__).with_name("phone.py")


class Service:
    """The real hub as the wire serves it. Reports reach it twice, the newest first."""

    def __init__(self, hub: RealHub) -> None:
        self.hub = hub
        self.told: dict[str, dict[str, Any]] = {}

    def offer(self, world: World, base: str, version: str) -> None:
        """Publish a release, in full and as a patch, to everyone."""
        self.hub.publish(world.packages[None, version])
        self.hub.publish(world.packages[base, version], percent=100)

    def check(self, request: UpdateRequest) -> UpdateAnswer:
        return self.hub.check(request)

    def record(self, batch: EventBatch) -> EventAnswer:
        self.told |= {event.event_id: event.to_json() for event in batch.events}
        for event in reversed(batch.events):
            self.hub.record(EventBatch(batch.device_id, (event,)))
        return self.hub.record(batch)

    def metadata(self, name: str) -> bytes:
        return self.hub.trust.repository.read(name)

    def package(self, sha256: str) -> Path:
        return self.hub.package_path(sha256)

    def outcomes(self) -> list[tuple[str, str | None, str | None]]:
        told = sorted(self.told.values(), key=lambda event: event["seq"])
        ends = [event for event in told if event["result"] != "progress"]
        return [(event["result"], event.get("to"), event.get("code")) for event in ends]


class Phone:
    """One phone, start after start, each a process."""

    def __init__(self, directory: Path, hub_url: str, root: Path) -> None:
        self.directory = directory
        self._command = [sys.executable, str(PROGRAM), hub_url, str(directory), str(root)]

    def start(self, *options: str) -> dict[str, Any] | int:
        """Return what the start printed, or how it ended."""
        command = [*self._command, *options, "--only", *CARRIED]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        assert done.returncode < 0, done.stderr
        return done.returncode

    def begin(self, *options: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*self._command, *options, "--only", *CARRIED], text=True, **pipes)


@pytest.fixture
def service(world: World, tmp_path: Path) -> Iterator[Service]:
    with RealHub.open(HubConfig(tmp_path / "hub"), clock=time.time) as hub:
        hub.publish(world.packages[None, "v1.2"], percent=100)
        yield Service(hub)


@pytest.fixture
def wire(service: Service) -> Iterator[Wire]:
    wire = Wire(service)
    yield wire
    wire.close()


@pytest.fixture
def phone(service: Service, wire: Wire, tmp_path: Path) -> Phone:
    root = tmp_path / "root.json"
    root.write_bytes(service.hub.trust.repository.read("1.root.json"))
    return Phone(tmp_path / "phone", wire.url, root)


def test_a_release_that_kills_its_process_on_its_first_answer_is_left_for_good(
    phone: Phone, service: Service, world: World
) -> None:
    """SIGKILL inside the first live answer, start after start: after its tries the previous release loads,
    the hub is told once, and neither it nor the device brings the bad one back; the next one is taken."""
    status = phone.start()
    assert (status["current"], status["confirmed"]) == ("v1.2", True)
    service.offer(world, "v1.2", "v1.3")
    kills = [phone.start("--deadly", "v1.3") for _ in range(3)]
    assert kills == [-signal.SIGKILL] * 3
    status = phone.start("--deadly", "v1.3")
    assert (status["current"], status["confirmed"], status["quarantined"]) == ("v1.2", True, ["v1.3"])
    for _ in range(2):
        status = phone.start("--deadly", "v1.3")
        assert (status["result"], status["current"], status["queued_events"]) == ("none", "v1.2", 0)
    assert service.outcomes() == [("ok", "v1.2", None), ("fail", "v1.3", "E_CRASH_LOOP")]
    assert [rollout.failed for rollout in service.hub.rollouts()] == [0, 1]
    service.offer(world, "v1.2", "v1.4")
    assert phone.start("--deadly", "v1.3")["current"] == "v1.4"


def test_a_second_start_is_refused_while_the_first_one_lives(phone: Phone) -> None:
    """The lock is the kernel's: it holds against other processes, and is free once its holder is killed."""
    first = phone.begin("--wait")
    assert first.stdout is not None
    assert first.stdout.readline() == "waiting\n"
    second = phone.begin()
    _, said = second.communicate()
    assert second.returncode == 1
    assert "LockedError" in said
    first.kill()
    first.communicate()
    assert phone.start()["current"] == "v1.2"


def test_a_phone_carries_its_own_dependencies_and_nothing_else(
    phone: Phone, service: Service, world: World, project_root: Path
) -> None:
    """Two whole updates over HTTP with every import refused that pyproject does not list for a phone: no
    numpy, torch, cryptography, pydantic, msgspec, FastAPI or SQLAlchemy."""
    listed = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [requirement_name(line) for line in listed]
    assert names == ["tuf", "urllib3", "backports.zstd"]
    ours = ["autoglm", "backports", "tuf", *(requirement_name(line) for line in requires("tuf") or [])]
    assert sorted(ours) == sorted(CARRIED)
    assert phone.start()["current"] == "v1.2"
    service.offer(world, "v1.2", "v1.3")
    status = phone.start()
    assert (status["result"], status["current"], status["confirmed"]) == ("updated", "v1.3", True)
    strangers = set(status["modules"]) - {*CARRIED, "__main__", "__mp_main__"}
    assert {name for name in strangers if not name.startswith("_")} == set()


def requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", line)
    assert match is not None
    return match[0]


# -- clocks ---------------------------------------------------------------------------------------------


class WrongClock(StillClock):
    """A calendar that is off by whole years; the count of seconds is right."""

    years = 0

    def now(self) -> datetime:
        return super().now() + timedelta(days=365.25 * self.years)


@pytest.fixture
def clock() -> WrongClock:
    return WrongClock()


def test_a_clock_years_behind_updates(lab: Any, hub: Any, clock: WrongClock) -> None:
    """After a flat battery it is 1970 here: what is signed says how late it is at least."""
    lab.install("v1.2")
    clock.years = -56
    hub.target = "v1.3"
    updater = lab.open()
    assert updater.update().kind == "updated"
    updater = lab.open()
    clock.years = 0
    lab.prove(updater)
    assert updater.status().confirmed
    assert all((event.get("ms") or 0) >= 0 for event in hub.events)


def test_a_clock_years_ahead_installs_nothing_and_stops_nothing(
    lab: Any, hub: Any, clock: WrongClock
) -> None:
    """Everything looks expired: the old release serves on, and once the clock is right the update comes."""
    lab.install("v1.2")
    clock.years = 30
    hub.target = "v1.3"
    updater = lab.open()
    result = updater.update()
    assert (result.kind, result.code) == ("failed", ExpiredError.code)
    assert "2056" in (result.message or "")
    assert updater.status().current == "v1.2"
    clock.years = 0
    assert updater.update().kind == "updated"


@pytest.mark.parametrize("years", [(0, -20, 20, 0), (0, 20, -20, 0), (-5, -6, -7, 0)])
def test_a_clock_that_jumps_during_an_update_changes_nothing(
    lab: Any, hub: Any, clock: WrongClock, make_runtime: Any, years: tuple[int, ...]
) -> None:
    """Between trial, restarts and verdict: the release is proved by answers and seconds of uptime."""
    updater = lab.install("v1.2")
    hub.target = "v1.3"
    clock.years = years[0]
    assert updater.update(make_runtime("v1.2")).kind == "updated"
    for jump in years[1:]:
        clock.years = jump
        updater = lab.open()
        updater.attach(make_runtime("v1.3"))
        assert updater.status().current == "v1.3"
        updater.answered(True)
        updater.close()
    updater = lab.open()
    lab.prove(updater)
    assert (updater.status().current, updater.status().confirmed) == ("v1.3", True)
    assert hub.outcomes() == [("ok", "v1.3", None)]
