"""Tokens, enrolment and the audit log where several hubs share a PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from autoglm.errors import ConflictError, PermissionDeniedError, StorageError
from autoglm.hub import Claims, Hub, HubConfig
from autoglm.hub.audit import LOCAL
from autoglm.hub.fleet import UNSEEN, FleetQuery
from autoglm.releases import RegistrationRequest, UpdateRequest

DEADLINE_S = 30


@pytest.fixture
def hubs(tmp_path: Path, postgres_url: str) -> Iterator[list[Hub]]:
    """Two hubs on one database."""
    config = HubConfig(tmp_path / "hub", database_url=postgres_url)
    with Hub.open(config) as one, Hub.open(config) as two:
        yield [one, two]


def superuser(url: str, *statements: str) -> None:
    """Change the database as its owner could: with the triggers turned off."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        connection.execute("ALTER TABLE audit DISABLE TRIGGER USER")
        for statement in statements:
            connection.execute(statement.encode())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Do all of these at the same moment; return results and refusals."""
    results: list[Any] = []
    gate = threading.Barrier(len(acts))

    def run(act: Callable[[], Any]) -> None:
        gate.wait()
        try:
            results.append(act())
        except (PermissionDeniedError, ConflictError) as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'mallory'",
        "DELETE FROM audit WHERE id = 1",
        "TRUNCATE audit",
        "TRUNCATE audit_head",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET number = 0",
        "INSERT INTO audit_head (id, number, hash) VALUES (2, 0, '')",
        "INSERT INTO audit SELECT * FROM audit WHERE id = 1 ON CONFLICT (id) DO UPDATE SET actor = 'mallory'",
    ],
)
def test_postgresql_refuses_to_change_the_log(hubs: list[Hub], statement: str) -> None:
    """Not even the hub's own connection can change or remove an entry."""
    with pytest.raises(StorageError, match="append-only"), hubs[0]._database.write() as session:
        session.connection().exec_driver_sql(statement)
    assert hubs[0].audit.verify().problem is None


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE id = 3", "entry 3 was changed"),
        ("DELETE FROM audit WHERE id = 3", "entry 3 is missing"),
        ("DELETE FROM audit WHERE id > 4", "ends with entry 4"),
    ],
)
def test_a_change_by_the_databases_owner_is_found(
    hubs: list[Hub], postgres_url: str, statement: str, problem: str
) -> None:
    """The chain shows the first entry that was changed or removed."""
    for _ in range(5):
        hubs[0].audit.note(LOCAL, "engine.update", "service")
    superuser(postgres_url, statement)
    assert problem in str(hubs[1].audit.verify().problem)


def test_two_hubs_make_one_chain(hubs: list[Hub]) -> None:
    """Writers at several hubs at once leave no gap and no fork."""

    def fill(hub: Hub) -> None:
        for _ in range(10):
            hub.audit.note(LOCAL, "engine.update", "service")

    at_once(*(lambda hub=hub: fill(hub) for hub in hubs * 3))
    verdict = hubs[0].audit.verify()
    assert verdict.problem is None
    assert verdict == hubs[1].audit.verify()
    assert verdict.entries >= 60


def test_the_last_use_of_a_code_goes_to_one_of_two_hubs(hubs: list[Hub]) -> None:
    """Devices at different hubs share a code's uses, and one name goes to one of them."""
    code, _ = hubs[0].enrolment.invite(uses=2)

    def enrol(hub: Hub, device_id: str) -> Any:
        return hub.enrolment.enrol(RegistrationRequest(device_id, code))

    results = at_once(*(lambda n=n: enrol(hubs[n % 2], f"d{n}") for n in range(6)))
    assert sum(not isinstance(each, Exception) for each in results) == 2
    code, _ = hubs[0].enrolment.invite(uses=9)
    results = at_once(*(lambda n=n: enrol(hubs[n % 2], "same") for n in range(6)))
    assert sum(not isinstance(each, Exception) for each in results) == 1
    assert hubs[1].enrolment.invites()[0].uses_left == 8


def test_what_one_hub_takes_back_the_other_refuses(hubs: list[Hub]) -> None:
    """Moves and revocations reach the tokens that another hub remembers."""
    one, two = hubs
    token = one.enrolment.register(RegistrationRequest("d1", groups=("staff",))).token
    person = one.issue_token(Claims("operator", "alice"))
    assert two.verify_token(token) is not None and two.verify_token(person) is not None

    def groups() -> tuple[str, ...]:
        claims = two.verify_token(token)
        return () if claims is None else claims.groups

    one.enrolment.move("d1", groups=("beta",))
    wait_until(lambda: groups() == ("beta",))
    one.revoke_token("alice")
    wait_until(lambda: two.verify_token(person) is None)
    one.forget_device("d1")
    wait_until(lambda: two.verify_token(token) is None)


def test_devices_are_listed_the_same_on_postgresql(hubs: list[Hub]) -> None:
    """Filters, order and pages do not depend on the database."""
    for number, group in enumerate(("staff", "staff_x", "staff")):
        hubs[0].enrolment.register(RegistrationRequest(f"d{number}", groups=(group,)))
    hubs[0].check(UpdateRequest("d1", "v1.2"))
    fleet = hubs[0].fleet
    found = fleet.list(FleetQuery(group="staff"))
    assert [each.device_id for each in found.devices] == ["d0", "d2"]
    assert fleet.list(FleetQuery(state=UNSEEN)).total == 2
    first = fleet.list(FleetQuery(limit=1))
    assert [each.device_id for each in first.devices] == ["d1"]
    rest = fleet.list(FleetQuery(after=first.next))
    assert [each.device_id for each in rest.devices] == ["d0", "d2"]
