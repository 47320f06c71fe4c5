"""Every route with every kind of credential: who is let in, and who is turned away how.

The table is written by hand, so that a change of the permissions, or a new route, has to be wanted here too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.routing import iter_route_contexts

from autoglm.hub import Claims
from autoglm.hub.credentials import new_token
from autoglm.hub.permissions import ROLES
from autoglm.releases import RegistrationRequest
from autoglm.service.app import create_app
from service.running import RunningService, running_service, tiny_settings

ALL = "viewer operator publisher admin device"
READERS = "viewer operator publisher admin"
CHECK = {"device_id": "d1", "current_version": "v1.2"}


@dataclass(frozen=True)
class Case:
    """One route: who may call it while authentication is required, and how it is called here.

    Attributes:
        roles: who may; ``*`` for everyone, with or without a token.
        path: the path to call; nothing that it names is there.
        body: a JSON body that changes nothing.
    """

    roles: str
    path: str
    body: Any = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_admin(self) -> bool:
        return self.path.startswith("/v1/admin") or self.path in ("/v1/model/register", "/metrics")


SHA = "0" * 64
PATIENT = {"failures_per_minute": 0}  # hundreds of wrong tokens come from one address here
MATRIX = {
    "GET /openapi.json": Case("*", "/openapi.json"),
    "GET /docs": Case("*", "/docs"),
    "GET /health": Case("*", "/health"),
    "GET /ready": Case("*", "/ready"),
    "GET /metrics": Case(READERS, "/metrics"),
    "POST /v1/completions": Case(ALL, "/v1/completions", {}),
    "POST /v1/embeddings": Case(ALL, "/v1/embeddings", {}),
    "POST /v1/audio/transcriptions": Case(ALL, "/v1/audio/transcriptions", {}),
    "POST /v1/chat/completions": Case(ALL, "/v1/chat/completions", {}),
    "GET /v1/models": Case(ALL, "/v1/models"),
    "GET /v1/models/{name}": Case(ALL, "/v1/models/none"),
    "GET /v1/model/info": Case(ALL, "/v1/model/info"),
    "POST /v1/model/update": Case(ALL, "/v1/model/update", CHECK),
    "POST /v1/model/events": Case("device", "/v1/model/events", {"device_id": "d1", "events": []}),
    "GET /v1/model/metadata/{name}": Case(ALL, "/v1/model/metadata/9.none.json"),
    "GET /v1/model/packages/{sha256}.wpatch": Case(READERS, f"/v1/model/packages/{SHA}.wpatch"),
    "HEAD /v1/model/packages/{sha256}.wpatch": Case(READERS, f"/v1/model/packages/{SHA}.wpatch"),
    "POST /v1/model/register": Case("admin", "/v1/model/register", {"device_id": "spare"}),
    "GET /v1/admin/releases": Case(READERS, "/v1/admin/releases"),
    "POST /v1/admin/releases": Case("publisher admin", "/v1/admin/releases", {}),
    "POST /v1/admin/releases/{version}/revoke": Case("publisher admin", "/v1/admin/releases/v9/revoke"),
    "POST /v1/admin/metadata": Case("publisher admin", "/v1/admin/metadata", {}),
    "GET /v1/admin/packages": Case(READERS, "/v1/admin/packages"),
    "GET /v1/admin/rollouts": Case(READERS, "/v1/admin/rollouts"),
    "POST /v1/admin/rollouts": Case("operator admin", "/v1/admin/rollouts", {}),
    "POST /v1/admin/rollouts/preview": Case(READERS, "/v1/admin/rollouts/preview", {}),
    "GET /v1/admin/rollouts/{rollout_id}": Case(READERS, "/v1/admin/rollouts/r9"),
    "POST /v1/admin/rollouts/{rollout_id}/promote": Case("operator admin", "/v1/admin/rollouts/r9/promote"),
    "POST /v1/admin/rollouts/{rollout_id}/rollback": Case(
        "operator admin", "/v1/admin/rollouts/r9/rollback", {}
    ),
    "GET /v1/admin/devices/{device_id}/explain": Case(READERS, "/v1/admin/devices/none/explain"),
    "GET /v1/admin/history": Case(READERS, "/v1/admin/history"),
    "PATCH /v1/admin/rollouts/{rollout_id}": Case("operator admin", "/v1/admin/rollouts/r9", {}),
    "GET /v1/admin/devices": Case(READERS, "/v1/admin/devices"),
    "GET /v1/admin/devices/{device_id}": Case(READERS, "/v1/admin/devices/none"),
    "PATCH /v1/admin/devices/{device_id}": Case("admin", "/v1/admin/devices/none", {}),
    "DELETE /v1/admin/devices/{device_id}": Case("admin", "/v1/admin/devices/none"),
    "GET /v1/admin/invites": Case(READERS, "/v1/admin/invites"),
    "POST /v1/admin/invites": Case("admin", "/v1/admin/invites", {"uses": 0}),
    "DELETE /v1/admin/invites/{invite_id}": Case("admin", "/v1/admin/invites/i999"),
    "GET /v1/admin/tokens": Case("admin", "/v1/admin/tokens"),
    "POST /v1/admin/tokens": Case("admin", "/v1/admin/tokens", {}),
    "DELETE /v1/admin/tokens/{name}": Case("admin", "/v1/admin/tokens/none"),
    "GET /v1/admin/audit": Case(READERS, "/v1/admin/audit"),
    "GET /v1/admin/audit/verify": Case(READERS, "/v1/admin/audit/verify"),
    "GET /v1/admin/engine": Case(READERS, "/v1/admin/engine"),
    "POST /v1/admin/engine/update": Case("operator admin", "/v1/admin/engine/update"),
    "POST /v1/admin/engine/stage": Case("operator admin", "/v1/admin/engine/stage"),
    "POST /v1/admin/engine/commit": Case("operator admin", "/v1/admin/engine/commit"),
    "POST /v1/admin/engine/discard": Case("operator admin", "/v1/admin/engine/discard"),
    "POST /v1/admin/engine/rollback": Case("operator admin", "/v1/admin/engine/rollback"),
}
SPEAKS_FOR_A_DEVICE = {"POST /v1/model/update", "POST /v1/model/events"}


@dataclass
class House:
    """A service, with the credentials that are tried on it.

    Attributes:
        good: a token of each role; the device's is bound to ``d1``.
        bad: what must open nothing.
    """

    service: RunningService
    good: dict[str, str]
    bad: dict[str, str]

    def status(self, name: str, token: str | None, **headers: str) -> int:
        method, case = name.split()[0], MATRIX[name]
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        response = requests.request(
            method, self.service.url + case.path, json=case.body, headers=headers, timeout=60
        )
        assert response.status_code < 500, (name, response.text)
        if token and len(token) > 20:
            assert token not in response.text
        return response.status_code


def make_house(service: RunningService) -> House:
    hub = service.state.hub
    assert hub is not None
    good = {
        role: hub.issue_token(Claims(role, role, device_id="d1" if role == "device" else None))
        for role in ROLES
    }
    revoked = hub.issue_token(Claims("admin", "gone"))
    hub.revoke_token("gone")
    expired = hub.issue_token(Claims("admin", "late", expires_at=hub.now() - 1))
    hub.enrolment.register(RegistrationRequest("spare"))
    other = hub.issue_token(Claims("device", "other", device_id="d2"))
    admin = good["admin"]
    flipped = admin[:20] + ("a" if admin[20] != "a" else "b") + admin[21:]
    forged = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none"}, {"role": "admin", "device_id": "d1", "groups": ["staff"]}, "")
    )
    bad = {
        "empty": "",
        "word": "EMPTY",
        "truncated": admin[:-1],
        "tampered": flipped,
        "forged": forged,
        "unknown": new_token(),
        "revoked": revoked,
        "expired": expired,
        "long": "x" * 5000,
        "role": "admin",
    }
    good["other"] = other
    return House(service, good, bad)


@pytest.fixture(scope="module")
def closed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[House]:
    """A service that requires authentication."""
    settings = tiny_settings(
        store, tmp_path_factory.mktemp("closed"), auth={"required": True}, limits=PATIENT
    )
    with running_service(settings) as service:
        yield make_house(service)


@pytest.fixture(scope="module")
def opened(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[House]:
    """A service as it is without configuration: inference and update checks need no token."""
    with running_service(tiny_settings(store, tmp_path_factory.mktemp("opened"), limits=PATIENT)) as service:
        yield make_house(service)


def test_every_route_is_in_the_matrix(closed: House) -> None:
    """A new route fails here until somebody has said who may call it."""
    found = {
        f"{method} {route.path}"
        for route in iter_route_contexts(create_app(closed.service.state).routes)
        for method in route.methods or ()
        if not (method == "HEAD" and "GET" in (route.methods or ()))
    }
    assert found == set(MATRIX)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_exactly_what_the_table_says(closed: House, opened: House, role: str) -> None:
    """With a valid token: let in (whatever comes then) where the table says so, 403 elsewhere."""
    for name, case in MATRIX.items():
        may = case.roles == "*" or role in case.roles.split()
        token = closed.good[role]
        assert (closed.status(name, token) not in (401, 403)) is may, (name, role)
        if not may:
            assert closed.status(name, token) == 403
        if case.is_admin:
            assert (opened.status(name, opened.good[role]) not in (401, 403)) is may, (name, role)


@pytest.mark.parametrize(
    "kind",
    ["empty", "word", "truncated", "tampered", "forged", "unknown", "revoked", "expired", "long", "role"],
)
def test_what_is_no_valid_token_opens_nothing(closed: House, opened: House, kind: str) -> None:
    """401 on every route but the open ones; while authentication is off it counts as no token at all."""
    for name, case in MATRIX.items():
        status = closed.status(name, closed.bad[kind])
        assert (status == 401) is (case.roles != "*"), (name, kind, status)
        status = opened.status(name, opened.bad[kind])
        assert (status == 401) is case.is_admin, (name, kind, status)


def test_without_a_token_only_the_open_routes_answer(closed: House, opened: House) -> None:
    """No configuration opens administration."""
    for name, case in MATRIX.items():
        assert (closed.status(name, None) == 401) is (case.roles != "*"), name
        assert (opened.status(name, None) == 401) is case.is_admin, name


def test_claims_in_headers_cookies_and_addresses_count_for_nothing(opened: House) -> None:
    """Only the bearer token proves anything, wherever else a caller writes what it would like to be."""
    admin = opened.good["admin"]
    lies = {
        "x-role": "admin",
        "x-autoglm-role": "admin",
        "x-forwarded-for": "127.0.0.1",
        "cookie": f"token={admin}; role=admin",
        "x-api-key": admin,
    }
    for name, case in MATRIX.items():
        if case.is_admin:
            assert opened.status(name, None, **lies) == 401, name
    url = f"{opened.service.url}/v1/admin/tokens?token={admin}&access_token={admin}"
    assert requests.get(url, timeout=60).status_code == 401
    assert requests.get(url, auth=("admin", admin), timeout=60).status_code == 401


def test_a_device_token_speaks_for_its_own_device_only(closed: House, opened: House) -> None:
    """The token of another device is a 403 where a device is named, with authentication on or off."""
    for house in (closed, opened):
        for name in SPEAKS_FOR_A_DEVICE:
            assert house.status(name, house.good["other"]) == 403
            assert house.status(name, house.good["device"]) in (200, 202)


def test_a_persons_token_checks_and_does_not_report(closed: House, opened: House) -> None:
    """Only a device's own token brings events, with authentication on or off."""
    for house in (closed, opened):
        for role in READERS.split():
            assert house.status("POST /v1/model/update", house.good[role]) == 200
            assert house.status("POST /v1/model/events", house.good[role]) == 403


