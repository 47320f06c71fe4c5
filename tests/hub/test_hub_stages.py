"""Roll-outs by stages: a real hub, a clock that stands still, and devices that report as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from autoglm.errors import ConfigError, ConflictError, NotFoundError
from autoglm.hub import Actor, Claims, Hub, HubConfig, Wanted
from autoglm.hub.decision import bucket
from autoglm.hub.stages import DEFAULT_STAGES, Plan, basis_points, stage_name
from autoglm.releases import Event, EventBatch, UpdateRequest

World = Any
Clock = Any
DAY = 24 * 3600.0
GOOD = {"first_token_ms": 100.0, "tokens_per_s": 50.0, "peak_memory_bytes": 1e9, "score": 1.0}


@pytest.fixture
def live(hub: Hub, world: World) -> Hub:
    """A hub with v1.2 and v1.3 in full and the patch between them, offered to nobody."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    hub.publish(world.patches["v1.2", "v1.3"])
    return hub


class Fleet:
    """Devices that ask and report, one event after the other."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.seq = 0

    def see(self, *names: str, claims: Callable[[str], Claims | None] = lambda _: None) -> list[str]:
        """Let devices on v1.2 ask; return those that are offered something."""
        return [
            name for name in names if self.hub.check(UpdateRequest(name, "v1.2"), claims(name)).need_update
        ]

    def report(
        self, names: Iterable[str], rollout: str, result: str = "ok", code: str | None = None, **more: Any
    ) -> str:
        """Let devices report an outcome; return what the last one is told."""
        control = "continue"
        state = {"ok": "CONFIRMED", "fail": "FAILED", "progress": "DOWNLOADING"}[result]
        for name in names:
            self.seq += 1
            fields = {"from_version": "v1.2", "to_version": "v1.3"} | more
            event = Event(f"e{self.seq}", self.seq, state, result, code=code, rollout_id=rollout, **fields)
            control = self.hub.record(EventBatch(name, (event,))).control
        return control


@pytest.fixture
def fleet(live: Hub) -> Fleet:
    return Fleet(live)


def names(count: int) -> list[str]:
    return [f"dev_{number}" for number in range(count)]


def by_stages(*stages: str, **more: Any) -> Wanted:
    return Wanted(stages=stages, **more)


def staged(hub: Hub, *stages: str, **more: Any) -> Any:
    return hub.rollout_control.create("v1.3", by_stages(*stages, **more))


def now(hub: Hub, rollout: str) -> Any:
    return hub.rollout_control.get(rollout)[0]


# What an operator writes


def test_stages_add_up() -> None:
    """A group stays in while percentages grow, and a later group joins them."""
    plan = Plan.of(("staff", "1", "beta", "25%", "100"))
    assert [plan.reach(stage) for stage in range(5)] == [
        (0, ("staff",)),
        (100, ("staff",)),
        (100, ("staff", "beta")),
        (2500, ("staff", "beta")),
        (10_000, ("staff", "beta")),
    ]
    assert plan.next_points(1) == 100 and plan.next_points(2) == 2500 and plan.next_points(4) is None
    assert [stage_name(stage) for stage in plan.stages] == ["staff", "1 %", "beta", "25 %", "100 %"]
    assert basis_points("nan") is None and basis_points("0.5") == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("5", "1"),), "above"),
        ((("5", "5"),), "above"),
        ((("0",),), "above"),
        ((("101",),), "at most 100"),
        ((("staff",),), "last stage"),
        ((("staff", "staff", "5"),), "of its own"),
        ((("no such/name", "5"),), "no percentage"),
        ((("",),), "no percentage"),
        ((tuple(str(number) for number in range(1, 40)),), "at most 32"),
        ((("5",), -1.0), "soak"),
        ((("5",), float("nan")), "soak"),
        ((("5",), 1e9), "soak"),
        ((("5",), None, 0.0), "threshold"),
        ((("5",), None, 51.0), "threshold"),
        ((("5",), None, float("nan")), "threshold"),
    ],
)
def test_a_wrong_plan_is_named(arguments: tuple[Any, ...], message: str) -> None:
    """Each rule that is broken is an error that says which."""
    with pytest.raises(ConfigError, match=message):
        Plan.of(*arguments)


def test_nothing_named_means_the_default_stages(live: Hub) -> None:
    """A bare roll-out is careful; a share, a group or a region is taken at its word."""
    assert Wanted().resolve()[1] == Plan.of(DEFAULT_STAGES)
    for plain in (Wanted(5.0), Wanted(groups=("staff",)), Wanted(regions=("eu",))):
        assert plain.resolve()[1] is None
    with pytest.raises(ConfigError, match="not both"):
        live.rollout_control.create("v1.3", Wanted(5.0, stages=("5", "100")))
    with pytest.raises(NotFoundError):
        live.rollout_control.create("v9.9", Wanted())


# Going on


def test_a_roll_out_goes_through_its_stages_to_the_end(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """With results and after the soak time each stage makes way for the next, and nobody is lost."""
    devices = names(200)
    fleet.see(*devices)
    rollout = staged(live, "10", "50", "100").id
    offered: set[str] = set()
    for percent in (10, 50, 100):
        assert now(live, rollout).percent == percent
        inside = set(fleet.see(*devices))
        assert offered < inside
        fleet.report(inside - offered, rollout)
        offered |= inside
        clock.now += DAY - 1
        assert live.rollout_control.tend() == []
        clock.now += 1
        assert live.rollout_control.tend() == [rollout]
    assert offered == set(devices)
    done = now(live, rollout)
    assert (done.state, done.succeeded, done.holding) == ("done", 200, None)
    assert live.rollout_control.tend() == []
    late = fleet.see("late")
    assert late == ["late"]


def test_time_alone_advances_nothing(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Devices that were offered the release and said nothing are no evidence, however long one waits."""
    rollout = staged(live, "50", "100").id
    fleet.see(*names(40))
    for _ in range(5):
        clock.now += DAY
        assert live.rollout_control.tend() == []
    held = now(live, rollout)
    assert (held.state, held.percent) == ("active", 50)
    assert held.holding == "no device has reported in this stage" and held.soak_left_s == 0


