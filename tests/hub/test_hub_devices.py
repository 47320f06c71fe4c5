"""Checks, events and roll-outs, as devices and operators meet them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from autoglm.errors import ConfigError, ConflictError, NotFoundError, PermissionDeniedError
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.releases import Event, EventBatch, UpdateAnswer, UpdateRequest

World = Any
pytestmark = pytest.mark.parametrize("backend", ["sqlite", "postgresql"], indirect=True)
Clock = Any


@pytest.fixture
def live(hub: Hub, world: World) -> Hub:
    """A hub with v1.2 and v1.3 in full and the patch between them, offered to nobody."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    hub.publish(world.patches["v1.2", "v1.3"])
    return hub


def event(number: int, state: str = "CONFIRMED", result: str = "ok", **more: Any) -> Event:
    return Event(f"event-{number}", number, state, result, to_version="v1.3", **more)


def test_a_release_is_offered_to_nobody_by_itself(live: Hub) -> None:
    """Publishing alone changes nothing for any device."""
    assert live.check(UpdateRequest("d1", "v1.2")).to_json() == {
        "need_update": False,
        "target_version": None,
        "download_url": None,
    }


def test_an_offer_has_all_that_a_device_verifies(live: Hub, world: World) -> None:
    """The answer survives the wire, and each number and hash in it is that of the file offered."""
    live.create_rollout("v1.3", 100)
    sent = live.check(UpdateRequest("d1", "v1.2"), base_url="https://hub.example")
    answer = UpdateAnswer.from_json(sent.to_json())
    assert answer == sent
    assert answer.manifest_sha256 == world.manifest("v1.3").sha256 and answer.counter == 13
    assert answer.download_url == f"https://hub.example/v1/model/packages/{answer.sha256}.wpatch"
    assert answer.sha256 is not None and answer.full_sha256 is not None
    assert live.package_path(answer.sha256).stat().st_size == answer.size
    assert live.package_path(answer.full_sha256).read_bytes() == world.full["v1.3"].read_bytes()
    assert answer.rollout_id == "r1" and answer.attempt_id and answer.retry_after_s


def test_the_hub_that_stops_a_roll_out_offers_no_more_of_it(live: Hub) -> None:
    """After a pause, a resume, and the guard's halt, the very next check is decided by it."""
    rollout = live.create_rollout("v1.3", 100).id
    for state, offers in (("paused", False), ("active", True)) * 3:
        live.set_rollout_state(rollout, state)
        assert live.check(UpdateRequest("d1", "v1.2")).need_update is offers
    for number in range(3):
        live.check(UpdateRequest(f"bad_{number}", "v1.2"))
        failed = event(number, "FAILED", "fail", code="E_CRASH_LOOP", rollout_id=rollout)
        live.record(EventBatch(f"bad_{number}", (failed,)))
    assert not live.check(UpdateRequest("d1", "v1.2")).need_update


def test_attempts_are_unique(live: Hub) -> None:
    """Two offers can be told apart, even to the same device."""
    live.create_rollout("v1.3", 100)
    ids = {live.check(UpdateRequest("d1", "v1.2")).attempt_id for _ in range(50)}
    assert len(ids) == 50


@pytest.mark.parametrize(
    "name", ["../hub.sqlite", "..%2fadmin.token", "", "x" * 64, "A" * 64, "a" * 64, "a" * 63 + "/", "\0" * 64]
)
def test_only_packages_can_be_downloaded(live: Hub, name: str) -> None:
    """Nothing but the hash of a stored package names a file."""
    with pytest.raises(NotFoundError):
        live.package_path(name)


def test_release_files_cannot_be_downloaded(live: Hub, world: World) -> None:
    """The objects that make up a release are in the same store and not for download."""
    for file in world.manifest("v1.3").files:
        with pytest.raises(NotFoundError):
            live.package_path(file.sha256)


