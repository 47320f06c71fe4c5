"""Whoever is refused, or speaks an old HTTP, gets an answer that can be read to its end."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections import Counter
from typing import Any

import pytest

TIMEOUT_S = 120
MODEL = "autoglm-phone-9b"
HALF = b"POST /v1/model/update HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(autouse=True)
def _many_files() -> None:
    """Both ends of every connection are this process's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 8192:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))


def address(service: Any) -> tuple[str, int]:
    host, port = service.url.removeprefix("http://").split(":")
    return host, int(port)


async def until(condition: Any) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


def filled(service: Any, places: int) -> list[socket.socket]:
    """Take all places with requests that do not come to an end."""
    taken = [socket.create_connection(address(service), timeout=TIMEOUT_S) for _ in range(places)]
    for each in taken:
        each.sendall(HALF)
    asyncio.run(until(lambda: len(service.server.server_state.tasks) == places))
    return taken


async def ask(service: Any, content: bytes, ready: asyncio.Barrier) -> bytes:
    """Connect, wait until all others have too, send a request in two pieces, and read to the end."""
    reader, writer = await asyncio.open_connection(*address(service))
    await ready.wait()
    writer.write(content[: len(content) // 2])
    await asyncio.sleep(0)
    writer.write(content[len(content) // 2 :])
    answer = await reader.read(-1)
    writer.close()
    return answer


def test_hundreds_without_a_place_all_read_why(start_service: Any) -> None:
    """600 requests with bodies at a service whose places are taken: 600 whole 503s, not one reset."""
    service = start_service(limits={"connections": 16, "connections_per_address": 0})
    taken = filled(service, 16)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi " * 20_000}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    async def crowd() -> list[bytes]:
        ready = asyncio.Barrier(600)
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*(ask(service, head.encode() + body, ready) for _ in range(600)))

    answers = asyncio.run(crowd())
    for each in taken:
        each.close()
    assert Counter(answer.split()[1] for answer in answers) == {b"503": 600}
    assert all(b"\r\nretry-after: 5\r\n" in answer for answer in answers)
    codes = {json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] for answer in answers}
    assert codes == {"too_many_connections"}
    keeper = service.server.doorkeeper
    asyncio.run(until(lambda: len(keeper) == keeper.num_outside == 0))
    assert service.get("/health").status_code == 200


def test_those_who_wait_outside_in_silence_are_few_and_told_in_the_end(start_service: Any) -> None:
    """A thousand without a place that never ask hold no more than the room for it, and go by themselves."""
    service = start_service(limits={"connections": 16, "connections_per_address": 0})
    keeper, most = service.server.doorkeeper, 0
    taken = filled(service, 16)
    mute = [socket.create_connection(address(service), timeout=TIMEOUT_S) for _ in range(1000)]
    for each in mute:
        most = max(most, keeper.num_outside)
        assert each.recv(1 << 16).startswith(b"HTTP/1.1 503")
    assert most <= keeper.limits.outside
    asyncio.run(until(lambda: keeper.num_outside == 0))
    taken[0].sendall(b" " * 10)
    assert taken[0].recv(1 << 16).startswith(b"HTTP/1.1 400")
    for each in (*taken, *mute):
        each.close()


def ask_as_of_old(service: Any, path: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """Ask by HTTP/1.0; return head and body of the answer, as the end of the connection delimits it."""
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(address(service), timeout=TIMEOUT_S) as connection:
        connection.sendall(head.encode() + body)
        pieces = list(iter(lambda: connection.recv(1 << 16), b""))
    answer, _, content = b"".join(pieces).partition(b"\r\n\r\n")
    return answer.lower(), content


def test_http_1_0_gets_a_stream_without_chunks(service: Any) -> None:
    """A stream comes as it is and ends with its connection; it holds what HTTP/1.1 is sent."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "stream": True}
    head, content = ask_as_of_old(service, "/v1/chat/completions", json.dumps(chat).encode())
    assert b"transfer-encoding" not in head and b"\r\nconnection: close" in head
    events = content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    choices = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == service.chat(max_tokens=12).json()["choices"][0]["message"]["content"]


def test_http_1_0_gets_everything_else_by_its_length(service: Any) -> None:
    """An answer of a known length says it, as ever."""
    head, content = ask_as_of_old(service, "/health")
    assert f"content-length: {len(content)}".encode() in head
    assert json.loads(content) == {"status": "ok"}


def test_a_body_beyond_the_limit_reads_its_refusal(start_service: Any) -> None:
    """A client that sends all of a body that is too large, and only then listens, reads the 413."""
    service = start_service(limits={"body_mb": 1})
    answer = service.post("/v1/chat/completions", data=b"x" * (24 << 20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    keeper = service.server.doorkeeper
    asyncio.run(until(lambda: len(keeper) == 0))
