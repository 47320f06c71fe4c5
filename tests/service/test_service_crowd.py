"""Many at once, and many who leave: everybody is answered, nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

MODEL = "autoglm-phone-9b"
TIMEOUT_S = 300
CROWD = 1000
LEAVERS = 300


def request(service: Any, **fields: object) -> bytes:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | fields
    body = json.dumps(chat).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def address(service: Any) -> tuple[str, int]:
    host, port = service.url.removeprefix("http://").split(":")
    return host, int(port)


async def ask(service: Any, content: bytes, ready: asyncio.Barrier) -> tuple[int, dict[str, Any]]:
    """Connect, wait until all others have too, then send; return the status and the body."""
    reader, writer = await asyncio.open_connection(*address(service))
    await ready.wait()
    writer.write(content)
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def crowd(service: Any, count: int) -> list[tuple[int, dict[str, Any]]]:
    ready = asyncio.Barrier(count)
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*(ask(service, request(service), ready) for _ in range(count)))


def memory_mb() -> float:
    """What this process holds now, the service included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def is_idle(service: Any) -> bool:
    stats = service.state.engine.stats()
    return stats.running == stats.waiting == 0 and stats.free_pages == stats.pages


async def settled(service: Any) -> bool:
    """Wait until the engine has nothing to do."""
    async with asyncio.timeout(TIMEOUT_S):
        while not is_idle(service):
            await asyncio.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def _many_files() -> None:
    """Both ends of every connection are this process's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 8192:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))


def test_a_thousand_connections_at_once_are_all_answered(start_service: Any) -> None:
    """With room in the queue each gets its answer; all are the same; afterwards all pages are free."""
    service = start_service(limits={"connections_per_address": 0, "queue": 2 * CROWD})
    before = memory_mb()
    answers = asyncio.run(crowd(service, CROWD))
    assert Counter(status for status, _ in answers) == {200: CROWD}
    assert len({body["choices"][0]["message"]["content"] for _, body in answers}) == 1
    assert asyncio.run(settled(service))
    assert service.get("/health").status_code == 200
    assert memory_mb() - before < 300


def test_a_crowd_beyond_the_limits_is_told_so(start_service: Any) -> None:
    """By default the queue and the connections of one address are bounded: 200 or 503, nothing else."""
    service = start_service(limits={"queue": 16})
    answers = asyncio.run(crowd(service, 400))
    counted = Counter(status for status, _ in answers)
    assert set(counted) == {200, 503}
    assert counted[200] >= 16
    codes = {body["error"]["code"] for status, body in answers if status == 503}
    assert codes <= {"E_OVERLOADED", "too_many_connections"}
    assert service.chat().status_code == 200
    assert asyncio.run(settled(service))


async def leave(service: Any, content: bytes, places: asyncio.Semaphore) -> None:
    """Ask for a long stream and hang up after its first bytes."""
    async with places:
        reader, writer = await asyncio.open_connection(*address(service))
        writer.write(content)
        assert b"200 OK" in await reader.read(200)
        writer.transport.abort()


@pytest.mark.usefixtures("unhurried")
def test_streams_that_nobody_reads_any_more_leave_nothing(start_service: Any) -> None:
    """Hundreds who hang up in the middle: no slot, no page, no memory stays with them."""
    service = start_service()

    async def all_leave(count: int) -> None:
        content = request(service, stream=True, max_tokens=900)
        places = asyncio.Semaphore(20)
        await asyncio.gather(*(leave(service, content, places) for _ in range(count)))
        await settled(service)

    asyncio.run(all_leave(LEAVERS // 3))
    before, cancelled = memory_mb(), service.state.engine.stats().cancelled
    asyncio.run(all_leave(LEAVERS))
    assert service.state.engine.stats().cancelled - cancelled == LEAVERS
    assert is_idle(service)
    assert memory_mb() - before < 20
    assert service.chat().status_code == 200


def test_embeddings_that_nobody_waits_for_leave_nothing(start_service: Any) -> None:
    """Who hangs up while a long list is embedded ends the work; the release is let go of."""
    service = start_service()

    async def all_leave() -> None:
        body = json.dumps({"model": MODEL, "input": ["some text " * 40] * 200}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(5):
            _, writer = await asyncio.open_connection(*address(service))
            writer.write(head + body)
            before = service.state.engine.stats().requests
            while service.state.engine.stats().requests == before:
                await asyncio.sleep(0.005)
            writer.transport.abort()
        await settled(service)

    asyncio.run(all_leave())
    engine = service.state.engine
    assert engine.stats().requests < 1000, "the lists were not worked off"
    assert engine._versions.active.num_users == 0
