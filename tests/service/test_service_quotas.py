"""Limits of one caller: requests and tokens a minute, and what the answers say of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autoglm.hub import Claims
from autoglm.service.quotas import MAX_CALLERS, TokenBuckets, too_many

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
