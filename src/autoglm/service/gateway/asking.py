"""One request on its way through the gateway: sent to a server, its stream turned into the engine's events.

What it guarantees: events end with exactly one :class:`~autoglm.engine.Finished` or one error, also when the
server crashes or falls silent in the middle; cancelling closes the connection, which makes vLLM stop; a
request is sent a second time only while not a byte of an answer has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from autoglm.engine import Finished, Generation, GenerationRequest, TextDelta, TokenLogprob, Usage
from autoglm.errors import BackendError, BackendTimeoutError, EngineError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway.tags import TagReader
from autoglm.service.gateway.wire import Chunk, chunk_of, refusal_of

MAX_EVENT_BYTES = 4 << 20
MAX_TRIES = 3
_MAX_ERROR_BYTES = 64 << 10
_MAX_CONNECTIONS = 1000
_DONE = b"[DONE]"
_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class NotReachedError(BackendError):
    """The connection broke before a byte of an answer came, so the request may be sent again."""


class Asked(Generation):
    """The handle of a request that a server computes; see :class:`~autoglm.engine.Generation`."""

    def __init__(self, release: str, fingerprint: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(release, fingerprint)
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._start: Future[None] = Future()
        self._is_stopping = False  # for the gateway's own loop

    def cancel(self) -> None:
        """Close the connection to the server; harmless when it has ended already."""
        super().cancel()
        with contextlib.suppress(RuntimeError):  # the loop is closed: all has ended
            self._loop.call_soon_threadsafe(self._stop)

    async def begun(self) -> None:
        """Wait until the server has accepted the request.

        Raises:
            EngineError: it was refused, or no server could be reached.
        """
        await asyncio.wrap_future(self._start)

    def accepted(self) -> None:
        """Note that the server computes it; for the gateway's own loop."""
        if not self._start.done():
            self._start.set_result(None)

    def end(self, ending: Finished | EngineError) -> None:
        """Deliver the last event; for the gateway's own loop."""
        if not self._start.done() and isinstance(ending, EngineError):
            self._start.set_exception(ending)
        self.accepted()
        self.deliver(ending)

    def run(self, work: Awaitable[None]) -> None:
        """Start the work in the gateway's own loop, unless it was cancelled before."""
        self._task = asyncio.ensure_future(work)  # type: ignore[assignment]
        if self.is_cancelled:
            self._stop()

    def _stop(self) -> None:
        """Cancel the work once: a second time would interrupt the closing of its connection, and leak it."""
        if self._task is not None and not self._is_stopping:
            self._is_stopping = True
            self._task.cancel()


@dataclass
class Choice:
    """How far one answer has come."""

    reader: TagReader
    began: float
    usage: Usage | None = None
    reason: str | None = None
    first: float | None = None
    latest: float = 0.0
    num_events: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def take(self, chunk: Chunk) -> list[TextDelta]:
        """Return the events that a chunk makes."""
        self.usage = chunk.usage or self.usage
        self.reason = chunk.reason or self.reason
        self.logprobs += chunk.logprobs
        pieces = [("thought", chunk.thought)] if chunk.thought else []
        pieces += self.reader.push(chunk.text)
        if chunk.thought or chunk.text:
            self.num_events += 1
            self.latest = time.monotonic()
            self.first = self.first or self.latest
        return self._deltas(pieces)

    def finish(self) -> list[TextDelta]:
        """Return the events that were held back."""
        return self._deltas(self.reader.finish())

    def finished(self, release: str) -> Finished:
        """Return the last event.

        Raises:
            BackendError: the server did not say that the answer is whole.
        """
        now = time.monotonic()
        reason = "stop" if self.reader.ended else self.reason
        if reason is None or reason in ("abort", "error"):
            raise BackendError(f"vLLM ended the answer before it was whole ({reason or 'no reason given'})")
        usage = self.usage or Usage(0, self.num_events)
        first_s = 0.0 if self.first is None else self.first - self.began
        return Finished("length" if reason == "length" else "stop", usage, release, first_s, now - self.began)

    def _deltas(self, pieces: list[Any]) -> list[TextDelta]:
        deltas: list[TextDelta] = []
        for kind, text in pieces:
            deltas.append(TextDelta(kind, text, (), tuple(self.logprobs)))
            self.logprobs.clear()
        return deltas


