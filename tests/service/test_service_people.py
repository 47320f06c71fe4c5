"""Registration, codes, tokens and the audit log over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import requests

from autoglm.device import HttpTransport, Updater, enrol
from autoglm.errors import ConflictError, PermissionDeniedError
from autoglm.hub import Claims
from autoglm.service.access import ENROLMENTS_PER_MINUTE
from service.running import RunningService, running_service, tiny_settings

REGISTER = "/v1/model/register"


@pytest.fixture(scope="module")
def postgres_service(
    postgres: Any, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[RunningService]:
    """A hub without a model, with its tables in PostgreSQL."""
    where = {"database_url": postgres.new_database()}
    settings = tiny_settings(store, tmp_path_factory.mktemp("postgres-hub"), role="hub", hub=where)
    with running_service(settings) as running:
        yield running


def invite(service: Any, **wanted: Any) -> str:
    answer = service.admin("POST", "/invites", json=wanted)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()["code"]


def audited(service: Any, what: str) -> list[dict[str, Any]]:
    return service.admin("GET", "/audit", params={"what": what}).json()["entries"]


def test_a_device_enrols_and_follows_its_group(start_service: Any, store: Path, tmp_path: Path) -> None:
    """From the code to the update: with authentication required, only the group's device gets the release."""
    service = start_service(auth={"required": True})
    service.admin("POST", "/releases", data=(store / "v1.3.wpatch").read_bytes(), params={"group": "staff"})
    service.build_packages()
    for name, group, expected in (("inside", "staff", "v1.3"), ("outside", "beta", "v1.2")):
        root, transport = tmp_path / name, HttpTransport(service.url)
        enrol(root, transport, invite(service, groups=[group]), device_id=name)
        trust = service.state.hub.trust.repository.root
        with Updater(root, hub_url=service.url, trust_root=trust) as updater:
            assert updater.update().to_version == expected
        transport.close()


def test_what_a_device_says_of_itself_counts_for_nothing(start_service: Any, store: Path) -> None:
    """Groups and region of a registration come from the code, in the update check from the token."""
    service = start_service()
    service.admin("POST", "/releases", data=(store / "v1.3.wpatch").read_bytes(), params={"region": "moon"})
    service.build_packages()
    lie = {"device_id": "liar", "code": invite(service, region="eu"), "groups": ["staff"], "region": "moon"}
    answer = service.post(REGISTER, lie)
    assert answer.status_code == 201
    assert (answer.json()["groups"], answer.json()["region"]) == ([], "eu")
    headers = {"authorization": f"Bearer {answer.json()['token']}"}
    check = {"device_id": "liar", "current_version": "v1.2", "region": "moon", "groups": ["staff"]}
    assert service.post("/v1/model/update", check, headers=headers).json()["need_update"] is False
    service.admin("PATCH", "/devices/liar", json={"region": "moon"})
    assert service.post("/v1/model/update", check, headers=headers).json()["target_version"] == "v1.3"
    assert service.post("/v1/model/update", check).json()["need_update"] is False


