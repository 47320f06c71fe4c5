"""The audit log: in the same transaction as the act, not to be changed, and found out when it is."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import NotFoundError, StorageError
from autoglm.hub import Actor, Claims, Hub, HubConfig
from autoglm.hub.audit import HUB, LOCAL, AuditQuery, audit
from autoglm.hub.behind import BUDGET, UNKNOWN
from autoglm.releases import RegistrationRequest

ALICE = Actor.of(Claims("operator", "alice"), "10.0.0.7")


def whats(hub: Hub, **query: Any) -> list[str]:
    return [entry.what for entry in reversed(hub.audit.list(AuditQuery(**query)))]


def behind_its_back(config: HubConfig, *statements: str) -> None:
    """Change the database as somebody would who owns the file, triggers and all."""
    with contextlib.closing(sqlite3.connect(config.directory / "hub.sqlite")) as raw:
        for name in ("audit_no_update", "audit_no_delete", "audit_head_no_delete", "audit_head_forward"):
            raw.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            raw.execute(statement)
        raw.commit()


def fill(hub: Hub, count: int = 5) -> None:
    for number in range(count):
        hub.audit.note(ALICE, "engine.update", f"service-{number}")


def test_every_change_through_the_hub_is_written_down(hub: Hub, world: Any, clock: Any) -> None:
    """Publishing, roll-outs, calling back, tokens, devices and codes, each with who, when, what and where."""
    hub.publish(world.full["v1.2"], percent=100, actor=ALICE)
    hub.revoke_release("v1.2", ALICE)
    hub.issue_token(Claims("viewer", "eye"), LOCAL)
    hub.revoke_token("eye", ALICE)
    hub.enrolment.register(RegistrationRequest("d1", groups=("staff",)), ALICE)
    hub.enrolment.move("d1", region="cn-east", actor=ALICE)
    _, invite = hub.enrolment.invite(actor=ALICE)
    hub.enrolment.revoke_invite(invite.id, ALICE)
    hub.forget_device("d1", ALICE)
    found = whats(hub)
    for what in (
        "release.publish",
        "release.revoke",
        "token.create",
        "token.revoke",
        "device.register",
        "device.move",
        "invite.create",
        "invite.revoke",
        "device.forget",
    ):
        assert what in found
    moved = hub.audit.list(AuditQuery(what="device.move"))[0]
    assert (moved.who, moved.role, moved.address, moved.at) == ("alice", "operator", "10.0.0.7", clock.now)
    assert moved.details["before"] == {"groups": ["staff"], "region": None}
    assert moved.details["after"] == {"groups": ["staff"], "region": "cn-east"}
    assert hub.audit.verify().problem is None


def test_an_act_that_fails_is_not_written_down(hub: Hub) -> None:
    """Act and entry are one transaction: an exception undoes both."""
    before = whats(hub)
    with pytest.raises(NotFoundError):
        hub.revoke_token("nobody")
    with pytest.raises(RuntimeError), hub._database.write() as session:
        audit(session, LOCAL, "engine.update", "service")
        raise RuntimeError
    assert whats(hub) == before
    assert hub.audit.verify().problem is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'mallory'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 3",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET number = 0",
        "REPLACE INTO audit_head (id, number, hash) SELECT id, 0, hash FROM audit_head",
        "REPLACE INTO audit SELECT id, at, 'mallory', role, act, subject, details, address, previous, hash"
        " FROM audit WHERE id = 2",
    ],
)
def test_the_database_refuses_to_change_the_log(hub: Hub, statement: str) -> None:
    """Not even the hub's own connection can change or remove an entry."""
    fill(hub)
    with pytest.raises(StorageError, match="append-only"), hub._database.write() as session:
        session.connection().exec_driver_sql(statement)
    assert hub.audit.verify().problem is None


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE id = 3", "entry 3 was changed"),
        ("UPDATE audit SET details = '{}' WHERE id = 1", "entry 1 was changed"),
        ("UPDATE audit SET at = at + 1 WHERE id = 4", "entry 4 was changed"),
        ("DELETE FROM audit WHERE id = 3", "entry 3 is missing"),
        ("DELETE FROM audit WHERE id = 1", "entry 1 is missing"),
        ("DELETE FROM audit WHERE id > 4", "ends with entry 4"),
        ("DELETE FROM audit", "ends with entry 0"),
        ("UPDATE audit SET id = 99 WHERE id = 2", "entry 2 is missing"),
        (
            "INSERT INTO audit (id, at, actor, role, act, subject, details, previous, hash)"
            " SELECT 50, at, actor, role, act, subject, details, previous, hash FROM audit WHERE id = 2",
            "put in without the hub",
        ),
    ],
)
def test_a_change_behind_the_databases_back_is_found(
    hub: Hub, config: HubConfig, statement: str, problem: str
) -> None:
    """The chain shows the first entry that was changed, removed or put in."""
    fill(hub)
    behind_its_back(config, statement)
    verdict = hub.audit.verify()
    assert verdict.problem is not None and problem in verdict.problem