def test_results_alone_advance_nothing(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """A stage lasts its time, also when everybody has reported in the first minute."""
    rollout = staged(live, "50", "100", soak_s=3600.0).id
    fleet.report(fleet.see(*names(40)), rollout)
    clock.now += 3599
    assert live.rollout_control.tend() == [] and now(live, rollout).soak_left_s == 1
    clock.now += 1
    assert live.rollout_control.tend() == [rollout] and now(live, rollout).percent == 100


def test_a_wide_stage_waits_for_those_that_can_still_report(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Before 25 % a small fleet waits for all of its devices, until each has reported or run out of time."""
    rollout = staged(live, "10", "25", "100").id
    inside = fleet.see(*names(100))
    fleet.report(inside[1:], rollout)
    clock.now += DAY - 10
    fleet.see(*(f"more_{number}" for number in range(400)))
    clock.now += 10
    assert live.rollout_control.tend() == []
    assert "awaited" in (now(live, rollout).holding or "")
    clock.now += DAY
    assert live.rollout_control.tend() == [rollout]


def test_a_stage_that_no_device_can_be_in_is_passed(live: Hub, fleet: Fleet) -> None:
    """No staff and nobody in the first percents: a small fleet begins where its first device is."""
    devices = names(5)
    fleet.see(*devices)
    rollout = staged(live, *DEFAULT_STAGES)
    salt = salt_of(live, rollout.id)
    least = min(bucket(salt, name) for name in devices)
    first = next(points for points in (100, 500, 2500, 5000, 10_000) if least < points)
    assert rollout.audience.basis_points == first
    assert fleet.see(*devices)


def test_staff_come_first_and_stay_in(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Devices whose token names the group are offered it in the first stage, and in all that follow."""
    token = live.issue_token(Claims("device", name="s", device_id="staff_1", groups=("staff",)))
    claims = live.verify_token(token)
    live.check(UpdateRequest("staff_1", "v1.2"), claims)
    fleet.see(*names(50))
    rollout = staged(live, "staff", "1", "100").id
    assert now(live, rollout).percent == 0 and now(live, rollout).stage == 0
    assert fleet.see(*names(50)) == []
    assert fleet.see("staff_1", claims=lambda _: claims) == ["staff_1"]
    fleet.report(["staff_1"], rollout)
    clock.now += DAY
    assert live.rollout_control.tend() == [rollout]
    assert fleet.see("staff_1", claims=lambda _: claims) == ["staff_1"]


def test_empty_stages_on_the_way_are_no_evidence(
    live: Hub, fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From staff to a share of 25 % or more, over stages that nobody is in, leads a result and no clock."""
    monkeypatch.setattr("autoglm.hub.rollout_control.new_salt", lambda: "salt")
    others = [name for name in names(20) if bucket("salt", name) >= 500][:2]
    fleet.see(*others)
    token = live.issue_token(Claims("device", name="s", device_id="staff_1", groups=("staff",)))
    claims = live.verify_token(token)
    live.check(UpdateRequest("staff_1", "v1.2"), claims)
    rollout = staged(live, *DEFAULT_STAGES, soak_s=1.0).id
    clock.now += 1
    assert live.rollout_control.tend() == [] and now(live, rollout).stage == 0
    assert fleet.see("staff_1", claims=lambda _: claims) == ["staff_1"]
    clock.now += DAY
    assert live.rollout_control.tend() == []
    assert now(live, rollout).holding == "no device has reported in this stage"
    fleet.report(["staff_1"], rollout)
    assert live.rollout_control.tend() == [rollout] and now(live, rollout).stage >= 3


def test_a_fleet_that_comes_later_begins_where_its_first_device_is(
    live: Hub, fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that none of the devices that came can be in is passed, as if the roll-out were made now."""
    monkeypatch.setattr("autoglm.hub.rollout_control.new_salt", lambda: "salt")
    rollout = staged(live, *DEFAULT_STAGES, soak_s=1.0).id
    fleet.see(*[name for name in names(20) if bucket("salt", name) >= 500][:3])
    clock.now += 1
    assert live.rollout_control.tend() == [rollout] and now(live, rollout).stage >= 3
    clock.now += DAY
    assert live.rollout_control.tend() == []


def test_a_small_fleet_with_lost_phones_gets_to_the_end(
    live: Hub, fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty devices, a tenth of which never says anything: each stage ends, with nobody to help."""
    # One draw in fifty has lost phones alone in its first stages, and rightly waits there.
    monkeypatch.setattr("autoglm.hub.rollout_control.new_salt", lambda: "salt")
    devices = names(50)
    fleet.see(*devices)
    rollout = staged(live, *DEFAULT_STAGES).id
    reported: set[str] = set()
    for _ in range(20):
        inside = [name for name in fleet.see(*devices) if int(name[4:]) % 10]
        fleet.report(set(inside) - reported, rollout)
        reported |= set(inside)
        clock.now += DAY
        live.rollout_control.tend()
    found = now(live, rollout)
    assert (found.state, found.succeeded) == ("done", 45)


def test_a_hub_that_knows_no_device_passes_no_stage(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """The first stage waits until there is a fleet, and is judged by that one."""
    rollout = staged(live, *DEFAULT_STAGES).id
    clock.now += 3 * DAY
    assert live.rollout_control.tend() == [] and now(live, rollout).stage == 0
    fleet.see(*names(300))
    assert live.rollout_control.tend() == [rollout]
    assert 1 <= now(live, rollout).stage <= 3


def test_promotion_does_not_wait(live: Hub, fleet: Fleet) -> None:
    """An operator may go on at once, up to the last stage, and the log names who did."""
    fleet.see(*names(100))
    rollout = staged(live, "10", "50", "100").id
    assert live.rollout_control.promote(rollout, actor=Actor("ann", "operator")).percent == 50
    assert live.rollout_control.promote(rollout, actor=Actor("ann", "operator")).percent == 100
    with pytest.raises(ConflictError, match="last stage"):
        live.rollout_control.promote(rollout)
    with pytest.raises(NotFoundError):
        live.rollout_control.promote("r99")
    log = live.rollout_control.get(rollout)[1]
    assert [(entry.act, entry.by) for entry in log] == [
        ("promote", "ann"),
        ("promote", "ann"),
        ("create", "local"),
    ]


def test_a_paused_roll_out_does_not_go_on(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """The soak time begins anew after a pause, and nothing is promoted meanwhile."""
    rollout = staged(live, "50", "100").id
    fleet.report(fleet.see(*names(40)), rollout)
    live.set_rollout_state(rollout, "paused")
    clock.now += 2 * DAY
    assert live.rollout_control.tend() == []
    with pytest.raises(ConflictError, match="only an active one"):
        live.rollout_control.promote(rollout)
    live.set_rollout_state(rollout, "active")
    assert live.rollout_control.tend() == []
    assert now(live, rollout).soak_left_s == DAY


def test_the_same_again_is_the_same(live: Hub, fleet: Fleet) -> None:
    """A repeated request answers with the roll-out that is there; another plan or share for it is refused."""
    fleet.see(*names(10))
    rollout = staged(live, "10", "100")
    assert staged(live, "10", "100").id == rollout.id
    for other in (by_stages("20", "100"), Wanted(50.0)):
        with pytest.raises(ConflictError, match="promote"):
            live.rollout_control.create("v1.3", other)
    assert len(live.rollouts()) == 1


def salt_of(hub: Hub, rollout: str) -> str:
    with hub._database.read() as session:
        from autoglm.hub.rollouts import find

        return find(session, rollout).salt


# Halting


def test_failures_halt_in_the_moment_they_are_reported(live: Hub, fleet: Fleet) -> None:
    """The second failure among 20 results ends the offers and cancels what is in flight, with no timer."""
    rollout = staged(live, "100", soak_s=DAY).id
    devices = fleet.see(*names(40))
    fleet.report(devices[:18], rollout)
    assert fleet.report(devices[18:19], rollout, "fail", "E_HEALTH") == "continue"
    assert fleet.report(devices[19:20], rollout, "fail", "E_HEALTH") == "cancel"
    halted = now(live, rollout)
    assert halted.state == "halted" and "2 of 20 devices failed" in (halted.reason or "")
    assert fleet.see(*devices) == []
    assert fleet.report(devices[20:21], rollout, "progress") == "cancel"


def test_a_plain_percentage_is_guarded_too(live: Hub, fleet: Fleet) -> None:
    """A roll-out without stages halts by the same rules."""
    rollout = live.create_rollout("v1.3", 100).id
    devices = fleet.see(*names(3))
    fleet.report(devices, rollout, "fail", "E_CRASH_LOOP")
    halted = now(live, rollout)
    assert halted.state == "halted" and "crash loops" in (halted.reason or "") and halted.crash_loops == 3


def test_a_threshold_of_its_own_counts(live: Hub, fleet: Fleet) -> None:
    """With 30 % allowed, five failures in twenty go on."""
    rollout = staged(live, "100", threshold_percent=30.0).id
    devices = fleet.see(*names(20))
    fleet.report(devices[:15], rollout)
    assert fleet.report(devices[15:], rollout, "fail") == "continue"


def test_a_regression_against_the_release_before_halts(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Devices that answered in 100 ms on v1.2 and take 200 ms on v1.3 halt it at the next look."""
    devices = names(30)
    first = live.create_rollout("v1.2", 100).id
    for name in devices:
        live.check(UpdateRequest(name, None))
    fleet.report(devices, first, stats=GOOD, from_version=None, to_version="v1.2")
    rollout = staged(live, "100").id
    fleet.see(*devices)
    slow = GOOD | {"first_token_ms": 200.0}
    fleet.report(devices[:19], rollout, "progress", stats=slow)
    assert live.rollout_control.tend() == []
    fleet.report(devices[19:20], rollout, "progress", stats=slow)
    assert live.rollout_control.tend() == [rollout]
    halted = now(live, rollout)
    assert halted.state == "halted" and "first token" in (halted.reason or "")
    assert ("first_token_ms", 20, 20) in halted.regressions and ("score", 20, 0) in halted.regressions


def test_equal_numbers_are_no_regression(live: Hub, fleet: Fleet) -> None:
    """The same devices with the same speed, and a few odd ones, go on."""
    devices = names(30)
    first = live.create_rollout("v1.2", 100).id
    for name in devices:
        live.check(UpdateRequest(name, None))
    fleet.report(devices, first, stats=GOOD, from_version=None, to_version="v1.2")
    rollout = staged(live, "100").id
    fleet.see(*devices)
    fleet.report(devices[:25], rollout, "progress", stats=GOOD)
    fleet.report(devices[25:], rollout, "progress", stats=GOOD | {"peak_memory_bytes": 1e300})
    assert live.rollout_control.tend() == []


def test_devices_that_fall_silent_pause_the_stage(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Begun and not heard of for a soak time: above a fifth the stage pauses; a resume forgives those."""
    rollout = staged(live, "50", "100").id
    inside = fleet.see(*names(40))
    half = len(inside) // 2
    fleet.report(inside[half:], rollout)
    fleet.report(inside[:half], rollout, "progress")
    clock.now += DAY
    assert live.rollout_control.tend() == [rollout]
    paused = now(live, rollout)
    assert paused.state == "paused" and "fell silent" in (paused.reason or "") and paused.silent == half
    live.set_rollout_state(rollout, "active")
    assert live.rollout_control.tend() == []
    clock.now += DAY
    assert live.rollout_control.tend() == [rollout]
    resumed = now(live, rollout)
    assert (resumed.state, resumed.percent, resumed.silent) == ("active", 100, 0)


def test_devices_that_never_began_do_not_pause(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """A phone that asks and waits for its Wi-Fi is no sign against the release; it is shown apart."""
    rollout = staged(live, "50", "100").id
    inside = fleet.see(*names(40))
    fleet.report(inside[:3], rollout)
    clock.now += DAY
    assert live.rollout_control.tend() == [rollout]
    found = now(live, rollout)
    assert (found.state, found.silent, found.began) == ("active", 0, 3)


def test_a_halt_can_be_overruled(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Resumed, a halted roll-out offers again, and is judged by what is reported from then on."""
    rollout = live.create_rollout("v1.3", 100).id
    devices = fleet.see(*names(50))
    fleet.report(devices[:3], rollout, "fail", "E_CRASH_LOOP")
    assert live.set_rollout_state(rollout, "active").judged == (0, 0)
    assert live.rollout_control.tend() == []
    clock.now += 1
    fleet.report(devices[3:5], rollout, "fail", "E_CRASH_LOOP")
    assert now(live, rollout).state == "active"
    fleet.report(devices[5:6], rollout, "fail", "E_CRASH_LOOP")
    again = now(live, rollout)
    assert (again.state, again.failed, again.judged) == ("halted", 6, (3, 3))


def test_a_halted_roll_out_is_not_raised_or_paused(live: Hub, fleet: Fleet) -> None:
    """It says that it is halted; only resume and abort lead on."""
    rollout = live.create_rollout("v1.3", 50).id
    fleet.report(fleet.see(*names(40))[:3], rollout, "fail", "E_CRASH_LOOP")
    with pytest.raises(ConflictError, match="halted"):
        live.create_rollout("v1.3", 100)
    with pytest.raises(ConflictError, match="halted"):
        live.set_rollout_state(rollout, "paused")
    assert live.set_rollout_state(rollout, "aborted").state == "aborted"


def test_a_finished_roll_out_is_still_guarded(live: Hub, fleet: Fleet, clock: Clock) -> None:
    """Late crash loops halt a release that had passed all of its stages."""
    rollout = staged(live, "50", "100", soak_s=10.0).id
    devices = names(60)
    fleet.report(fleet.see(*devices), rollout)
    clock.now += 10
    live.rollout_control.tend()
    fleet.report(fleet.see(*devices)[:50], rollout)
    clock.now += 20
    live.rollout_control.tend()
    assert now(live, rollout).state == "done"
    fleet.report(fleet.see("x", "y", "z"), rollout, "fail", "E_CRASH_LOOP")
    assert now(live, rollout).state == "halted"


# Hostile and disordered events


def test_nothing_counts_that_was_not_offered(live: Hub, fleet: Fleet) -> None:
    """Events of strangers, of other roll-outs, of other releases and of forged ids change no count."""
    rollout = live.create_rollout("v1.3", 100).id
    fleet.see("d1")
    fleet.report(["stranger"] * 5, rollout, "fail", "E_CRASH_LOOP")
    fleet.report(["d1"], "r99999", "fail")
    fleet.report(["d1"], "r1 OR 1=1", "fail")
    fleet.report(["d1"], rollout, "fail", to_version="v9")
    found = now(live, rollout)
    assert (found.offered, found.began, found.succeeded, found.failed) == (1, 0, 0, 0)
    assert found.state == "active"


def test_a_device_counts_once(live: Hub, fleet: Fleet) -> None:
    """One phone that reports fifty crash loops is one crash loop."""
    rollout = live.create_rollout("v1.3", 100).id
    fleet.see("d1")
    for _ in range(50):
        fleet.report(["d1"], rollout, "fail", "E_CRASH_LOOP")
    found = now(live, rollout)
    assert (found.state, found.failed, found.crash_loops) == ("active", 1, 1)


def test_clocks_years_off_change_nothing(live: Hub, fleet: Fleet) -> None:
    """What a device says the time is is kept, and never looked at."""
    rollout = live.create_rollout("v1.3", 100).id
    for name, ts in (("d1", "1970-01-01T00:00:00Z"), ("d2", "9999-12-31T23:59:59Z"), ("d3", "tomorrow")):
        fleet.see(name)
        fleet.report([name], rollout, ts=ts)
    assert now(live, rollout).succeeded == 3


def test_an_event_that_overtakes_its_offer_counts(live: Hub, config: HubConfig, clock: Clock) -> None:
    """Offered by one hub, reported to another before the first has written it down: it still counts."""
    rollout = live.create_rollout("v1.3", 100).id
    with Hub.open(config, clock=clock) as other:
        live._devices._writing.acquire()  # the first hub is slow to write
        try:
            assert live.check(UpdateRequest("d1", "v1.2")).need_update
            Fleet(other).report(["d1"], rollout, "fail", "E_HEALTH")
            assert now(other, rollout).failed == 0
        finally:
            live._devices._writing.release()
        assert now(live, rollout).failed == 1 and now(live, rollout).offered == 1


def test_two_hubs_halt_once(live: Hub, fleet: Fleet, config: HubConfig, clock: Clock) -> None:
    """Both guards see the reason; one acts, the log has one halt, and both stop offering."""
    rollout = staged(live, "50", "100").id
    inside = fleet.see(*names(40))
    half = len(inside) // 2
    fleet.report(inside[half:], rollout)
    fleet.report(inside[:half], rollout, "progress")
    clock.now += DAY
    with Hub.open(config, clock=clock) as other:
        changed = [live.rollout_control.tend(), other.rollout_control.tend()]
        assert sorted(map(len, changed)) == [0, 1]
        assert not other.check(UpdateRequest(inside[0], "v1.2")).need_update
    acts = [entry.act for entry in live.rollout_control.get(rollout)[1]]
    assert acts == ["pause", "create"]