def test_two_devices_at_once_share_no_single_use(start_service: Any) -> None:
    """One of them is registered, the other one gets 403, and nothing of it is stored."""
    service = start_service()
    code, statuses = invite(service), []
    gate = threading.Barrier(6)

    def attempt(number: int) -> None:
        gate.wait()
        statuses.append(service.post(REGISTER, {"device_id": f"d{number}", "code": code}).status_code)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 403, 403, 403, 403, 403]
    devices = service.admin("GET", "/devices").json()["devices"]
    assert len([each for each in devices if each["registered_at"] is not None]) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "E_MESSAGE"),
        (b"\xff", 400, "invalid_json"),
        (b"[" * 60_000, 400, "invalid_json"),
        ({"code": "enrol-1"}, 400, "E_MESSAGE"),
        ({"device_id": "a b", "code": "x"}, 400, "E_MESSAGE"),
        ({"device_id": "../etc", "code": "x"}, 400, "E_MESSAGE"),
        ({"device_id": "d\0", "code": "x"}, 400, "E_MESSAGE"),
        ({"device_id": "x" * 129, "code": "x"}, 400, "E_MESSAGE"),
        ({"device_id": "d", "code": 5}, 400, "E_MESSAGE"),
        ({"device_id": "d", "code": "x" * 65}, 400, "E_MESSAGE"),
        ({"device_id": "d", "code": ""}, 403, "E_PERMISSION"),
        ({"device_id": "d", "code": "enrol-' OR 1=1"}, 403, "E_PERMISSION"),
        ({"device_id": "d"}, 401, "invalid_api_key"),
        ({"device_id": "d", "code": None}, 401, "invalid_api_key"),
        ({"device_id": "d", "groups": ["a/b"]}, 400, "E_MESSAGE"),
        (b" " * 70_000, 413, "body_too_large"),
    ],
)
def test_a_registration_that_does_not_fit_is_refused(
    start_service: Any, body: Any, status: int, code: str
) -> None:
    """A typed 4xx, and nothing is stored."""
    service = start_service()
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    answer = requests.post(service.url + REGISTER, timeout=60, **sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert service.admin("GET", "/devices", params={"state": "UNSEEN"}).json()["total"] == 0
    assert audited(service, "device") == []


def test_guessing_codes_is_slow(start_service: Any) -> None:
    """An address has so many attempts a minute; an administrator's registrations are not counted."""
    service = start_service()
    service.admin("GET", "/devices")  # so that the administrator's token is known to be right
    guess = {"device_id": "d", "code": "enrol-0000"}
    statuses = [service.post(REGISTER, guess).status_code for _ in range(ENROLMENTS_PER_MINUTE + 2)]
    assert statuses == [403] * ENROLMENTS_PER_MINUTE + [429] * 2
    headers = {"authorization": f"Bearer {service.token}"}
    assert service.post(REGISTER, {"device_id": "d"}, headers=headers).status_code == 201
    service.state.hub.behind.flush()
    refused = audited(service, "access.refused")
    assert sum(entry["details"]["times"] for entry in refused) == ENROLMENTS_PER_MINUTE
    assert "enrol-0000" not in json.dumps(refused)


def test_the_sdk_names_the_refusal(start_service: Any, tmp_path: Path) -> None:
    """A used-up code and a name that is taken reach the app as errors of their own."""
    service = start_service()
    transport, code = HttpTransport(service.url), invite(service)
    enrol(tmp_path / "one", transport, code, device_id="d1")
    with pytest.raises(PermissionDeniedError, match="ask the operator"):
        enrol(tmp_path / "two", transport, code, device_id="d2")
    with pytest.raises(ConflictError, match="d1"):
        enrol(tmp_path / "two", transport, invite(service), device_id="d1")
    assert not (tmp_path / "two" / "device.token").exists()
    transport.close()


def test_a_device_is_shown_moved_and_forgotten(start_service: Any) -> None:
    """The operator's view follows the device from registration to the end."""
    service = start_service()
    headers = {"authorization": f"Bearer {service.token}"}
    registered = service.post(REGISTER, {"device_id": "d@1:x", "groups": ["staff"]}, headers=headers).json()
    assert service.post(REGISTER, {"device_id": "d@1:x"}, headers=headers).status_code == 409
    assert service.admin("GET", "/devices/d@1:x").json()["groups"] == ["staff"]
    moved = service.admin("PATCH", "/devices/d@1:x", json={"groups": ["beta"], "region": "eu"}).json()
    assert moved == {"device_id": "d@1:x", "groups": ["beta"], "region": "eu"}
    moved = service.admin("PATCH", "/devices/d@1:x", json={"region": None}).json()
    assert moved == {"device_id": "d@1:x", "groups": ["beta"], "region": None}
    listed = service.admin("GET", "/devices", params={"group": "beta"}).json()
    assert [each["device_id"] for each in listed["devices"]] == ["d@1:x"]
    assert service.admin("DELETE", "/devices/d@1:x").json()["tokens_revoked"] == 1
    assert service.admin("GET", "/devices/d@1:x").status_code == 404
    assert service.state.hub.verify_token(registered["token"]) is None
    for method, path in (("PATCH", "/devices/none"), ("DELETE", "/devices/none"), ("DELETE", "/invites/i9")):
        assert service.admin(method, path, json={}).status_code == 404


def test_tokens_are_made_listed_and_revoked(start_service: Any) -> None:
    """The secret is in one answer, which is not cached; afterwards there is its record only."""
    service = start_service()
    made = service.admin("POST", "/tokens", json={"name": "alice", "role": "operator", "expires_in_s": 3600})
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    token = made.json()["token"]
    listed = service.admin("GET", "/tokens", params={"live": True})
    assert "alice" in listed.text and token not in listed.text
    assert requests.get(
        f"{service.url}/v1/admin/rollouts", headers={"authorization": f"Bearer {token}"}, timeout=60
    ).ok
    assert service.admin("DELETE", "/tokens/alice").json() == {"name": "alice", "revoked": 1}
    assert service.admin("DELETE", "/tokens/alice").status_code == 404
    assert [entry["what"] for entry in audited(service, "token")] == [
        "token.revoke",
        "token.create",
        "token.create",
    ]
    assert token not in service.admin("GET", "/audit").text


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"},
        {"name": "x", "role": "root"},
        {"name": "a b", "role": "viewer"},
        {"name": "x", "role": "viewer", "scopes": ["tokens:write"]},
        {"name": "x", "role": "viewer", "expires_in_s": 0},
        {"name": "x", "role": "viewer", "expires_in_s": True},
        {"name": "x", "role": "viewer", "extra": 1},
        {"name": "x", "role": "device"},
        {"name": "local", "role": "viewer"},
        {"name": "x", "role": "device", "device_id": "d1", "groups": ["a/b"]},
        {"name": "x", "role": "device", "device_id": "d1", "groups": ["a"] * 33},
    ],
)
def test_a_token_that_breaks_a_rule_is_not_made(service: Any, body: dict[str, Any]) -> None:
    """400, naming what is wrong."""
    assert service.admin("POST", "/tokens", json=body).status_code == 400


