"""The whole service over vLLM servers: its API, limits and device, as with the project's own engine."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from autoglm import patch
from service.running import RunningService
from service.vllm_world import supervised, wait_for, word, write_release


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1 to 3 in directories, v1.3 failing its self-test; packages in ``store``: v1.1, v1.2, v1.3."""
    root = tmp_path_factory.mktemp("glm")
    for counter in (1, 2):
        write_release(root / str(counter), counter)
    write_release(root / "3", 3, expect="what it never says")
    (root / "store").mkdir()
    patch.diff(None, root / "1", root / "store" / "v1.1.wpatch")
    for counter in (2, 3):
        patch.diff(root / "1", root / str(counter), root / f"v1.{counter}.wpatch")
    return root


@pytest.fixture
def start(start_service: Callable[..., RunningService], releases: Path) -> Callable[..., RunningService]:
    """Start a service on v1.1, whose vLLM servers do what the switches say."""

    def go(backend: dict[str, Any] | None = None, **switches: object) -> RunningService:
        more = {"arguments": ["--switches", json.dumps(switches)]} | (backend or {})
        model = {"store": str(releases / "store"), "aliases": []}
        return start_service(model=model, backend=supervised(**more))

    return go


def streamed(service: RunningService, **fields: Any) -> tuple[dict[str, str], list[Any]]:
    """Ask for a stream; return the headers and the events."""
    response = service.chat(stream=True, **fields)
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.iter_lines() if line]
    events = [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]
    return dict(response.headers), events


def content(events: list[Any], field: str = "content") -> str:
    """Join what a stream said."""
    chunks = [event for event in events if event != "[DONE]" and "choices" in event]
    return "".join(choice["delta"].get(field) or "" for chunk in chunks for choice in chunk["choices"])


def test_the_api_is_the_same(start: Any, releases: Path) -> None:
    """Chat, models, info and readiness answer as with the project's own engine."""
    service, said = start(), word(releases / "1")
    whole = service.chat(max_tokens=3)
    assert whole.json()["choices"][0]["message"]["content"].split() == [said] * 3
    assert whole.json()["choices"][0]["finish_reason"] == "length"
    assert whole.json()["usage"] | {"prompt_tokens": 1, "completion_tokens": 3} == whole.json()["usage"]
    headers, events = streamed(service, max_tokens=3, stream_options={"include_usage": True})
    assert headers["x-autoglm-version"] == whole.headers["x-autoglm-version"] == "v1.1"
    assert content(events).split() == [said] * 3
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == 3
    assert events[0]["system_fingerprint"] == whole.json()["system_fingerprint"]
    info = service.get("/v1/model/info").json()
    assert info["version"] == "v1.1"
    assert info["devices"][0].startswith("vllm http://127.0.0.1:")
    assert service.get("/ready").json() == {"status": "ready", "version": "v1.1"}
    assert service.chat(model="autoglm-phone-9b@v1.1").status_code == 200
    assert service.chat(model="autoglm-phone-9b@v9").status_code == 404
    assert service.admin("GET", "/engine").json()["engine"]["generated_tokens"] > 0


def test_the_thought_goes_where_the_request_says(start: Any, releases: Path) -> None:
    """Tags are taken out of the text; ``</answer>`` ends the answer and is not seen."""
    service, said = start(), word(releases / "1")
    _, both = streamed(service, enable_thinking=True, return_reasoning=True, max_tokens=2)
    assert (content(both, "reasoning_content"), content(both, "reasoning")) == ("hm", "hm")
    assert content(both).split() == [said, said]
    _, dropped = streamed(service, enable_thinking=True, max_tokens=2)
    assert content(dropped).split() == [said, said]
    choice = service.chat(stop=[said[-4:]], max_tokens=9).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (said[:-4], "stop")


def test_embeddings_and_transcriptions_are_refused(start: Any) -> None:
    """Clearly, as what this backend does not have, and only once the request itself is right."""
    service = start()
    right = [
        service.post("/v1/embeddings", {"model": "autoglm-phone-9b", "input": "a"}),
        _transcribe(service, {"file": ("a.wav", b"RIFF")}),
    ]
    for answer in right:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", None)
        assert "vLLM" in error["message"]
    wrong = service.post("/v1/embeddings", {"model": "autoglm-phone-9b", "input": []})
    assert wrong.json()["error"]["param"] == "input"
    assert _transcribe(service, {"other": ("a.wav", b"RIFF")}).json()["error"]["param"] == "file"


def _transcribe(service: RunningService, files: dict[str, Any]) -> requests.Response:
    return service.post("/v1/audio/transcriptions", data={"model": "autoglm-phone-9b"}, files=files)


def test_a_thought_that_vllm_took_out_itself_is_a_thought(start: Any) -> None:
    """With ``--reasoning-parser``, vLLM streams it in ``reasoning``."""
    service = start(chat="reasoning")
    _, events = streamed(service, enable_thinking=True, return_reasoning=True)
    assert content(events, "reasoning_content").startswith("hm")


