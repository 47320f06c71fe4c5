"""Administration: closed without the token, atomic with it, and the engine follows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from autoglm import patch
from service.tiny import write_tiny

DEADLINE_S = 60


def wait_for_version(service: Any, version: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while service.state.engine.active_version != version:
        assert time.monotonic() < deadline, service.state.updater.status()
        time.sleep(0.02)


def upload(service: Any, package: Path, **query: Any) -> Any:
    with package.open("rb") as content:
        return service.admin("POST", "/releases", data=content, params=query)


def test_the_live_engine_follows_a_publication(start_service: Any, store: Path) -> None:
    """v1.3 published to everyone is swapped into the running service without a restart, and back again."""
    service = start_service()
    old = service.chat(max_tokens=30).json()
    published = upload(service, store / "v1.3.wpatch", percent=100)
    assert published.status_code == 201
    assert published.json()["rollout"]["version"] == "v1.3"
    service.build_packages()
    assert service.admin("POST", "/engine/update").status_code == 202
    wait_for_version(service, "v1.3")
    new = service.chat(max_tokens=30).json()
    assert new["system_fingerprint"] != old["system_fingerprint"]
    assert new["choices"] != old["choices"]
    assert service.chat(model="autoglm-phone-9b@v1.2", max_tokens=30).json()["choices"] == old["choices"]
    back = service.admin("POST", "/engine/rollback")
    assert back.json() == {"version": "v1.2"}
    noted = service.admin("GET", "/audit", params={"what": "engine.rollback"}).json()["entries"]
    assert [entry["details"] for entry in noted] == [{"before": "v1.3"}]
    assert service.chat(max_tokens=30).json()["choices"] == old["choices"]


def test_publishing_offers_nothing_by_itself(start_service: Any, store: Path) -> None:
    """Without a share, group or region a release lies ready; a roll-out offers it, and can be paused."""
    service = start_service()
    assert upload(service, store / "v1.3.wpatch").json()["rollout"] is None
    check = {"device_id": "d", "current_version": "v1.2"}
    assert service.post("/v1/model/update", check).json()["need_update"] is False
    rollout = service.admin("POST", "/rollouts", json={"version": "v1.3", "groups": ["staff"]}).json()
    assert rollout["groups"] == ["staff"]
    paused = service.admin("PATCH", f"/rollouts/{rollout['id']}", json={"state": "paused"}).json()
    assert paused["state"] == "paused"
    listed = service.admin("GET", "/rollouts").json()["rollouts"]
    assert [row["state"] for row in listed] == ["active", "paused"]


def test_publishing_the_same_again_changes_nothing(start_service: Any, store: Path) -> None:
    """The same package twice is 201, then 200."""
    service = start_service()
    assert upload(service, store / "v1.3.wpatch").status_code == 201
    assert upload(service, store / "v1.3.wpatch").status_code == 200


def test_a_broken_package_is_refused_and_leaves_nothing(start_service: Any, store: Path) -> None:
    """Corrupted, truncated or empty uploads are a 400; releases and upload directory are as before."""
    service = start_service()
    whole = (store / "v1.3.wpatch").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-100], bytes(flipped), b"", b"no package" * 100):
        response = service.admin("POST", "/releases", data=content)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]
    assert [r["version"] for r in service.admin("GET", "/releases").json()["releases"]] == ["v1.2"]
    assert list((service.state.settings.data_path / "uploads").iterdir()) == []
    assert service.chat().status_code == 200


def test_another_release_of_the_same_version_is_a_conflict(start_service: Any, tmp_path: Path) -> None:
    """v1.2 with other bytes is refused with 409."""
    service = start_service()
    release = write_tiny(tmp_path / "other", "v1.2", 99)
    patch.diff(None, release, tmp_path / "other.wpatch")
    assert upload(service, tmp_path / "other.wpatch").status_code == 409


def test_a_release_that_fails_its_self_test_never_serves(start_service: Any, tmp_path: Path) -> None:
    """Published to everyone, it is tried beside the live model, refused, and not tried again."""
    service = start_service()
    release = write_tiny(tmp_path / "sick", "v1.4", 14, expect="an answer that it never gives")
    patch.diff(None, release, tmp_path / "sick.wpatch")
    old = service.chat(max_tokens=20).json()["choices"]
    assert upload(service, tmp_path / "sick.wpatch", percent=100).status_code == 201
    service.build_packages()
    assert service.admin("POST", "/engine/update").status_code == 202
    deadline = time.monotonic() + DEADLINE_S
    while "v1.4" not in service.state.updater.status().quarantined:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status = service.admin("GET", "/engine").json()
    assert status["engine"]["active"] == "v1.2"
    assert "self-test" in status["updater"]["last_error"]["message"]
    assert service.chat(max_tokens=20).json()["choices"] == old


@pytest.mark.parametrize(
    "body",
    [{}, {"version": "v9"}, {"version": "v1.2", "percent": 101}, {"version": "v1.2", "percentage": 5}, []],
)
def test_a_wrong_rollout_is_refused(service: Any, body: object) -> None:
    """Unknown releases are 404, everything else that is wrong 400."""
    response = service.admin("POST", "/rollouts", json=body)
    assert response.status_code == (404 if body == {"version": "v9"} else 400)


def test_a_rollback_without_a_previous_release_is_a_404(service: Any) -> None:
    """There is nothing to go back to on a service that was never updated, and nothing to write down."""
    assert service.admin("POST", "/engine/rollback").status_code == 404
    assert service.admin("GET", "/audit", params={"what": "engine.rollback"}).json()["entries"] == []


def test_devices_are_listed_as_last_seen(start_service: Any) -> None:
    """A device that asked is in the list, and so is the service's own engine."""
    service = start_service()
    service.post("/v1/model/update", {"device_id": "dev_9", "current_version": "v1.0"})
    devices = {row["device_id"]: row for row in service.admin("GET", "/devices").json()["devices"]}
    assert devices["dev_9"]["version"] == "v1.0"
    assert "service" in devices
