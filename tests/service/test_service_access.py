"""Who may call what, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoglm.errors import ConfigError
from autoglm.hub import Claims
from autoglm.service.access import MAX_CALLERS, TokenBuckets, read_keys


def test_required_authentication_closes_everything_but_health(start_service: Any) -> None:
    """With auth.required, inference and device routes answer 401 without a valid token, 200 with one."""
    service = start_service(auth={"required": True})
    check = {"device_id": "d1", "current_version": "v1.2"}
    assert service.get("/health").status_code == 200
    closed = [
        service.chat(),
        service.get("/v1/models"),
        service.get("/v1/model/info"),
        service.post("/v1/model/update", check),
        service.post("/v1/model/events", {"device_id": "d1", "events": []}),
        service.get(f"/v1/model/packages/{'0' * 64}.wpatch"),
    ]
    assert {response.status_code for response in closed} == {401}
    token = service.state.hub.issue_token(Claims("device", name="phone", device_id="d1"))
    headers = {"authorization": f"Bearer {token}"}
    assert service.post("/v1/model/update", check, headers=headers).status_code == 200
    assert service.get("/v1/models", headers=headers).status_code == 200


def test_a_devices_token_speaks_for_that_device_only(start_service: Any) -> None:
    """Checking in under another name with one's own token is a 403."""
    service = start_service()
    token = service.state.hub.issue_token(Claims("device", name="phone", device_id="d1"))
    headers = {"authorization": f"Bearer {token}"}
    other = {"device_id": "d2", "current_version": "v1.2"}
    assert service.post("/v1/model/update", other, headers=headers).status_code == 403


def test_a_self_declared_group_counts_for_nothing(start_service: Any, store: Path) -> None:
    """A roll-out to a group reaches the devices whose token says so, not those that claim it."""
    service = start_service()
    hub = service.state.hub
    hub.publish(store / "v1.3.wpatch", groups=("staff",))
    service.build_packages()
    token = hub.issue_token(Claims("device", name="phone", device_id="d2", groups=("staff",)))
    liar = {"device_id": "d1", "current_version": "v1.2", "groups": ["staff"], "group": "staff"}
    member = {"device_id": "d2", "current_version": "v1.2"}
    headers = {"authorization": f"Bearer {token}"}
    assert service.post("/v1/model/update", liar).json()["need_update"] is False
    answer = service.post("/v1/model/update", member, headers=headers).json()
    assert (answer["target_version"], answer["kind"]) == ("v1.3", "full")


