"""Who may call what, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoglm.hub import Claims
from autoglm.service.access import MAX_CALLERS, TokenBuckets


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
