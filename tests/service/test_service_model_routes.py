"""What devices ask: the fixed contract, package bytes, events."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from autoglm import patch
from autoglm.releases import Manifest


def test_health_is_exactly_the_contracts_answer(service: Any) -> None:
    """GET /health says {"status": "ok"} and nothing else; /ready names the release."""
    assert service.get("/health").json() == {"status": "ok"}
    assert service.get("/ready").json() == {"status": "ready", "version": "v1.2"}


def test_info_names_the_release_that_answers(service: Any) -> None:
    """GET /v1/model/info has the version, and the identity of the very bytes."""
    info = service.get("/v1/model/info").json()
    assert info["version"] == "v1.2"
    assert info["system_fingerprint"] == service.chat().json()["system_fingerprint"]
    assert info["manifest_sha256"].startswith(info["system_fingerprint"].removeprefix("fp_"))


def test_a_device_up_to_date_needs_nothing(service: Any) -> None:
    """The specification's request is answered with its three keys, null where unused."""
    answer = service.post("/v1/model/update", {"device_id": "dev_12345", "current_version": "v1.2"}).json()
    assert answer["need_update"] is False
    assert answer["target_version"] is None
    assert answer["download_url"] is None


@pytest.mark.parametrize("version", ["v0.9", "", "garbage", None])
def test_an_unknown_version_is_offered_the_full_package(
    service: Any, version: str | None, tmp_path: Path
) -> None:
    """Whatever a device runs, it gets a package that needs no base, and the download keeps its promises."""
    body = {"device_id": "dev_1", "current_version": version}
    answer = service.post("/v1/model/update", body).json()
    assert (answer["need_update"], answer["target_version"], answer["kind"]) == (True, "v1.2", "full")
    content = requests.get(answer["download_url"], timeout=60).content
    assert (len(content), hashlib.sha256(content).hexdigest()) == (answer["size"], answer["sha256"])
    (tmp_path / "p.wpatch").write_bytes(content)
    patch.apply(None, tmp_path / "p.wpatch", tmp_path / "release")
    assert Manifest.read(tmp_path / "release").sha256 == answer["manifest_sha256"]


def test_unknown_fields_of_an_update_check_are_ignored(service: Any) -> None:
    """A newer device that says more is understood all the same."""
    body = {"device_id": "d", "current_version": "v1.2", "colour": "blue", "env": {"net": "wifi"}}
    assert service.post("/v1/model/update", body).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"device_id": 5},
        {"device_id": ""},
        {"device_id": "../etc"},
        {"device_id": "d", "current_version": 1.2},
        {"device_id": "d", "failed": "v1"},
        {"device_id": "d", "env": []},
    ],
)
def test_a_malformed_check_is_a_400(service: Any, body: dict[str, Any]) -> None:
    """Only malformed requests are refused, and say why."""
    response = service.post("/v1/model/update", body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "E_MESSAGE"


@pytest.fixture
def package(service: Any) -> tuple[str, bytes]:
    """The address and the bytes of the full package."""
    url = service.post("/v1/model/update", {"device_id": "d"}).json()["download_url"]
    return url, requests.get(url, timeout=60).content


def test_a_package_is_served_in_ranges(package: tuple[str, bytes]) -> None:
    """Range with the right If-Range gives 206 and exactly those bytes; a strong ETag names the content."""
    url, content = package
    head = requests.head(url, timeout=60)
    etag = head.headers["etag"]
    assert etag == f'"{hashlib.sha256(content).hexdigest()}"'
    assert head.headers["accept-ranges"] == "bytes"
    part = requests.get(url, headers={"range": "bytes=100-199", "if-range": etag}, timeout=60)
    assert part.status_code == 206
    assert part.content == content[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(content)}"
    rest = requests.get(url, headers={"range": f"bytes={len(content) - 5}-", "if-range": etag}, timeout=60)
    assert rest.content == content[-5:]


def test_a_changed_etag_restarts_from_the_first_byte(package: tuple[str, bytes]) -> None:
    """If-Range with another ETag gives 200 and the whole package; beyond the end is a 416."""
    url, content = package
    whole = requests.get(url, headers={"range": "bytes=100-", "if-range": '"other"'}, timeout=60)
    assert (whole.status_code, whole.content) == (200, content)
    beyond = requests.get(url, headers={"range": f"bytes={len(content)}-"}, timeout=60)
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize(
    ("asked", "status"),
    [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=5-2", 400), ("bytes=abc", 400), ("items=0-1", 400)],
)
def test_a_range_that_cannot_be_sent_is_refused_like_everything(
    package: tuple[str, bytes], asked: str, status: int
) -> None:
    """A range outside of the package or none at all is refused in the shape of all errors."""
    answer = requests.get(package[0], headers={"range": asked}, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == "range"


@pytest.mark.parametrize("name", ["0" * 64, "../hub.sqlite", "%2e%2e%2fadmin.token", "a" * 63, "A" * 64])
def test_nothing_but_packages_is_served(service: Any, name: str) -> None:
    """Unknown hashes, other objects and paths out of the store are 404 or 400, never bytes."""
    response = service.get(f"/v1/model/packages/{name}.wpatch")
    assert response.status_code in (400, 404)
    assert "error" in response.json()


def test_release_files_are_no_packages(service: Any) -> None:
    """A file of a release that lies in the store by its hash is not to be had by it."""
    manifest = service.state.engine.active.manifest
    for file in manifest.files:
        assert service.get(f"/v1/model/packages/{file.sha256}.wpatch").status_code == 404


def test_events_are_accepted_once(service: Any) -> None:
    """A batch is answered 202 with its ids, also when it is sent again."""
    event = {"event_id": "e1", "seq": 1, "state": "TRIAL", "result": "ok", "from": "v1.1", "to": "v1.2"}
    batch = {"device_id": "dev_7", "events": [event]}
    for _ in range(2):
        response = service.post("/v1/model/events", batch)
        assert response.status_code == 202
        assert response.json() == {"accepted": ["e1"], "control": "continue"}


def test_download_urls_follow_public_url(start_service: Any) -> None:
    """With public_url set, devices are sent there, whatever address they asked at."""
    service = start_service(public_url="https://models.example.com/phone/")
    answer = service.post("/v1/model/update", {"device_id": "d"}).json()
    assert answer["download_url"].startswith("https://models.example.com/phone/v1/model/packages/")


def test_the_description_for_programs_is_whole(service: Any) -> None:
    """Every reference in /openapi.json leads somewhere, and every route says what its failures look like."""
    text = service.get("/openapi.json").text
    description = json.loads(text)
    for reference in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert reference in description["components"]["schemas"], reference
    for path, methods in description["paths"].items():
        for route in methods.values():
            assert path in ("/health", "/ready") or "400" in route["responses"], path