def test_a_narrowed_token_does_what_it_was_narrowed_to(closed: House) -> None:
    """``releases:write`` publishes and lists releases, reads their metadata, and does nothing else."""
    hub = closed.service.state.hub
    assert hub is not None
    token = hub.issue_token(Claims("publisher", "ci", scopes=("releases:write",)))
    allowed = {name for name, case in MATRIX.items() if closed.status(name, token) not in (401, 403)}
    assert allowed == {
        *(name for name, case in MATRIX.items() if case.roles == "*"),
        "GET /v1/model/metadata/{name}",
        "GET /v1/admin/releases",
        "GET /v1/admin/packages",
        "POST /v1/admin/releases",
        "POST /v1/admin/releases/{version}/revoke",
        "POST /v1/admin/metadata",
    }


def test_whoever_may_ask_the_model_may_read_which_one_answers(closed: House) -> None:
    """``models:use`` alone opens ``/v1/model/info``, and no other of the device routes."""
    hub = closed.service.state.hub
    assert hub is not None
    token = hub.issue_token(Claims("viewer", "asks", scopes=("models:use",)))
    allowed = {name for name in MATRIX if closed.status(name, token) not in (401, 403)}
    assert "GET /v1/model/info" in allowed
    assert not allowed & {"POST /v1/model/update", "GET /v1/model/metadata/{name}"}


