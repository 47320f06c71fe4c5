"""The life of a roll-out: every order of acts, rollbacks, dry runs, explanations, and what was when."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine

from autoglm.errors import ConflictError, NotFoundError, SignatureError
from autoglm.hub import LOCAL, Actor, Claims, Hub, HubConfig, Wanted
from autoglm.hub.database import Database
from autoglm.hub.decision import bucket
from autoglm.hub.population import People, Person, reach_of, stage_of
from autoglm.hub.preview import preview
from autoglm.hub.records import Audience
from autoglm.hub.rollouts import GUARD, MOVES, Draft, change_state, enter, find, move, plan_of, put_rollout
from autoglm.hub.stages import DEFAULT_STAGES, Plan
from autoglm.hub.tables import ReleaseRow, RolloutLogRow, RolloutRow
from autoglm.hub.worker import Worker
from autoglm.releases import Event, EventBatch, UpdateRequest

World = Any
Clock = Any


# Buckets


def test_a_million_ids_fall_evenly_and_a_raise_loses_nobody() -> None:
    """Of 1,000,000 devices 10 % are in to a tenth of a point, and all of those still at 25 %."""
    at_10 = at_25 = lost = 0
    for number in range(1_000_000):
        place = bucket("0123456789abcdef", f"dev_{number}")
        at_10 += place < 1000
        at_25 += place < 2500
        lost += place < 1000 and not place < 2500
    assert abs(at_10 - 100_000) <= 1000 and abs(at_25 - 250_000) <= 1500 and lost == 0


def test_stages_let_in_more_and_more() -> None:
    """Each device has one first stage, and the share of each stage is the one that its name says."""
    reach = reach_of(Plan.of(DEFAULT_STAGES))
    people = [Person(f"dev_{number}", None, 0, Claims("device")) for number in range(100_000)]
    first = [stage_of(reach, "salt", person) for person in people]
    for stage, share in ((1, 0.01), (2, 0.05), (3, 0.25), (4, 0.5), (5, 1.0)):
        inside = sum(each is not None and each <= stage for each in first)
        assert abs(inside / len(people) - share) < 0.005


# The state machine


class RolloutLife(RuleBasedStateMachine):
    """Acts in any order, on the real functions over a real database."""

    path = Path()
    number = 0

    @initialize()
    def begin(self) -> None:
        RolloutLife.number += 1
        self.database = Database(f"sqlite:///{self.path / f'{self.number}.sqlite'}")
        self.now, self.highest, self.was_aborted = 1000.0, 0, False
        with self.database.write() as session:
            release = ReleaseRow(
                model="m", variant="v", version="v1", counter=1, folder="f", manifest_sha256="a",
                manifest=b"", created_at=0.0,
            )  # fmt: skip
            session.add(release)
            session.flush()
            draft = Draft(Plan.of(("1", "10", "100")))
            put_rollout(session, release, Audience.of(None), self.now, draft)

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()

    @rule(state=st.sampled_from(["active", "paused", "aborted"]))
    def ask(self, state: Any) -> None:
        self.now += 1
        with self.database.write() as session:
            before = find(session, "r1").state
            try:
                row = change_state(session, "r1", state, self.now)
            except ConflictError:
                assert find(session, "r1").state == before
                return
            assert row.state == state or (state == "active" and row.state == "done")

    @rule(act=st.sampled_from(["halt", "pause", "finish"]))
    def guard(self, act: str) -> None:
        self.now += 1
        with self.database.write() as session:
            row = find(session, "r1")
            allowed = row.state in MOVES[act][0]
            assert move(session, row, act, GUARD, self.now, reason="seen") is allowed
            assert not allowed or row.state == MOVES[act][1]

    @rule()
    def advance(self) -> None:
        self.now += 1
        with self.database.write() as session:
            row = find(session, "r1")
            if row.stage < plan_of(row).last:
                assert enter(session, row, row.stage + 1, "advance", GUARD, self.now) is (
                    row.state == "active" and row.stage > 0
                )

    @rule()
    def act_on_what_has_changed(self) -> None:
        """A step that was decided on an older state does nothing."""
        self.now += 1
        with self.database.read() as session:
            stale = find(session, "r1")
            session.expunge(stale)
        with self.database.write() as session:
            moved = move(session, find(session, "r1"), "pause", LOCAL, self.now)
        if moved:
            with self.database.write() as session:
                row = session.merge(stale, load=False)
                assert not move(session, row, "halt", GUARD, self.now, reason="old news")
                assert row.state == "paused"

    @invariant()
    def hold(self) -> None:
        if not hasattr(self, "database"):
            return
        with self.database.read() as session:
            row = find(session, "r1")
            self.was_aborted |= row.state == "aborted"
            assert not self.was_aborted or row.state == "aborted", "aborting is final"
            assert row.basis_points == plan_of(row).reach(row.stage)[0] >= self.highest
            self.highest = row.basis_points
            last = session.query(RolloutLogRow).order_by(RolloutLogRow.id.desc()).first()
            assert last is not None
            assert (last.state, last.stage, last.basis_points) == (row.state, row.stage, row.basis_points)


def test_no_order_of_acts_breaks_a_roll_out(tmp_path: Path) -> None:
    """It never shrinks, aborting is final, stale steps do nothing, and the log always ends with what is."""
    RolloutLife.path = tmp_path
    run_state_machine_as_test(
        RolloutLife,
        settings=settings(
            max_examples=25,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


# Taking a release back


@pytest.fixture
def live(hub: Hub, world: World) -> Hub:
    """A hub with v1.2 and v1.3 in full and the patch between them, offered to nobody."""
    hub.publish(world.full["v1.2"])
    hub.publish(world.full["v1.3"])
    hub.publish(world.patches["v1.2", "v1.3"])
    return hub


def report(hub: Hub, device: str, rollout: str, seq: int, result: str = "ok", **more: Any) -> str:
    state = "CONFIRMED" if result == "ok" else "FAILED"
    fields = {"from_version": "v1.2", "to_version": "v1.3"} | more
    event = Event(f"{device}-{seq}", seq, state, result, rollout_id=rollout, **fields)
    return hub.record(EventBatch(device, (event,))).control


def build(hub: Hub) -> None:
    worker = Worker(hub.config)
    while worker.run_once():
        pass
    worker.close()


def test_a_release_is_taken_back(live: Hub) -> None:
    """Its devices are offered the old bytes as a new, signed, higher release; the others are left alone."""
    bad = live.create_rollout("v1.3", 100).id
    live.check(UpdateRequest("took", "v1.2"))
    report(live, "took", bad, 1)
    remedy = live.rollout_control.roll_back(bad, actor=Actor("ann", "operator"))
    assert (remedy.version, remedy.rollback_of, remedy.state) == ("v1.2.r14", bad, "active")
    old, new = live.release("v1.2").manifest, live.release("v1.2.r14").manifest
    assert new.files == old.files and new.counter == 14
    signed = live.trust.repository.release(new.model, new.variant, new.version)
    assert signed is not None and signed.manifest_sha256 == new.sha256
    build(live)
    offered = live.check(UpdateRequest("took", "v1.3"))
    assert (offered.target_version, offered.rollout_id, offered.kind) == ("v1.2.r14", remedy.id, "patch")
    assert not live.check(UpdateRequest("other", "v1.2")).need_update
    assert report(live, "took", bad, 2, "fail") == "cancel"
    log = live.rollout_control.get(bad)[1]
    assert [(e.act, e.by) for e in log] == [("rollback", "ann"), ("abort", "ann"), ("create", "local")]


def test_taking_back_twice_is_taking_back_once(live: Hub) -> None:
    """A second request answers with the same roll-out, and publishes nothing."""
    bad = live.create_rollout("v1.3", 100).id
    first = live.rollout_control.roll_back(bad)
    assert live.rollout_control.roll_back(bad).id == first.id
    assert len(live.releases()) == 3 and len(live.rollouts()) == 2


def test_all_roll_outs_of_a_bad_release_end(live: Hub) -> None:
    """The one to staff and the one to everybody are both over."""
    staff = live.create_rollout("v1.3", 100, groups=["staff"]).id
    live.rollout_control.roll_back(live.create_rollout("v1.3", 100).id)
    assert live.rollout_control.get(staff)[0].state == "aborted"


def test_the_release_to_return_to_can_be_named(live: Hub, package_of: Callable[..., Path]) -> None:
    """An older one goes out again under the name given; a newer one is offered as it is."""
    live.publish(package_of("v1.4", 14))
    bad = live.create_rollout("v1.3", 100).id
    assert live.rollout_control.roll_back(bad, to="v1.4").version == "v1.4"
    other = live.create_rollout("v1.4", 100).id
    assert live.rollout_control.roll_back(other, to="v1.2", version="v1.5").version == "v1.5"
    with pytest.raises(NotFoundError):
        live.rollout_control.roll_back(other, to="v0.1")
    with pytest.raises(ConflictError, match="itself"):
        live.rollout_control.roll_back(other, to="v1.4")


def test_only_devices_of_the_roll_out_say_where_they_came_from(hub: Hub, world: World) -> None:
    """Events of devices that were offered nothing do not choose the release to return to."""
    for version in ("v1.1", "v1.2", "v1.3"):
        hub.publish(world.full[version])
    bad = hub.create_rollout("v1.3", 100).id
    hub.check(UpdateRequest("took", "v1.2"))
    report(hub, "took", bad, 1)
    for number in range(3):
        report(hub, f"stranger_{number}", bad, 1, from_version="v1.1")
    assert hub.rollout_control.roll_back(bad).version == "v1.2.r14"


def test_without_reports_a_release_that_was_stopped_itself_comes_last(hub: Hub, world: World) -> None:
    """The newest before the bad one, unless each of its own roll-outs was halted or aborted."""
    for version in ("v1.1", "v1.2", "v1.3"):
        hub.publish(world.full[version])
    hub.set_rollout_state(hub.create_rollout("v1.2", 100).id, "aborted")
    bad = hub.create_rollout("v1.3", 100).id
    assert hub.rollout_control.roll_back(bad).version == "v1.1.r14"


def test_a_release_that_was_taken_back_to_before_keeps_a_short_name(
    live: Hub, package_of: Callable[..., Path]
) -> None:
    """Going back to ``v1.2.r14`` makes ``v1.2.r16``."""
    live.rollout_control.roll_back(live.create_rollout("v1.3", 100).id)
    live.publish(package_of("v1.4", 15))
    bad = live.create_rollout("v1.4", 100).id
    assert live.rollout_control.roll_back(bad, to="v1.2.r14").version == "v1.2.r16"


def test_nothing_before_is_said(hub: Hub, world: World) -> None:
    """The first release of all cannot be taken back, and its roll-out goes on."""
    rollout = hub.publish(world.full["v1.2"], percent=100).rollout
    assert rollout is not None
    with pytest.raises(NotFoundError, match=r"before v1\.2"):
        hub.rollout_control.roll_back(rollout.id)
    assert hub.rollouts()[0].state == "active"


def test_without_the_release_key_it_says_what_to_run(live: Hub, config: HubConfig, clock: Clock) -> None:
    """The offers end all the same; the commands for the machine that has the key are in the message."""
    bad = live.create_rollout("v1.3", 100).id
    for key in (config.directory / "trust" / "keys").glob("*releases*"):
        key.unlink()
    with Hub.open(config, clock=clock) as keyless:
        assert not keyless.trust.repository.holds_release_key
        with pytest.raises(SignatureError, match=r"--version v1\.2\.r14 --keys DIR.* --to v1\.2\.r14"):
            keyless.rollout_control.roll_back(bad)
        assert keyless.rollout_control.get(bad)[0].state == "aborted"
        assert not keyless.check(UpdateRequest("d", "v1.2")).need_update


# Looking ahead


def test_a_dry_run_says_whom_and_how_much(live: Hub) -> None:
    """Devices by stage, region and group, bytes and patches; and nothing is made."""
    for number in range(60):
        live.check(UpdateRequest(f"dev_{number}", "v1.2"))
    for number in range(20):
        live.check(UpdateRequest(f"odd_{number}", "something else"))
    live.check(UpdateRequest("new_1", "v1.3"))
    token = live.issue_token(Claims("device", "s", "dev_0", ("staff",), "eu"))
    assert token
    found = live.rollout_control.preview("v1.3", Wanted(stages=("staff", "50", "100"))).to_json()
    assert (found["known"], found["devices"], found["ahead"], found["not_for"]) == (81, 80, 1, 0)
    assert [stage["stage"] for stage in found["stages"]] == ["staff", "50 %", "100 %"]
    assert found["stages"][0]["devices"] == 1 and found["stages"][-1]["total"] == 80
    assert found["patch_hit_rate"] == 60 / 80 and found["waiting"] == 0
    sizes = {(row.from_version, row.to_version): row.size for row in live.packages() if row.size}
    assert found["bytes"] == 60 * (sizes["v1.2", "v1.3"] or 0) + 20 * (sizes[None, "v1.3"] or 0)
    assert {"region": "eu", "group": "staff", "in": 1, "out": 0} in found["places"]
    only = live.rollout_control.preview("v1.3", Wanted(groups=("staff",))).to_json()
    assert (only["devices"], only["not_for"]) == (1, 79)
    assert live.rollouts() == []


def test_a_dry_run_takes_a_hundred_thousand_devices(live: Hub) -> None:
    """It adds up exactly, whatever the size of the fleet."""
    people = People(
        tuple(
            Person(f"dev_{number}", "v1.2", 12, Claims("device", groups=("beta",) if number % 10 else ()))
            for number in range(100_000)
        )
    )
    row = RolloutRow(
        basis_points=10_000, salt="s", groups=["beta"], regions=[], from_versions=[],
        stages=list(DEFAULT_STAGES), stage=0,
    )  # fmt: skip
    snapshot = live._snapshots.current()
    found = preview(people, row, snapshot, "v1.3", time.time()).to_json()
    assert (found["devices"], found["not_for"]) == (90_000, 10_000)
    assert sum(stage["devices"] for stage in found["stages"]) == 90_000


# Explaining


def test_an_explanation_names_rule_bucket_and_stage(live: Hub) -> None:
    """It is the decision's own story: in or out, and why, roll-out by roll-out."""
    token = live.issue_token(Claims("device", "s", "dev_1", ("staff",), "eu"))
    claims = live.verify_token(token)
    live.check(UpdateRequest("dev_1", "v1.2"), claims)
    live.check(UpdateRequest("dev_2", "v1.2"))
    rollout = live.rollout_control.create("v1.3", Wanted(stages=("staff", "100"))).id
    paused = live.create_rollout("v1.3", 100, regions=["eu"]).id
    live.set_rollout_state(paused, "paused")
    inside = live.rollout_control.explain("dev_1").to_json()
    assert (inside["kind"], inside["target_version"], inside["rollout_id"]) == ("patch", "v1.3", rollout)
    assert (inside["groups"], inside["region"]) == (["staff"], "eu")
    outside = live.rollout_control.explain("dev_2").to_json()
    assert outside["kind"] == "none"
    first, second = outside["rollouts"]
    assert not first["is_in"] and first["stage"] == "staff" and f"bucket {first['bucket']}" in first["why"]
    assert second["state"] == "paused" and "paused" in second["why"]
    assert live.rollout_control.explain("never_seen", "v1.3").kind == "none"
    with pytest.raises(NotFoundError, match="never seen"):
        live.rollout_control.explain("never_seen")