def test_a_percentage_is_sticky_and_raising_adds(live: Hub) -> None:
    """Setting a higher percentage keeps every device that was in, as one and the same roll-out."""
    devices = [f"dev_{number}" for number in range(400)]

    def offered() -> set[str]:
        return {device for device in devices if live.check(UpdateRequest(device, "v1.2")).need_update}

    first = live.create_rollout("v1.3", 10)
    at_10 = offered()
    assert offered() == at_10 and 15 < len(at_10) < 70
    assert live.create_rollout("v1.3", 40).id == first.id
    at_40 = offered()
    assert at_10 < at_40 and len(at_40) < 230


def test_rollouts_to_different_groups_are_different(live: Hub) -> None:
    """The same release may go to staff in full and to all in part."""
    staff = live.create_rollout("v1.3", 100, groups=["staff"])
    everyone = live.create_rollout("v1.3", 0)
    assert staff.id != everyone.id
    claims = Claims("device", name="d", groups=("staff",))
    assert live.check(UpdateRequest("d1", "v1.2"), claims).rollout_id == staff.id
    assert not live.check(UpdateRequest("d1", "v1.2")).need_update


def test_a_paused_rollout_offers_nothing_until_resumed(live: Hub) -> None:
    """Pause and resume take effect with the next check."""
    rollout = live.create_rollout("v1.3", 100)
    live.set_rollout_state(rollout.id, "paused")
    assert not live.check(UpdateRequest("d1", "v1.2")).need_update
    with pytest.raises(ConflictError, match="resume it first"):
        live.create_rollout("v1.3", 50)
    live.set_rollout_state(rollout.id, "active")
    assert live.check(UpdateRequest("d1", "v1.2")).need_update


def test_aborting_is_final(live: Hub) -> None:
    """An aborted roll-out stays so; a new one of the same release has a salt of its own."""
    rollout = live.create_rollout("v1.3", 100)
    assert live.set_rollout_state(rollout.id, "aborted").state == "aborted"
    assert not live.check(UpdateRequest("d1", "v1.2")).need_update
    with pytest.raises(ConflictError, match="final"):
        live.set_rollout_state(rollout.id, "active")
    assert live.create_rollout("v1.3", 100).id != rollout.id


def test_bad_rollout_arguments_are_named(live: Hub) -> None:
    """Each refusal is typed and says which argument is wrong."""
    with pytest.raises(NotFoundError, match=r"v9\.9"):
        live.create_rollout("v9.9", 10)
    with pytest.raises(ConfigError, match="percent"):
        live.create_rollout("v1.3", 101)
    for name in ("r0", "r9", "1", "r1; drop", "", "r99999999999"):
        with pytest.raises(NotFoundError):
            live.set_rollout_state(name, "paused")
    live.create_rollout("v1.3", 1)
    with pytest.raises(ConfigError, match="state"):
        live.set_rollout_state("r1", "deleted")  # type: ignore[arg-type]


def test_another_process_halts_the_rollout(live: Hub, config: HubConfig) -> None:
    """A change made by one process decides the next check in every other."""
    live.create_rollout("v1.3", 100)
    assert live.check(UpdateRequest("d1", "v1.2")).need_update
    script = (
        "import sys; from pathlib import Path; from autoglm.hub import Hub, HubConfig\n"
        "with Hub.open(HubConfig(Path(sys.argv[1]), sys.argv[2] or None)) as hub:"
        " hub.set_rollout_state('r1', 'paused')"
    )
    arguments = [str(config.directory), config.database_url or ""]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    deadline = time.monotonic() + (10 if config.database_url else 0)
    while live.check(UpdateRequest("d1", "v1.2")).need_update and time.monotonic() < deadline:
        time.sleep(0.01)  # a database server tells its clients a moment later
    assert not live.check(UpdateRequest("d1", "v1.2")).need_update