def test_a_refusal_says_what_is_wrong_with_the_token_and_does_not_repeat_it(opened: House) -> None:
    """Mistyped, expired, revoked and unknown are told apart by code, to whoever holds the token."""
    codes = {}
    for kind in ("truncated", "tampered", "unknown", "revoked", "expired"):
        answer = opened.service.get(
            "/v1/admin/releases", headers={"authorization": f"Bearer {opened.bad[kind]}"}
        )
        codes[kind] = answer.json()["error"]["code"]
        assert answer.headers["www-authenticate"] == "Bearer"
        assert opened.bad[kind] not in answer.text
    assert codes == {
        "truncated": "malformed_api_key",
        "tampered": "malformed_api_key",
        "unknown": "invalid_api_key",
        "revoked": "revoked_api_key",
        "expired": "expired_api_key",
    }


def test_refused_attempts_are_in_the_audit_log_without_secrets(start_service: Any) -> None:
    """Who, the route and the missing permission are written down; equal attempts are counted together."""
    house = make_house(start_service())
    hub = house.service.state.hub
    assert hub is not None
    before = hub.audit.list()[0].number
    for _ in range(5):
        house.status("DELETE /v1/admin/tokens/{name}", house.good["viewer"])
        house.status("POST /v1/admin/tokens", house.bad["tampered"])
    hub.behind.flush()
    new = [entry for entry in hub.audit.list() if entry.number > before]
    assert sum(entry.details["times"] for entry in new) == 10
    named = {(entry.who, entry.subject, entry.details["needs"]) for entry in new}
    assert named == {
        ("viewer", "DELETE /v1/admin/tokens/{name}", "tokens:write"),
        ("unknown", "POST /v1/admin/tokens", None),
    }
    assert {entry.what for entry in new} == {"access.refused"}
    assert all(entry.address == "127.0.0.1" for entry in new)
    said = json.dumps([entry.to_json() for entry in hub.audit.list()])
    assert not [secret for secret in (*house.good.values(), house.bad["tampered"]) if secret in said]
