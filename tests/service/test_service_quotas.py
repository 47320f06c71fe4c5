"""Limits of one caller: requests and tokens a minute, and what the answers say of them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from typing import Any

import pytest

from autoglm.engine import Finished, Generation, TextDelta, Usage
from autoglm.hub import Claims
from autoglm.service.quotas import MAX_CALLERS, TokenBuckets, too_many
from autoglm.service.streaming import Metered

NAMES = [
    f"x-ratelimit-{kind}-{what}"
    for kind in ("limit", "remaining", "reset")
    for what in ("requests", "tokens")
]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_refills_evenly_and_may_be_overdrawn() -> None:
    """What was spent beyond it has to come back first; it never holds more than a minute's worth."""
    clock = Clock()
    buckets = TokenBuckets(60, clock)
    buckets.spend("a", 90)
    assert (buckets.left("a"), buckets.wait_s("a"), buckets.left("b")) == (-30, 31, 60)
    clock.now = 31.0
    assert buckets.wait_s("a") == 0
    clock.now = 1000.0
    assert buckets.left("a") == 60


def test_the_callers_longest_unseen_are_forgotten() -> None:
    """The memory is bounded, whoever asks."""
    buckets = TokenBuckets(10, Clock())
    for number in range(MAX_CALLERS + 5):
        buckets.spend(str(number), 10)
    assert buckets.left("0") == buckets.left("4") == 10
    assert buckets.left("5") == 0


def test_answers_say_what_is_left(start_service: Any) -> None:
    """OpenAI's headers on every counted answer, errors included; a 429 says when to come back."""
    service = start_service(limits={"requests_per_minute": 3, "tokens_per_minute": 100_000})
    answers = [service.chat(max_tokens=2), service.chat(temperature=9), service.get("/v1/models")]
    assert [answer.status_code for answer in answers] == [200, 400, 200]
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["2", "1", "0"]
    for name in NAMES:
        assert name in answers[0].headers
    assert re.fullmatch(r"\d+ms", answers[0].headers["x-ratelimit-reset-requests"])
    refused = service.chat()
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert not [name for name in service.get("/health").headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_as_they_are_computed(start_service: Any, stream: bool) -> None:
    """Prompt and answer together; whoever has used them up waits, and may still ask for updates."""
    service = start_service(limits={"tokens_per_minute": 60})
    first = service.chat("hi", max_tokens=100, stream=stream)
    assert first.status_code == 200
    assert first.content
    second = service.chat("hi", max_tokens=1)
    assert second.status_code == 429
    assert "tokens" in second.json()["error"]["message"]
    assert int(second.headers["retry-after"]) > 30
    assert service.post("/v1/embeddings", {"model": "autoglm-phone-9b", "input": "a"}).status_code == 429
    assert service.post("/v1/model/update", {"device_id": "d"}).status_code == 200
    assert service.get("/v1/models").status_code == 200


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_nobody_took_count_too(start_service: Any, stream: bool) -> None:
    """Whoever hangs up in the middle has used the prompt and every token that was generated for him."""
    service = start_service(limits={"tokens_per_minute": 100_000})
    service.state.access.quota._tokens._clock = lambda: 0.0  # nothing is refilled
    body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 900}
    content = json.dumps(body | {"stream": stream}).encode()
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    generated = lambda: service.state.engine.stats().generated_tokens  # noqa: E731
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        while generated() < 20:
            threading.Event().wait(0.002)
    while not service.state.engine.stats().cancelled:
        threading.Event().wait(0.002)
    stats, used = service.state.engine.stats(), 0
    for _ in range(1000):  # settled on the event loop, a moment after the engine has ended it
        used = 100_000 - int(service.get("/v1/models").headers["x-ratelimit-remaining-tokens"])
        if used >= stats.prompt_tokens + stats.generated_tokens:
            break
    assert (stats.cancelled, used) == (1, stats.prompt_tokens + stats.generated_tokens)


def test_a_request_that_never_began_costs_nothing() -> None:
    """Cancelled in the queue: neither its prompt nor an answer was computed."""
    spent: list[int] = []

    async def meter() -> None:
        inner = Generation("v1.2", "fp")
        Metered(inner, spent.append)
        inner.deliver(Finished("cancelled", Usage(500, 0), "v1.2", 0.0, 1.0))
        late = Generation("v1.2", "fp")
        late.deliver(Finished("cancelled", Usage(500, 7), "v1.2", 0.1, 1.0))
        Metered(late, spent.append)
        await asyncio.sleep(0)

    asyncio.run(meter())
    assert spent == [507]


@pytest.mark.parametrize("taken_before", [0, 2])
def test_each_token_is_counted_once_however_late_it_is_taken(taken_before: int) -> None:
    """The engine has ended while the consumer still has deltas to take: usage says what is spent."""
    spent: list[int] = []

    async def meter() -> None:
        inner = Generation("v1.2", "fp")
        events = aiter(Metered(inner, spent.append))
        for token in range(taken_before):
            inner.deliver(TextDelta("answer", "a", (token,)))
            await anext(events)
        for token in range(taken_before, 10):
            inner.deliver(TextDelta("answer", "a", (token,)))
        inner.deliver(Finished("stop", Usage(5, 10), "v1.2", 0.1, 1.0))
        await asyncio.sleep(0)
        assert [event async for event in events][-1] == Finished("stop", Usage(5, 10), "v1.2", 0.1, 1.0)

    asyncio.run(meter())
    assert sum(spent) == 15


def test_embeddings_and_transcriptions_count_too(start_service: Any) -> None:
    """The tokens of an embedding are those that its usage names."""
    service = start_service(limits={"tokens_per_minute": 1000})
    answer = service.post("/v1/embeddings", {"model": "autoglm-phone-9b", "input": ["hello", "there"]})
    used = answer.json()["usage"]["total_tokens"]
    left = int(service.get("/v1/models").headers["x-ratelimit-remaining-tokens"])
    assert 1000 - used <= left < 1000


def test_each_token_has_a_bucket_of_its_own(start_service: Any) -> None:
    """One caller's answers cost another nothing, though both come from one address."""
    service = start_service(auth={"required": True}, limits={"requests_per_minute": 1})
    tokens = [service.state.hub.issue_token(Claims("viewer", name)) for name in ("a", "b")]
    for token in tokens:
        headers = {"authorization": f"Bearer {token}"}
        statuses = [service.get("/v1/models", headers=headers).status_code for _ in range(2)]
        assert statuses == [200, 429]


def test_without_limits_nothing_is_said(service: Any) -> None:
    """The headers are there only where there is something to say."""
    assert not [name for name in service.chat(max_tokens=1).headers if name.startswith("x-ratelimit")]


def test_retry_after_is_rounded_up() -> None:
    """Whoever waits as long as it says is let in."""
    waits = {seconds: too_many("wait", seconds).headers["retry-after"] for seconds in (0.1, 1.4, 30.0, 30.2)}
    assert waits == {0.1: "1", 1.4: "2", 30.0: "30", 30.2: "31"}
