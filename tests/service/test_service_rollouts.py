"""Roll-outs over HTTP, and the guard that runs in the service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests

from autoglm.hub import Claims
from autoglm.hub.timer import GuardTimer

DEADLINE_S = 60


@pytest.fixture
def staged(start_service: Any, store: Path) -> Any:
    """A service with v1.3 published and in a staged roll-out, r2, which has not reached anybody yet."""
    service = start_service()
    with (store / "v1.3.wpatch").open("rb") as content:
        assert service.admin("POST", "/releases", data=content).status_code == 201
    body = {"version": "v1.3", "stages": ["staff", "0.01", "100"], "soak_s": 3600.0, "threshold_percent": 1.0}
    answer = service.admin("POST", "/rollouts", json=body)
    assert answer.status_code == 201, answer.text
    return service


def test_a_staged_roll_out_is_made_promoted_and_ended(staged: Any) -> None:
    """Each answer is the roll-out as it is then, with stages, counts and reasons; its log names the token."""
    made = staged.admin("GET", "/rollouts/r2").json()["rollout"]
    assert made["stages"] == ["staff", "0.01", "100"] and made["threshold_percent"] == 1.0
    assert {"offered", "succeeded", "failed", "silent", "lower_bound_percent", "holding"} <= set(made)
    last = made["stage"] == 2
    promoted = staged.admin("POST", "/rollouts/r2/promote")
    assert promoted.status_code == (409 if last else 200)
    assert staged.admin("PATCH", "/rollouts/r2", json={"state": "aborted"}).json()["state"] == "aborted"
    log = staged.admin("GET", "/rollouts/r2").json()["log"]
    assert log[0]["act"] == "abort" and log[0]["by"] == "embedded-admin"
    assert staged.admin("POST", "/rollouts/r2/promote").status_code == 409


def test_a_release_is_taken_back_over_http(staged: Any) -> None:
    """The answer is the roll-out that offers the old bytes to the devices of the bad release."""
    answer = staged.admin("POST", "/rollouts/r2/rollback", json={})
    assert answer.status_code == 201, answer.text
    remedy = answer.json()
    assert (remedy["rollback_of"], remedy["from_versions"], remedy["state"]) == ("r2", ["v1.3"], "active")
    assert staged.admin("GET", "/rollouts/r2").json()["rollout"]["state"] == "aborted"


def test_a_dry_run_an_explanation_and_the_past(staged: Any) -> None:
    """Looking needs no more than a viewer's token, and changes nothing."""
    hub = staged.state.hub
    headers = {"authorization": f"Bearer {hub.issue_token(Claims('viewer', name='eye'))}"}
    staged.post("/v1/model/update", {"device_id": "d1", "current_version": "v1.2"})

    def ask(method: str, path: str, **more: Any) -> Any:
        return requests.request(method, f"{staged.url}/v1/admin{path}", headers=headers, timeout=60, **more)

    body = {"version": "v1.3", "percent": 50.0}
    found = ask("POST", "/rollouts/preview", json=body).json()
    assert found["version"] == "v1.3" and found["known"] >= 1 and len(found["stages"]) == 1
    assert ask("GET", "/devices/d1/explain").json()["version"] == "v1.2"
    assert ask("GET", "/devices/nobody/explain").status_code == 404
    assert ask("GET", "/devices/nobody/explain?version=v1.2").status_code == 200
    moment = ask("GET", "/history", params={"version": "v1.2"}).json()
    assert "d1" in [device["device_id"] for device in moment["devices"]]
    assert ask("GET", "/history", params={"at": 5.0}).json()["versions"] == {}
    for method, path in (("POST", "/rollouts"), ("POST", "/rollouts/r2/promote"), ("PATCH", "/rollouts/r2")):
        assert ask(method, path, json=body).status_code == 403
    assert len(hub.rollouts()) == 2


def test_an_operator_takes_back(staged: Any) -> None:
    """``rollouts:write`` is enough: the hub signs with a key of its own; a publisher's token is refused."""
    for claims, status in ((Claims("publisher", name="pub"), 403), (Claims("operator", name="op"), 201)):
        token = staged.state.hub.issue_token(claims)
        answer = requests.post(
            f"{staged.url}/v1/admin/rollouts/r2/rollback",
            json={},
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "change",
    [
        {"stages": ["5", "1"]},
        {"stages": ["5"], "percent": 5.0},
        {"stages": ["staff"]},
        {"soak_s": -1.0},
        {"threshold_percent": 0.0},
        {"threshold_percent": 99.0},
        {"stages": [""]},
        {"nonsense": 1},
        {"percent": "5"},
    ],
)
def test_a_roll_out_that_makes_no_sense_is_refused(service: Any, change: dict[str, Any]) -> None:
    """Each is a 400 with the reason, for the dry run too."""
    for path in ("/rollouts", "/rollouts/preview"):
        answer = service.admin("POST", path, json={"version": "v1.2"} | change)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("query", ["at=-1", "at=nan", "at=1e300", "limit=-1", "limit=99999999", "at=x"])
def test_a_time_that_makes_no_sense_is_refused(service: Any, query: str) -> None:
    """The history answers 400 to what is no time and no number."""
    assert service.admin("GET", f"/history?{query}").status_code == 400


def test_the_guard_runs_in_the_service(start_service: Any) -> None:
    """Its thread is there while the service is, and no longer."""
    import threading

    start_service()
    assert "rollout-guard" in [thread.name for thread in threading.enumerate()]


def test_the_guard_outlives_errors() -> None:
    """A look that fails is followed by the next one."""
    import threading

    done, calls = threading.Event(), [0]

    def tend() -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise ValueError("a bug")
        done.set()

    with GuardTimer(tend, every_s=0.001):
        deadline = time.monotonic() + DEADLINE_S
        assert done.wait(deadline - time.monotonic())