@pytest.mark.parametrize(
    ("how", "status", "code", "retry"),
    [
        ("refuse", 400, "E_REQUEST", None),
        ("busy", 503, "E_OVERLOADED", "7"),
        ("mute", 504, "E_BACKEND_TIMEOUT", "2"),
        ("drop", 502, "E_BACKEND", "2"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_refuses_has_the_status_it_should(
    start: Any, how: str, status: int, code: str, retry: str | None, stream: bool
) -> None:
    """Also a stream: until vLLM has accepted the request, its status is still to be sent."""
    service = start(backend={"first_token_seconds": 1.0})
    _switch(service, chat=how)
    answer = service.chat(stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry


@pytest.mark.parametrize("how", ["crash_later", "hang_later", "abort_later", "error_later", "cut_later"])
def test_a_stream_that_breaks_ends_with_an_error_event(start: Any, how: str) -> None:
    """A crash, a silence, an abort: the client is told, and never takes a piece for the whole."""
    service = start(backend={"idle_seconds": 0.5})
    _switch(service, chat=how)
    response = service.chat(stream=True)
    lines = [line[6:] for line in response.iter_lines() if line]
    assert json.loads(lines[-1])["error"]["code"].startswith("E_BACKEND")
    assert b"[DONE]" not in lines
    assert not any(json.loads(line).get("choices", [{}])[0].get("finish_reason") for line in lines)


def test_a_client_that_goes_away_ends_the_work(start: Any) -> None:
    """vLLM stops computing for somebody who has left."""
    service = start(token_s=0.02)
    body = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 10_000,
    }
    url = f"{service.url}/v1/chat/completions"
    with requests.post(url, json=body | {"stream": True}, stream=True, timeout=30) as response:
        next(response.iter_lines())
    wait_for(lambda: _look(service)["running"] == 0, "vLLM to stop")
    wait_for(lambda: service.state.some_engine.stats().cancelled == 1, "the request to be counted")


def test_what_is_sent_is_what_was_asked(start: Any) -> None:
    """Sampling, pictures as the client sent them, and the switch of the chat template reach vLLM."""
    service = start()
    picture = _png()
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "what is this?"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    sampling = {"temperature": 0.5, "top_p": 0.85, "frequency_penalty": 0.2, "seed": 7, "max_tokens": 4}
    service.chat(messages=messages, enable_thinking=True, **sampling).raise_for_status()
    body = _look(service)["seen"][-1]
    assert sampling.items() <= body.items()
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert service.chat(tools=[_TOOL], tool_choice="required").json()["error"]["param"] == "tool_choice"


def test_a_publication_reaches_the_vllm_server_under_load(start: Any, releases: Path) -> None:
    """The same path as on a phone: check, patch, verification, self-test, commit; no stream is torn."""
    service = start(token_s=0.001)
    stop, answers = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            headers, events = streamed(service, max_tokens=16)
            answers.append((headers["x-autoglm-version"], set(content(events).split()), events[-1]))

    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    wait_for(lambda: len(answers) > 4, "answers before")
    service.state.hub.publish(releases / "v1.2.wpatch", percent=100)
    service.build_packages()
    assert service.state.updater.update(service.state.engine).kind == "updated"
    count = len(answers)
    wait_for(lambda: len(answers) > count + 8, "answers after")
    stop.set()
    for asker in askers:
        asker.join()
    words = {f"v1.{counter}": {word(releases / str(counter))} for counter in (1, 2)}
    assert all((words[version], "[DONE]") == (said, end) for version, said, end in answers)
    assert {version for version, _, _ in answers} == {"v1.1", "v1.2"}


@pytest.mark.parametrize("servers", [1, 2])
def test_a_bad_release_is_quarantined_and_the_hub_is_told(start: Any, releases: Path, servers: int) -> None:
    """It fails its self-test in the server; the device falls back, reports, and does not try it again."""
    service = start(backend={"servers": servers})
    service.state.hub.publish(releases / "v1.3.wpatch", percent=100)
    service.build_packages()
    result = service.state.updater.update(service.state.engine)
    assert (result.kind, result.code) == ("failed", "E_HEALTH")
    assert service.chat(max_tokens=1).json()["choices"][0]["message"]["content"].split() == [
        word(releases / "1")
    ]
    assert "v1.3" in json.dumps(service.state.updater.status().to_json())
    assert service.state.updater.update(service.state.engine).kind != "updated"
    (device,) = [each for each in service.state.hub.devices() if each.device_id == "service"]
    assert device.version == "v1.1"


def test_a_server_that_is_down_makes_the_service_unready(start: Any) -> None:
    """Readiness follows the server, with hysteresis; requests get 503 and Retry-After, the process lives."""
    service = start()
    _switch(service, health="fail")
    wait_for(lambda: service.get("/ready").status_code == 503, "the service to be unready")
    assert service.get("/health").json() == {"status": "ok"}
    wait_for(lambda: service.get("/ready").status_code == 200, "the server to be started again")
    assert service.chat(max_tokens=1).status_code == 200


_TOOL = {"type": "function", "function": {"name": "tap", "parameters": {"type": "object", "properties": {}}}}


def _server_url(service: RunningService) -> str:
    return str(service.state.some_engine.devices[0]).removeprefix("vllm ")


def _switch(service: RunningService, **switches: Any) -> None:
    requests.post(f"{_server_url(service)}/fake", json=switches, timeout=5).raise_for_status()


def _look(service: RunningService) -> dict[str, Any]:
    return requests.get(f"{_server_url(service)}/fake", timeout=5).json()


def _png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