class Upstream:
    """Sends requests to servers; lives in the gateway's own loop.

    Args:
        settings: the time-outs.
        key: what the servers ask for.
    """

    def __init__(self, settings: BackendSettings, key: str | None) -> None:
        self._settings = settings
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=settings.connect_seconds, pool=settings.wait_seconds),
            limits=limits,
            trust_env=False,
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def answer(
        self, asked: Asked, request: GenerationRequest, url: str, body: dict[str, Any]
    ) -> Finished:
        """Send the request to a server and deliver its events; return the last one.

        Raises:
            NotReachedError: nothing of an answer came; it may be sent again.
            RequestError, OverloadedError, BackendError: it was refused, or broke off.
        """
        choice = Choice(TagReader(request.stop), time.monotonic())
        try:
            async with contextlib.aclosing(self._chunks(asked, url, body)) as chunks:
                async for chunk in chunks:
                    for delta in choice.take(chunk):
                        asked.deliver(delta)
                    if choice.reader.ended:
                        break
        except httpx.ConnectError as error:
            raise NotReachedError(f"vLLM at {url} does not take connections") from error
        except (httpx.HTTPError, OSError) as error:
            kind = NotReachedError if choice.num_events == 0 else BackendError
            raise kind(f"the connection to vLLM at {url} broke: {error or type(error).__name__}") from error
        for delta in choice.finish():
            asked.deliver(delta)
        return choice.finished(asked.release)

    async def _chunks(self, asked: Asked, url: str, body: dict[str, Any]) -> AsyncGenerator[Chunk]:
        """Yield the chunks of a stream up to its proper end."""
        settings, is_first = self._settings, True
        request = self._client.build_request(
            "POST",
            f"{url}/v1/chat/completions",
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        response = await _within(
            settings.first_token_seconds, lambda: self._client.send(request, stream=True)
        )
        async with contextlib.aclosing(response):
            if response.status_code != 200:
                content = await _within(settings.idle_seconds, lambda: _bounded(response))
                raise refusal_of(response.status_code, content, response.headers.get("retry-after"))
            asked.accepted()
            async with contextlib.aclosing(_events(response)) as events:
                while True:
                    seconds = settings.first_token_seconds if is_first else settings.idle_seconds
                    data = await _within(seconds, lambda: anext(events, None))
                    if data is None:
                        raise BackendError("the stream of vLLM ended before the answer was whole")
                    if data == _DONE:
                        return
                    chunk = chunk_of(data)
                    is_first = is_first and not (chunk.text or chunk.thought)
                    yield chunk


async def _within(seconds: float, act: Callable[[], Awaitable[_T]]) -> _T:
    try:
        async with asyncio.timeout(seconds):
            return await act()
    except (TimeoutError, httpx.TimeoutException) as error:
        raise BackendTimeoutError(f"vLLM sent nothing for {seconds:g} s") from error


async def _bounded(response: httpx.Response) -> bytes:
    content = b""
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_ERROR_BYTES:
            break
    return content[:_MAX_ERROR_BYTES]


async def _events(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Yield the data of each server-sent event; comments, which keep a connection open, are none."""
    held = b""
    async for piece in response.aiter_raw():
        held += piece.replace(b"\r", b"")
        *whole, held = held.split(b"\n\n")
        if len(held) > MAX_EVENT_BYTES:
            raise BackendError(f"vLLM sent an event of more than {MAX_EVENT_BYTES} bytes")
        for event in whole:
            if event.startswith(b"data:"):
                yield event[5:].strip()