def test_devices_are_listed_as_last_seen(live: Hub, clock: Clock) -> None:
    """A check leaves the device's version and time, the first time kept."""
    live.check(UpdateRequest("d1", "v1.1"))
    live.devices()
    clock.now += 100
    live.check(UpdateRequest("d1", "v1.2"))
    live.check(UpdateRequest("d2", "something else"))
    seen = {device.device_id: device for device in live.devices()}
    assert seen["d1"].version == "v1.2" and seen["d2"].version == "something else"
    assert seen["d1"].seen_at - seen["d1"].first_seen_at == 100
    assert len(live.devices(limit=1)) == 1


def test_a_check_that_cannot_be_written_does_not_end_the_writing(live: Hub) -> None:
    """What no table can hold costs its own batch at most; the devices that ask afterwards are seen."""
    live.check(UpdateRequest("d1", "\ud800"))
    with contextlib.suppress(ValueError):
        live.devices()
    live.check(UpdateRequest("d2", "v1.2"))
    assert "d2" in [device.device_id for device in live.devices()]
    assert any(thread.name == "hub-devices" and thread.is_alive() for thread in threading.enumerate())


def test_sightings_survive_a_close(live: Hub, config: HubConfig) -> None:
    """What waits to be written is written when the hub closes."""
    live.check(UpdateRequest("d1", "v1.2"))
    live._devices.close()
    with Hub.open(config) as again:
        assert [device.device_id for device in again.devices()] == ["d1"]


def test_an_event_counts_once(live: Hub) -> None:
    """Sent twice, in one batch or in two, an event is accepted each time and counted once."""
    rollout = live.create_rollout("v1.3", 100).id
    live.check(UpdateRequest("d1", "v1.2"))
    batch = EventBatch("d1", (event(1, rollout_id=rollout), event(1, rollout_id=rollout)))
    for _ in range(2):
        answer = live.record(batch)
        assert answer.accepted == ("event-1",) and answer.control == "continue"
    counted = live.rollouts()[0]
    assert (counted.offered, counted.succeeded, counted.failed) == (1, 1, 0)


def test_one_device_cannot_shadow_anothers_event(live: Hub) -> None:
    """The same event id from two devices is two events."""
    rollout = live.create_rollout("v1.3", 100).id
    for device in ("d1", "d2"):
        live.check(UpdateRequest(device, "v1.2"))
        live.record(EventBatch(device, (event(1, rollout_id=rollout),)))
    assert live.rollouts()[0].succeeded == 2


def test_late_events_do_not_turn_time_back(live: Hub) -> None:
    """Events out of order leave the device where the newest one put it."""
    live.record(EventBatch("d1", (event(5),)))
    live.record(
        EventBatch("d1", (event(3, "FAILED", "fail", code="E_HEALTH"), event(4, "TRIAL", "progress")))
    )
    device = live.devices()[0]
    assert (device.version, device.state, device.result) == ("v1.3", "CONFIRMED", "ok")


def test_a_devices_newest_result_counts(live: Hub) -> None:
    """A device that failed and then succeeded is a success, and the other way round a failure."""
    rollout = live.create_rollout("v1.3", 100).id
    fail = {"state": "FAILED", "result": "fail", "rollout_id": rollout}
    for device in ("d1", "d2", "d3"):
        live.check(UpdateRequest(device, "v1.2"))
    live.record(EventBatch("d1", (event(1, **fail), event(2, rollout_id=rollout))))
    live.record(EventBatch("d2", (event(2, **fail), event(1, rollout_id=rollout))))
    live.record(EventBatch("d3", (event(1, "TRIAL", "progress", rollout_id=rollout),)))
    counted = live.rollouts()[0]
    assert (counted.succeeded, counted.failed) == (1, 1)


def test_a_check_before_an_event_is_not_written_after_it(live: Hub) -> None:
    """The version confirmed by an event is not overwritten by an older sighting that waited."""
    live.check(UpdateRequest("d1", "v1.2"))
    live.record(EventBatch("d1", (event(1),)))
    assert live.devices()[0].version == "v1.3"