def test_a_narrow_admin_cannot_make_itself_wide(start_service: Any) -> None:
    """``tokens:write`` alone makes no admin, and says which permission is missing."""
    service = start_service()
    token = service.state.hub.issue_token(Claims("admin", "issuer", scopes=("tokens:write",)))
    answer = service.post(
        "/v1/admin/tokens",
        {"name": "x", "role": "admin"},
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 403
    assert "your token lacks" in answer.json()["error"]["message"]


def test_the_acting_person_is_in_the_log(start_service: Any, store: Path) -> None:
    """Every administrative change over HTTP is under the name of its token, with its address."""
    service = start_service()
    admin = service.state.hub.issue_token(Claims("admin", "carol"))
    headers = {"authorization": f"Bearer {admin}"}

    def call(method: str, path: str, **options: Any) -> None:
        answer = requests.request(
            method, f"{service.url}/v1/admin{path}", headers=headers, timeout=60, **options
        )
        assert answer.ok, answer.text

    call("POST", "/releases", data=(store / "v1.3.wpatch").read_bytes())
    call("POST", "/rollouts", json={"version": "v1.3", "percent": 1})
    call("PATCH", "/rollouts/r2", json={"state": "paused"})
    call("POST", "/engine/update")
    call("POST", "/releases/v1.3/revoke")
    call("POST", "/invites", json={})
    call("DELETE", "/invites/i1")
    call("POST", "/tokens", json={"name": "dave", "role": "viewer"})
    call("DELETE", "/tokens/dave")
    found = service.admin("GET", "/audit", params={"who": "carol"}).json()["entries"]
    assert {entry["address"] for entry in found} == {"127.0.0.1"}
    kinds = [entry["what"].split(".")[0] for entry in reversed(found)]
    assert kinds == [
        "release",
        "rollout",
        "rollout",
        "engine",
        "rollout",  # aborted with the release that is called back
        "release",
        "invite",
        "invite",
        "token",
        "token",
    ]
    verdict = service.admin("GET", "/audit/verify").json()
    assert verdict["whole"] is True
    anchor = f"{verdict['entries']}:{verdict['hash']}"
    assert service.admin("GET", "/audit/verify", params={"anchor": anchor}).json()["whole"] is True
    assert service.admin("GET", "/audit/verify", params={"anchor": "nonsense"}).status_code == 400


_NUL = "a%00b"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", f"/devices?version={_NUL}", None, 400),
        ("GET", f"/devices?group={_NUL}", None, 400),
        ("GET", f"/devices?after=1:{_NUL}", None, 400),
        ("GET", f"/devices/{_NUL}", None, 400),
        ("DELETE", f"/devices/{_NUL}", None, 400),
        ("GET", f"/devices/{_NUL}/explain", None, 400),
        ("GET", f"/audit?who={_NUL}", None, 400),
        ("DELETE", f"/tokens/{_NUL}", None, 400),
        ("POST", f"/releases/{_NUL}/revoke", None, 400),
        ("GET", f"/history?version={_NUL}", None, 400),
        ("POST", "/rollouts", {"version": "a\0b", "percent": 5}, 400),
        ("DELETE", "/tokens/t9999999999", None, 404),
        ("DELETE", "/invites/i9999999999", None, 404),
        ("GET", "/tokens?after=2147483648", None, 400),
    ],
)
def test_a_value_that_no_table_holds_is_the_callers_fault(
    postgres_service: Any, method: str, path: str, body: object, status: int
) -> None:
    """NUL bytes and numbers that PostgreSQL cannot hold are refused, never an error of the server."""
    answer = postgres_service.admin(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert "SELECT" not in answer.text
