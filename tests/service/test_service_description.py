"""The OpenAPI description against the running service: fitting or not, all is answered as it says."""

from __future__ import annotations

import contextlib
import html
import json
import re
import socket
from collections.abc import Generator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from autoglm.releases import DeviceEnvironment, Event, EventAnswer, EventBatch, UpdateAnswer, UpdateRequest
from autoglm.service.wire_schemas import WIRE_SCHEMAS
from service.running import RunningService, running_service, tiny_settings

TIMEOUT_S = 60
EXAMPLES = 25
WANTED: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EVERYWHERE = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def described(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[RunningService]:
    """A service of this module's own: what is asked of it changes it."""
    directory = tmp_path_factory.mktemp("described")
    with running_service(tiny_settings(store, directory, limits={"queue": 64})) as running:
        yield running


def operations() -> list[Any]:
    """``(path, method)`` of every route, read without a running service."""
    from autoglm.service.app import create_app
    from autoglm.service.settings import Settings
    from autoglm.service.state import ServiceState

    whole: Any = object()
    paths = create_app(ServiceState(Settings(), whole, whole, hub=whole)).openapi()["paths"]
    return [pytest.param(path, method, id=f"{method} {path}") for path in paths for method in paths[path]]


@pytest.fixture(scope="module")
def schema(described: RunningService) -> Any:
    return schemathesis.openapi.from_url(f"{described.url}/openapi.json")


def bounded(case: Any) -> Any:
    """Keep answers short: how long one may be is tested elsewhere."""
    if case.operation.path in ("/v1/chat/completions", "/v1/completions") and isinstance(case.body, dict):
        case.body |= {"max_tokens": 2, "n": 1}
        case.body.pop("max_completion_tokens", None)
    return case


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), operations())
def test_every_route_answers_as_described(
    described: RunningService, schema: Any, path: str, method: str, mode: GenerationMode
) -> None:
    """Good and bad parameters and bodies: no 5xx, no status, type or body that the description lacks."""
    operation = schema[path][method]
    headers = (
        {"authorization": f"Bearer {described.token}"} if "/admin/" in path or path == "/metrics" else {}
    )

    @EVERYWHERE
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = bounded(case).call(base_url=described.url, headers=headers, timeout=TIMEOUT_S)
        case.validate_response(response, checks=WANTED)

    try:
        ask()
    except Unsatisfiable:  # nothing that could be said of this route would be wrong
        assert mode is GenerationMode.NEGATIVE


def test_the_messages_are_described_as_they_are() -> None:
    """The fields in the description are those that are read and written."""
    for kind in (UpdateRequest, UpdateAnswer, EventBatch, EventAnswer):
        described = set(WIRE_SCHEMAS[kind.__name__]["properties"])
        assert described == {field.name for field in fields(kind)}, kind
    batch = WIRE_SCHEMAS["EventBatch"]["properties"]["events"]["items"]["properties"]
    assert set(batch) == {field.name.removesuffix("_version") for field in fields(Event)}
    env = WIRE_SCHEMAS["UpdateRequest"]["properties"]["env"]["properties"]
    assert set(env) == {field.name for field in fields(DeviceEnvironment)}


def raw(service: RunningService, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; return the status and the body."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(request)
        content = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 16):
                content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


TARGETS = [
    b"/v1/models/%00",
    b"/v1/models/%ff%fe",
    b"/v1/models/%c0%ae%c0%ae",
    b"/v1/models/..%2f..%2fetc%2fpasswd",
    b"/v1/models/%ed%a0%80",
    b"/v1/models/" + b"a" * 30_000,
    b"/v1/model/metadata/..%2froot.json",
    b"/v1/model/metadata/%2e%2e",
    b"/v1/model/metadata/..",
    b"/v1/model/metadata/../../admin.token",
    b"/v1/model/metadata/%00timestamp.json",
    b"/v1/model/metadata/%ff.json",
    b"/v1/model/metadata/1.releases-zz.json",
    b"/v1/model/metadata/99999999999999999999.root.json",
    b"/v1/model/packages/%00.wpatch",
    b"/v1/model/packages/" + b"0" * 63 + b"%0a.wpatch",
    b"/v1/model/packages/" + b"%30" * 64 + b".wpatch",
    b"/v1/model/packages/" + b"0" * 64 + b".wpatch%00",
    b"/v1/admin/rollouts/%ff",
    b"/v1/admin/releases/%00/revoke",
    b"/v1/admin/rollouts/" + b"9" * 400,
    b"/v1/admin/rollouts/r99999999999999999999",
    b"//v1/models",
    b"/v1/../v1/models/x/..",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"*",
    b"http://other.example/v1/nothing",
    b"/\xff\xfe",
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: ascii(target)[2:42])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH"])
def test_hostile_addresses_are_refused_in_the_usual_shape(
    described: RunningService, target: bytes, method: bytes
) -> None:
    """Traversal, NUL, bytes that are no UTF-8, addresses too long: 4xx, with an error that can be read."""
    body = b'{"state": "active"}'
    status, content = raw(
        described,
        method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Authorization: Bearer " + described.token.encode() + b"\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body,
    )
    assert 400 <= status < 500, content
    assert json.loads(content)["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "text",
    ['"\\u0000"', '"\\ud800"', "1e999", "-0", '""', "[[]]", "{}", '"' + "x" * 5000 + '"', "NaN", "true"],
)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/model/update", "device_id"),
        ("/v1/model/update", "current_version"),
        ("/v1/model/update", "failed"),
        ("/v1/model/update", "env"),
        ("/v1/model/events", "events"),
        ("/v1/admin/rollouts", "version"),
        ("/v1/admin/rollouts", "percent"),
        ("/v1/admin/rollouts", "groups"),
        ("/v1/admin/metadata", "files"),
        ("/v1/chat/completions", "model"),
        ("/v1/chat/completions", "messages"),
    ],
)
def test_hostile_values_are_never_a_server_error(
    described: RunningService, path: str, field: str, text: str
) -> None:
    """NUL, half a surrogate pair, numbers beyond all bounds and the wrong kinds are 2xx or 4xx."""
    needed = {"device_id": '"d"', "version": '"v1.2"', "model": '"autoglm-phone-9b"', "max_tokens": "1"}
    body = "{" + ", ".join(f'"{name}": {value}' for name, value in (needed | {field: text}).items()) + "}"
    headers = {"authorization": f"Bearer {described.token}"}
    response = described.post(path, data=body.encode(), headers=headers)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


def test_the_page_for_people_needs_nothing_else(described: RunningService) -> None:
    """/docs names every route, loads nothing from anywhere, and allows nothing on it to run."""
    answer = described.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script|<link|<img|src=|url\(|https?://", answer.text)
    for path in described.get("/openapi.json").json()["paths"]:
        assert path in html.unescape(answer.text)
    for anchor in set(re.findall(r'href="#([^"]+)"', answer.text)):
        assert f'id="{anchor}"' in answer.text
    assert described.get("/redoc").status_code == 404