@pytest.mark.parametrize(("state", "control"), [("paused", "pause"), ("aborted", "cancel")])
def test_a_halt_reaches_devices_in_flight(live: Hub, state: Any, control: str) -> None:
    """The answer to an event tells a device whose roll-out was halted."""
    rollout = live.create_rollout("v1.3", 100).id
    live.set_rollout_state(rollout, state)
    batch = EventBatch("d1", (event(1, "DOWNLOADING", "progress", rollout_id=rollout),))
    assert live.record(batch).control == control


def test_events_of_unknown_rollouts_are_kept_without_one(live: Hub) -> None:
    """An event about a roll-out that is not ours is stored and stops nothing."""
    answer = live.record(EventBatch("d1", (event(1, rollout_id="r77"), event(2, rollout_id="x' OR 1=1"))))
    assert answer.accepted == ("event-1", "event-2") and answer.control == "continue"


def test_an_empty_batch_is_fine(live: Hub) -> None:
    """A device with nothing to say may say so."""
    assert live.record(EventBatch("d1", ())).accepted == ()


def test_a_token_speaks_only_for_its_device(live: Hub) -> None:
    """Claims bound to one device are refused from any other."""
    claims = Claims("device", name="d1", device_id="d1")
    live.check(UpdateRequest("d1", "v1.2"), claims)
    with pytest.raises(PermissionDeniedError):
        live.check(UpdateRequest("d2", "v1.2"), claims)
    with pytest.raises(PermissionDeniedError):
        live.record(EventBatch("d2", ()), claims)


@pytest.mark.parametrize(
    "claims", [Claims("viewer", name="eve"), Claims("admin", name="a"), Claims("device")]
)
def test_a_token_of_no_device_leaves_no_trace_of_one(live: Hub, claims: Claims) -> None:
    """It may ask what a device would be offered; neither a sighting, an offer nor an event comes of it."""
    rollout = live.create_rollout("v1.3", 100)
    assert live.check(UpdateRequest("d1", "v1.2"), claims).need_update
    with pytest.raises(PermissionDeniedError, match="own token"):
        live.record(EventBatch("d1", (event(1, rollout_id=rollout.id),)), claims)
    assert live.devices() == []
    assert live.rollouts()[-1].offered == 0


def test_a_decision_can_be_explained(live: Hub) -> None:
    """The reason is one sentence, and asking leaves no trace."""
    live.create_rollout("v1.3", 100)
    assert live.explain(UpdateRequest("d1", "v1.3")).reason == "the device is up to date"
    assert live.devices() == []


def test_the_hub_says_what_it_holds(live: Hub) -> None:
    """The summary counts releases, roll-outs and unfinished builds."""
    assert live.info().to_json() == {
        "model": "autoglm-phone-9b",
        "variant": "nano-int8",
        "version": "v1.3",
        "releases": 2,
        "active_rollouts": 0,
        "unfinished_packages": 0,
    }
    live.create_rollout("v1.2", 100)
    assert live.info().active_rollouts == 1
    assert [release.manifest.version for release in live.releases()] == ["v1.2", "v1.3"]
    with pytest.raises(NotFoundError, match=r"v7"):
        live.release("v7")


def test_checks_and_events_go_on_while_a_release_is_published(hub: Hub, world: World) -> None:
    """Threads that check and report during a publish meet no error, and see the release when it is there."""
    hub.publish(world.full["v1.2"], percent=100)

    def live_on(device: str) -> set[str | None]:
        seen: set[str | None] = set()
        for number in range(150):
            seen.add(hub.check(UpdateRequest(device, "v1.1")).target_version)
            hub.record(EventBatch(device, (event(number, "IDLE", "progress"),)))
        return seen

    with ThreadPoolExecutor(5) as pool:
        devices = [pool.submit(live_on, f"d{number}") for number in range(4)]
        pool.submit(hub.publish, world.full["v1.3"], percent=100).result()
        assert hub.check(UpdateRequest("d9", "v1.1")).target_version == "v1.3"
        assert all(device.result() <= {"v1.2", "v1.3"} for device in devices)
