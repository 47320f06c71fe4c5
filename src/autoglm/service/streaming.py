"""Generations as server-sent events, and as whole answers that end when the client goes away.

What it guarantees: chunks come as they are generated; an error after the first byte is sent as an
OpenAI-shaped ``error`` event, because the status is gone by then; whoever disconnects cancels his
generations within one step of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from autoglm.engine import Finished, Generation, TextDelta
from autoglm.errors import AutoGLMError
from autoglm.service.problems import problem_of
from autoglm.service.replies import (
    Head,
    Presenter,
    chunk_body,
    logprob_body,
    usage_body,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")
_Arrival = tuple[int, TextDelta | Finished | AutoGLMError]


def server_event(body: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def broken(error: AutoGLMError) -> bytes:
    """Return the last event of a stream that came to an error, and log it."""
    _log.error("a stream broke off: %s", error)
    return server_event(problem_of(error).body)


class Metered(Generation):
    """A generation whose tokens are counted as they come; each choice of a request counts its prompt.

    Those that were computed for a client who is gone are counted when the engine has ended the request, its
    prompt when it was read to its end. Made in a running asyncio loop, where ``spend`` is called.

    Args:
        generation: what it stands for.
        spend: is told of so many more tokens.
    """

    def __init__(self, generation: Generation, spend: Callable[[int], None]) -> None:
        super().__init__(generation.release, generation.fingerprint)
        self._inner, self._spend = generation, spend
        self._counted = 0
        self._is_settled = False
        self._loop = asyncio.get_running_loop()
        generation.on_finished(self._settle_soon)

    def cancel(self) -> None:
        """End the request."""
        self._inner.cancel()

    async def __aiter__(self) -> AsyncIterator[TextDelta | Finished]:
        """Yield its events."""
        async for event in self._inner:
            if isinstance(event, Finished):
                self._settle(event)
            elif not self._is_settled:
                self._count(len(event.token_ids))
            yield event

    def _count(self, tokens: int) -> None:
        self._counted += tokens
        self._spend(tokens)

    def _settle(self, finished: Finished) -> None:
        """Count what no delta has told of yet; deltas that the consumer takes later are counted with it."""
        self._is_settled = True
        usage = finished.usage
        used = usage.completion_tokens + (usage.prompt_tokens if usage.completion_tokens else 0)
        if used > self._counted:
            self._count(used - self._counted)

    def _settle_soon(self, finished: Finished) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is limited any more
            self._loop.call_soon_threadsafe(self._settle, finished)


class ChunkStream(StreamingResponse):
    """Server-sent events that cancel their generations however the response ends, even before it began."""

    def __init__(
        self, chunks: AsyncGenerator[bytes], generations: Sequence[Generation], headers: dict[str, str]
    ) -> None:
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=unbuffered | headers)
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generation in self._generations:
                generation.cancel()


async def stream_chunks(
    head: Head, generations: Sequence[Generation], presenters: Sequence[Presenter], *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """Yield the server-sent events of one request, its choices interleaved as they come."""
    extra = {"usage": None} if include_usage else {}
    endings: list[Finished] = []
    for index in range(len(generations)):
        yield server_event(chunk_body(head, index, {"role": "assistant", "content": ""}) | extra)
    async with contextlib.aclosing(merge(generations)) as arrivals:
        async for index, event in arrivals:
            if isinstance(event, AutoGLMError):
                yield broken(event)
                return
            if isinstance(event, Finished):
                endings.append(event)
                if rest := presenters[index].finish():
                    yield server_event(chunk_body(head, index, rest) | extra)
                reason = presenters[index].reason(event)
                yield server_event(chunk_body(head, index, {}, finish_reason=reason) | extra)
            elif fields := presenters[index].fields(event):
                yield server_event(chunk_body(head, index, fields, **_logprobs(event, fields)) | extra)
    if include_usage:
        usage = usage_body(ending.usage for ending in endings)
        yield server_event(head.body("chat.completion.chunk") | {"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _logprobs(event: TextDelta, fields: dict[str, Any]) -> dict[str, Any]:
    if not event.logprobs or "content" not in fields:
        return {}
    return {"logprobs": {"content": [logprob_body(entry) for entry in event.logprobs], "refusal": None}}


async def merge(generations: Sequence[Generation]) -> AsyncGenerator[_Arrival]:
    """Yield ``(index, event)`` of all generations as they come, an error as the last."""
    inbox: asyncio.Queue[_Arrival] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(i, generation, inbox)) for i, generation in enumerate(generations)]
    try:
        open_choices = len(generations)
        while open_choices:
            index, event = await inbox.get()
            yield index, event
            if isinstance(event, AutoGLMError):
                return
            open_choices -= isinstance(event, Finished)
    finally:
        for task in tasks:
            task.cancel()


async def _forward(index: int, generation: Generation, inbox: asyncio.Queue[_Arrival]) -> None:
    try:
        async for event in generation:
            inbox.put_nowait((index, event))
    except AutoGLMError as error:
        inbox.put_nowait((index, error))


async def all_begun(generations: Sequence[Generation]) -> None:
    """Wait until all are being computed, so that what refuses one still becomes the answer's status.

    Raises:
        EngineError: one was refused; all are cancelled.
    """
    try:
        for generation in generations:
            await generation.begun()
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise


async def collect(request: Request, generations: Sequence[Generation]) -> list[list[TextDelta | Finished]]:
    """Return the events of all generations once they have ended, one list each.

    Raises:
        EngineError: one of them failed; the others are cancelled.
        ClientDisconnect: the client went away first; all are cancelled.
    """
    work = asyncio.gather(*(_events(generation) for generation in generations))
    work.add_done_callback(_heard)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return list(work.result())
    finally:
        gone.cancel()
        for generation in generations:
            generation.cancel()
        if not work.done():
            work.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns; cancel it when the client goes away first.

    Raises:
        ClientDisconnect: the client went away.
        Exception: whatever ``work`` raises.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    task.add_done_callback(_heard)
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def _heard(work: asyncio.Future[Any]) -> None:
    """Take note of how work ended: nobody else does after its client went away, and asyncio would log it."""
    if not work.cancelled():
        work.exception()


async def _events(generation: Generation) -> list[TextDelta | Finished]:
    return [event async for event in generation]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