def test_a_failure_is_part_of_the_explanation(live: Hub) -> None:
    """A device on which the release failed is offered it no more, and one can read so."""
    rollout = live.create_rollout("v1.3", 100).id
    live.check(UpdateRequest("dev_1", "v1.2"))
    report(live, "dev_1", rollout, 1, "fail", code="E_HEALTH")
    found = live.rollout_control.explain("dev_1")
    assert found.failed == ("v1.3",) and found.kind == "none"
    assert "failed on this device" in found.rules[0]["why"]


def test_an_expired_token_is_credited_nowhere(live: Hub, clock: Clock) -> None:
    """Explanation and dry run give a device the groups that its token proves now, as the decision does."""
    soon = Claims("device", "s", "dev_1", ("staff",), "eu", expires_at=clock.now + 10)
    live.check(UpdateRequest("dev_1", "v1.2"), live.verify_token(live.issue_token(soon)))
    wanted = Wanted(stages=("staff", "100"))
    assert live.rollout_control.explain("dev_1").claims.groups == ("staff",)
    assert live.rollout_control.preview("v1.3", wanted).to_json()["stages"][0]["devices"] == 1
    clock.now += 10
    assert live.rollout_control.explain("dev_1").claims.groups == ()
    assert live.rollout_control.preview("v1.3", wanted).to_json()["stages"][0]["devices"] == 0