def test_a_log_that_was_written_anew_lacks_the_anchor(hub: Hub, config: HubConfig, tmp_path: Path) -> None:
    """A chain that fits again is found out by an entry noted before; an honest longer log is not."""
    fill(hub)
    noted = hub.audit.verify()
    fill(hub)
    anchor = (noted.entries, noted.hash)
    assert hub.audit.verify(anchor).problem is None
    with Hub.open(HubConfig(tmp_path / "other")) as other:
        fill(other, 20)
        assert other.audit.verify().problem is None
        assert "written anew" in str(other.audit.verify(anchor).problem)


def test_writers_at_once_make_one_chain(hub: Hub) -> None:
    """Many threads write; no number is missing, none is there twice."""
    threads = [threading.Thread(target=fill, args=(hub,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verdict = hub.audit.verify()
    assert verdict.problem is None
    assert verdict.entries >= 40


def test_entries_are_found_by_who_what_when_and_page(hub: Hub, clock: Any) -> None:
    """Each filter narrows, a kind stands for its acts, and pages follow on without a gap."""
    fill(hub, 3)
    clock.now += 100
    hub.audit.note(HUB, "rollout.halt", "r1", {"why": "crash loops"})
    hub.audit.note(LOCAL, "rollouts", "r1")
    assert whats(hub, who="hub", what="rollout") == ["rollout.halt"]
    assert whats(hub, since=clock.now) == ["rollout.halt", "rollouts"]
    assert whats(hub, until=clock.now - 1, who="alice") == ["engine.update"] * 3
    assert whats(hub, subject="service-2") == ["engine.update"]
    everything = hub.audit.list()
    pages = [hub.audit.list(AuditQuery(limit=2))]
    while pages[-1]:
        pages.append(hub.audit.list(AuditQuery(limit=2, before=pages[-1][-1].number)))
    assert [entry for page in pages for entry in page] == everything


def test_what_is_said_is_bounded(hub: Hub) -> None:
    """A huge detail is cut short rather than refused, and so is a long subject."""
    hub.audit.note(LOCAL, "metadata.accept", "x" * 10_000, {"names": ["y" * 100] * 1000, "odd": "\u2028\x7f"})
    entry = hub.audit.list()[0]
    assert len(entry.subject) == 200
    assert len(entry.details["cut_short"]) <= 1024
    assert hub.audit.verify().problem is None


def test_refusals_cannot_fill_the_disk(hub: Hub, clock: Any) -> None:
    """A flood of different refusals is a bounded number of entries and one that counts the rest."""
    before = hub.audit.list()[0].number
    for number in range(5000):
        hub.behind.refused(Actor("unknown", "none", f"10.0.{number % 250}.{number // 250}"), "GET /x", "no")
    hub.behind.flush()
    new = [entry for entry in hub.audit.list(AuditQuery(limit=1000)) if entry.number > before]
    assert len(new) <= BUDGET
    assert sum(entry.details["times"] for entry in new) == 5000
    for _ in range(3):
        hub.behind.refused(UNKNOWN, "GET /x", "no")
        hub.behind.flush()
    clock.now += 3600
    hub.behind.refused(UNKNOWN, "GET /y", "no")
    hub.behind.flush()
    assert hub.audit.list()[0].subject == "GET /y"


def test_the_log_survives_a_restart(config: HubConfig) -> None:
    """Opening again goes on with the chain."""
    with Hub.open(config) as hub:
        fill(hub)
    with Hub.open(config) as hub:
        fill(hub)
        assert hub.audit.verify().problem is None


def test_refusals_of_the_last_second_are_written_at_closing(config: HubConfig) -> None:
    """What was remembered is there after an orderly end."""
    with Hub.open(config) as hub:
        hub.behind.refused(UNKNOWN, "GET /x", "no")
    with Hub.open(config) as hub:
        assert "access.refused" in whats(hub)