def test_too_many_requests_are_a_429(start_service: Any) -> None:
    """requests_per_minute bounds one caller, and says when to come back."""
    service = start_service(limits={"requests_per_minute": 3})
    responses = [service.get("/v1/models") for _ in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert int(responses[-1].headers["retry-after"]) >= 1
    assert responses[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert service.get("/health").status_code == 200


def test_a_bucket_refills_evenly() -> None:
    """Sixty a minute is one a second, saved up to sixty, for each caller apart."""
    now = [0.0]
    buckets = TokenBuckets(60, clock=lambda: now[0])
    assert [buckets.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert buckets.wait_s("a") == 1.0
    assert buckets.wait_s("b") == 0.0
    now[0] = 1.0
    assert buckets.wait_s("a") == 0.0
    assert buckets.wait_s("a") == 1.0


def test_the_callers_remembered_are_bounded() -> None:
    """A flood of addresses does not fill the memory."""
    buckets = TokenBuckets(1, clock=lambda: 0.0)
    for caller in range(MAX_CALLERS + 10):
        buckets.wait_s(str(caller))
    assert len(buckets._buckets) == MAX_CALLERS


def test_zero_is_unlimited() -> None:
    """0 lets everything through and remembers nobody."""
    buckets = TokenBuckets(0)
    assert [buckets.wait_s("a") for _ in range(1000)] == [0.0] * 1000


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_wrong_tokens_are_slow_to_try(start_service: Any) -> None:
    """After failures_per_minute wrong tokens their address waits; a token that was right before does not.

    Only wrong tokens count: a missing one, and one whose role does not suffice, is no guess.
    """
    service = start_service(limits={"failures_per_minute": 3})
    viewer = service.state.hub.issue_token(Claims("viewer", name="eve"))
    unseen = service.state.hub.issue_token(Claims("viewer", name="new"))
    assert service.admin("GET", "/releases").status_code == 200
    for _ in range(5):
        assert service.get("/v1/admin/releases").status_code == 401
        assert service.post("/v1/admin/rollouts", {}, headers=bearer(viewer)).status_code == 403
    guesses = [service.get("/v1/admin/releases", headers=bearer(f"guess{n}")) for n in range(5)]
    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429, 429]
    assert int(guesses[-1].headers["retry-after"]) >= 1
    assert guesses[-1].json()["error"]["type"] == "rate_limit_error"
    assert service.admin("GET", "/releases").status_code == 200
    assert service.get("/v1/admin/releases", headers=bearer(unseen)).status_code == 429
    assert service.get("/health").status_code == 200
    assert service.chat().status_code == 200, "nobody needs a token for this here"


def test_administration_is_counted_once_a_request(start_service: Any) -> None:
    """requests_per_minute holds for administrators too, by token, and each request counts once."""
    service = start_service(limits={"requests_per_minute": 4})
    statuses = [service.admin("POST", "/rollouts", json={}).status_code for _ in range(5)]
    assert statuses == [400, 400, 400, 400, 429]
    other = service.state.hub.issue_token(Claims("viewer", name="eve"))
    assert service.get("/v1/admin/releases", headers=bearer(other)).status_code == 200


def test_a_revoked_token_is_refused_at_once_whatever_is_remembered(start_service: Any) -> None:
    """That it was right before spares it the wait, and nothing else."""
    service = start_service(auth={"required": True})
    token = service.state.hub.issue_token(Claims("device", name="phone", device_id="d1"))
    assert service.get("/v1/models", headers=bearer(token)).status_code == 200
    service.state.hub.revoke_token("phone")
    assert service.get("/v1/models", headers=bearer(token)).status_code == 401


@pytest.mark.parametrize("line", ["sha256:", "sha256: ", f"sha256:{'0' * 63}", f"sha256:{'g' * 64}"])
def test_a_key_without_a_hash_stops_the_start(tmp_path: Path, line: str) -> None:
    """A line that begins like a hash and is none opens nothing: it is an error that names the file."""
    path = tmp_path / "keys"
    path.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"keys.*64 hex digits"):
        read_keys(path)


def test_no_token_is_no_key(start_service: Any) -> None:
    """Whatever hashes are kept, also the empty one, a request without a token needs one."""
    service = start_service(auth={"required": True})
    service.state.access._keys = frozenset({""})
    assert service.get("/v1/models").status_code == 401


def test_a_key_for_inference_speaks_for_no_device(start_service: Any, tmp_path: Path) -> None:
    """Beside a hub, a key of the file may use the model and gets a 403 on the device routes."""
    path = tmp_path / "keys"
    path.write_text("open-sesame\n")
    service = start_service(auth={"required": True})
    service.state.access._keys = read_keys(path)
    headers = bearer("open-sesame")
    assert service.get("/v1/models", headers=headers).status_code == 200
    check = {"device_id": "d1", "current_version": "v1.2"}
    assert service.post("/v1/model/update", check, headers=headers).status_code == 403
    batch = {"device_id": "d1", "events": []}
    assert service.post("/v1/model/events", batch, headers=headers).status_code == 403


def test_looking_into_a_bucket_takes_nothing_out() -> None:
    """``take=False`` only says how long the next one would have to wait."""
    buckets = TokenBuckets(60, clock=lambda: 0.0)
    for _ in range(100):
        assert buckets.wait_s("a", take=False) == 0.0
    assert [buckets.wait_s("a") for _ in range(61)] == [0.0] * 60 + [1.0]
