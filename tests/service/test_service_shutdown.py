"""The end of a service, as a process: streams end whole, nothing new is taken, a second signal is final."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from service.test_service_serve import Process

TIMEOUT_S = 120
Launch = Callable[..., tuple[Process, str]]


@pytest.fixture
def launch(store: Path, tmp_path: Path) -> Generator[Launch]:
    """Start ``autoglm serve``; returns the process and its address."""
    running: list[Process] = []

    def start(settings: str = "") -> tuple[Process, str]:
        model = f"model: {{store: {store}, device: cpu, threads: 1}}"
        text = f"{model}\nhost: 127.0.0.1\nport: 0\nhub: {{worker: false}}\n{settings}"
        (tmp_path / "c.yaml").write_text(text)
        running.append(Process(tmp_path))
        url = running[-1].read_until(r"listening on (http://[0-9.:]+)")[1]
        running[-1].read_until("Hot-update endpoint")
        return running[-1], url

    yield start
    for process in running:
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


@contextlib.contextmanager
def stream(url: str, tokens: int) -> Generator[Iterator[bytes]]:
    """A chat that is being answered: its first event has come."""
    body = {
        "model": "autoglm-phone-9b",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": tokens,
        "n": 4,  # so that it lasts
        "stream": True,
    }
    with requests.post(f"{url}/v1/chat/completions", json=body, stream=True, timeout=TIMEOUT_S) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        yield lines


def statuses(url: str) -> dict[str, int]:
    """What is answered to new connections."""
    return {
        "ready": requests.get(f"{url}/ready", timeout=TIMEOUT_S).status_code,
        "health": requests.get(f"{url}/health", timeout=TIMEOUT_S).status_code,
        "models": requests.get(f"{url}/v1/models", timeout=TIMEOUT_S).status_code,
    }


def wait_until_unready(url: str) -> None:
    while requests.get(f"{url}/ready", timeout=TIMEOUT_S).status_code == 200:
        threading.Event().wait(0.01)


def test_streams_end_whole_while_nothing_new_is_taken(launch: Launch) -> None:
    """TERM: not ready, 503 for new requests, the stream to its end, then status 0."""
    process, url = launch()
    with stream(url, 900) as lines:
        process.process.send_signal(signal.SIGTERM)
        wait_until_unready(url)
        seen = statuses(url)
        rest = list(lines)
    assert seen == {"ready": 503, "health": 200, "models": 503}
    assert rest[-1] == b"data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert process.process.wait(TIMEOUT_S) == 0


def test_an_upload_to_a_service_that_stops_is_told_so(launch: Launch) -> None:
    """The 503 arrives although megabytes are still being sent: the connection is not reset under them."""
    process, url = launch()
    with stream(url, 900) as lines:
        process.process.send_signal(signal.SIGTERM)
        wait_until_unready(url)
        answers = [
            requests.post(f"{url}/v1/{path}", data=b"x" * size, timeout=TIMEOUT_S)
            for path, size in (
                ("embeddings", 900_000),
                ("chat/completions", 12 << 20),
                ("embeddings", 40 << 20),
            )
        ]
        list(lines)
    assert [answer.json()["error"]["code"] for answer in answers] == ["stopping"] * 3
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert process.process.wait(TIMEOUT_S) == 0


def test_uploads_outlast_the_last_request(launch: Launch) -> None:
    """Of two bodies on their way, one that began before the signal is answered, one after it is told 503."""
    process, url = launch()
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n"
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as early,
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as late,
    ):
        early.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert early.recv(1 << 16).startswith(b"HTTP/1.1 100")
        early.sendall(b" " * 2_000_000)
        process.process.send_signal(signal.SIGTERM)
        wait_until_unready(url)
        late.sendall(head + b"\r\n" + b" " * 2_000_000)
        refusal = late.recv(1 << 16)
        early.sendall(b" " * 2_000_000)
        answer = b"".join(iter(lambda: early.recv(1 << 16), b""))
        late.sendall(b" " * 2_000_000)
        refusal += b"".join(iter(lambda: late.recv(1 << 16), b""))  # to its end: nothing was reset
    assert answer.startswith(b"HTTP/1.1 400") and b'"invalid_request_error"' in answer
    assert refusal.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in refusal
    assert b'"stopping"' in refusal
    assert process.process.wait(TIMEOUT_S) == 0


def test_without_requests_it_ends_at_once(launch: Launch) -> None:
    """Nothing under way: nothing is waited for."""
    process, _ = launch("limits: {drain_seconds: 3600}")
    assert process.end() == 0


def test_a_second_signal_ends_at_once(launch: Launch) -> None:
    """Whoever asks twice is not kept waiting for streams, and the status is still 0."""
    process, url = launch("limits: {drain_seconds: 3600}")
    with stream(url, 1000) as lines:
        process.process.send_signal(signal.SIGTERM)
        wait_until_unready(url)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(TIMEOUT_S) == 0
        with contextlib.suppress(requests.RequestException):
            assert b"data: [DONE]" not in list(lines)


def test_streams_that_outlast_the_limit_end_with_an_error(launch: Launch) -> None:
    """After limits.drain_seconds the stream is told that it broke off, and the process ends with status 0."""
    process, url = launch("limits: {drain_seconds: 0}")
    rest: list[Any] = []
    with stream(url, 1000) as lines:
        process.process.send_signal(signal.SIGTERM)
        rest += lines
    assert process.process.wait(TIMEOUT_S) == 0
    assert rest[-1] != b"data: [DONE]"
    assert json.loads(rest[-1][6:])["error"]["type"] == "server_error"