# Looking back


def test_the_past_can_be_asked(live: Hub, clock: Clock) -> None:
    """What each device ran, what was offered, and how the roll-outs stood, at three times."""
    start = clock.now
    live.check(UpdateRequest("d1", "v1.2"))
    live.check(UpdateRequest("d2", "v1.2"))
    live.devices()
    clock.now += 100
    rollout = live.create_rollout("v1.3", 100).id
    live.check(UpdateRequest("d1", "v1.2"))
    report(live, "d1", rollout, 1)
    clock.now += 100
    live.set_rollout_state(rollout, "aborted")
    live.check(UpdateRequest("d1", "v1.2"))
    before = live.rollout_control.look_back(start - 1)
    assert (before.versions, before.rollouts, before.offers) == ({}, (), {})
    first = live.rollout_control.look_back(start + 50, version="v1.2")
    assert first.versions == {"v1.2": 2} and [name for name, _, _ in first.devices] == ["d1", "d2"]
    then = live.rollout_control.look_back(start + 150, version="v1.3").to_json()
    assert then["versions"] == {"v1.2": 1, "v1.3": 1} and then["offered"] == {"v1.3": 1}
    assert then["devices"] == [{"device_id": "d1", "version": "v1.3", "since": start + 100}]
    assert [entry["state"] for entry in then["rollouts"]] == ["active"]
    last = live.rollout_control.look_back()
    assert last.versions == {"v1.2": 2} and last.rollouts[0].state == "aborted"


def test_the_log_grows_only_when_something_changes(live: Hub, config: HubConfig) -> None:
    """A thousand checks of a device that runs the same are one row."""
    for _ in range(20):
        live.check(UpdateRequest("d1", "v1.2"))
        live.devices()
    engine = create_engine(f"sqlite:///{config.directory / 'hub.sqlite'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM device_versions").scalar() == 1
    engine.dispose()
