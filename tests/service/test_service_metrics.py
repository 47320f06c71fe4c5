"""/metrics and /ready: what is counted, who may read it, and when requests are not taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from autoglm.hub import Claims
from autoglm.service.http_metrics import HttpMetrics


def scrape(service: Any, **headers: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    answer = service.get("/metrics", headers={"authorization": f"Bearer {service.token}"} | headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Any, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_an_answer_moves_the_counters(service: Any) -> None:
    """Requests by route and status, tokens, and the time to the first token are counted."""
    before = scrape(service)
    assert service.chat("hi", max_tokens=4).status_code == 200
    after = scrape(service)
    chat = {"method": "POST", "route": "/v1/chat/completions"}

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grew("autoglm_http_requests_total", **chat, status="200") == 1
    assert grew("autoglm_http_request_seconds_count", **chat) == 1
    assert grew("autoglm_engine_requests_total") == 1
    assert grew("autoglm_engine_requests_ended_total", how="finished") == 1
    assert grew("autoglm_engine_generated_tokens_total") == 4
    assert grew("autoglm_engine_first_token_seconds_count") == 1
    assert grew("autoglm_engine_next_token_seconds_count") == 3
    assert value(after, "autoglm_engine_running") == 0
    assert value(after, "autoglm_ready") == 1
    assert value(after, "autoglm_hub_releases") == 1


def test_the_release_is_named(service: Any) -> None:
    """One sample says which version answers, with its fingerprint."""
    [labels] = [dict(labels) for name, labels in scrape(service) if name == "autoglm_release_info"]
    fingerprint = service.state.engine.active.fingerprint
    assert labels == {"model": "autoglm-phone-9b", "version": "v1.2", "fingerprint": fingerprint}


def test_odd_requests_make_no_new_labels(service: Any) -> None:
    """Unknown paths are one route, parameters are not in it, and methods are a short list."""
    service.get("/metrics", headers={"authorization": f"Bearer {service.token}"})
    for i in range(20):
        service.get(f"/nothing/{i}")
        service.get(f"/v1/models/name-{i}")
    service.post("/v1/model/update", {"device_id": "d"})
    labels = [dict(labels) for name, labels in scrape(service) if name == "autoglm_http_requests_total"]
    routes = {entry["route"] for entry in labels}
    assert {"none", "/v1/models/{name}", "/v1/model/update"} <= routes
    assert not [route for route in routes if re.search(r"\d", route.replace("v1", ""))]


def test_a_strange_method_is_called_other() -> None:
    """A method is a label only when it is a common one."""
    metrics = HttpMetrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 405})

    async def send(message: Any) -> None: ...

    for number in range(9):
        anyio.run(metrics.measure, app, {"method": f"M{number}"}, None, send)
    labels = {"method": "other", "route": "none", "status": "405"}
    assert metrics.registry.get_sample_value("autoglm_http_requests_total", labels) == 9


def test_only_who_may_see_the_engine_reads_them(start_service: Any) -> None:
    """Closed to everyone else, whatever auth.required says; open with auth.open_metrics."""
    service = start_service()
    assert service.get("/metrics").status_code == 401
    hub = service.state.hub
    narrow = hub.issue_token(Claims("viewer", "scraper", scopes=("engine:read",)))
    other = hub.issue_token(Claims("viewer", "reader", scopes=("releases:read",)))
    status = {
        token: service.get("/metrics", headers={"authorization": f"Bearer {token}"}).status_code
        for token in (narrow, other)
    }
    assert status == {narrow: 200, other: 403}


def test_they_may_be_opened_by_a_setting(start_service: Any) -> None:
    """``auth.open_metrics: true`` lets a scraper in without a token."""
    assert start_service(auth={"open_metrics": True}).get("/metrics").status_code == 200


def test_openmetrics_is_spoken_when_asked_for(service: Any) -> None:
    """A scraper that asks for OpenMetrics gets it, with its end mark."""
    headers = {"authorization": f"Bearer {service.token}", "accept": "application/openmetrics-text"}
    answer = service.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_every_metric_is_documented(service: Any, project_root: Path) -> None:
    """docs/api.md lists exactly the metrics of ours that there are."""
    text = (project_root / "docs/api.md").read_text()
    documented = set(re.findall(r"^\| `(autoglm_\w+)`", text, re.MULTILINE))
    answer = service.get("/metrics", headers={"authorization": f"Bearer {service.token}"}).text
    named = re.findall(r"^# TYPE (autoglm_\w+) ", answer, re.MULTILINE)
    assert documented == {name for name in named if not name.endswith("_created")}


def test_ready_says_why_it_is_not(start_service: Any) -> None:
    """503 with the reason while no release is in memory and while the service stops; 200 while it drains."""
    service = start_service()
    assert service.get("/ready").json() == {"status": "ready", "version": "v1.2"}
    engine = service.state.engine
    engine._door.shut()
    assert service.get("/ready").status_code == 200
    engine._door.note_empty()
    loading = service.get("/ready")
    assert (loading.status_code, loading.json()["status"]) == (503, "unavailable")
    assert "being loaded" in loading.json()["reason"]
    engine._door.open()
    assert service.get("/ready").status_code == 200
    service.state.stopping = True
    stopping = service.get("/ready")
    assert (stopping.status_code, stopping.json()["status"]) == (503, "stopping")
    assert stopping.headers["retry-after"]
    assert service.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/model/update", "/v1/embeddings", "/nothing"])
def test_a_stopping_service_takes_nothing_new(start_service: Any, path: str) -> None:
    """503 with Retry-After and an end to the connection, on every route."""
    service = start_service()
    service.state.stopping = True
    answer = service.post(path, {})
    assert answer.status_code == 503
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "stopping"
