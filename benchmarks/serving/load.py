"""Open-loop load: requests leave when they are due, whatever became of those before.

Arrivals are drawn before the clock starts (exponential gaps, seeded). Every latency counts from the moment at
which a request was due, so a server that stalls, or a generator that falls behind, cannot hide the wait of
those that came meanwhile (G. Tene, "How NOT to Measure Latency": coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2 as httpx


@dataclass
class Outcome:
    """One request: seconds, all from the moment it was due.

    Attributes:
        kind: of the request.
        due_s: when it was due, since the start.
        lag_s: how late the generator sent it.
        status: of the answer, 0 without one.
        first_s: until the first token, None without one.
        total_s: until the end of the answer.
        gaps_s: between the pieces of the answer.
        tokens: that the server counted, else the pieces.
        error: what went wrong, "" for a whole answer.
    """

    kind: str
    due_s: float
    lag_s: float = 0.0
    status: int = 0
    first_s: float | None = None
    total_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""

    @property
    def is_rejected(self) -> bool:
        """Whether the server said that it has no room."""
        return self.status in (429, 503)


def arrivals(rate: float, duration_s: float, seed: int) -> list[float]:
    """Return when requests are due: a Poisson process of ``rate`` a second."""
    chance, due, times = random.Random(seed), 0.0, list[float]()
    while (due := due + chance.expovariate(rate)) < duration_s:
        times.append(due)
    return times


async def run_load(
    url: str,
    key: str,
    due: Sequence[float],
    bodies: Sequence[tuple[str, bytes]],
    timeout_s: float,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Send every body at its time and return what became of each."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=timeout_s) as client:
        start = time.perf_counter() + 0.1
        tasks = [
            asyncio.create_task(_send(client, start, Outcome(kind, at), body, done))
            for at, (kind, body) in zip(due, bodies, strict=True)
        ]
        return list(await asyncio.gather(*tasks))


async def _send(
    client: httpx.AsyncClient, start: float, outcome: Outcome, body: bytes, done: Callable[[Outcome], None]
) -> Outcome:
    due = start + outcome.due_s
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    outcome.lag_s = time.perf_counter() - due
    try:
        await _read(client, due, outcome, body)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        outcome.error = f"{type(error).__name__}: {error}"[:200]
    outcome.total_s = time.perf_counter() - due
    done(outcome)
    return outcome


async def _read(client: httpx.AsyncClient, due: float, outcome: Outcome, body: bytes) -> None:
    async with client.stream("POST", "/v1/chat/completions", content=body) as response:
        outcome.status = response.status_code
        if response.status_code != 200:
            outcome.error = (
                f"{response.status_code}: {(await response.aread())[:200].decode(errors='replace')}"
            )
            return
        last = None
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data:"):
                last = _note(json.loads(line[5:]), due, outcome, last)
        outcome.error = "the stream ended without [DONE]"


def _note(event: dict, due: float, outcome: Outcome, last: float | None) -> float | None:
    """Note a chunk; return when the last piece of text came."""
    if "error" in event:
        raise ValueError(event["error"].get("message"))
    if usage := event.get("usage"):
        outcome.tokens = usage["completion_tokens"]
    if not any(_says(choice["delta"]) for choice in event["choices"]):
        return last
    now = time.perf_counter()
    outcome.tokens += not usage
    if last is None:
        outcome.first_s = now - due
    else:
        outcome.gaps_s.append(now - last)
    return now


def _says(delta: dict) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
