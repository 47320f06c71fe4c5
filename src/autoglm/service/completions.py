"""``POST /v1/completions``: the older of OpenAI's two APIs, for clients that know no other.

The model has been trained on conversations only, so a prompt is what a user says, and the text is the answer
to it; nothing continues a text from its middle.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, ClassVar

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from autoglm.engine import Finished, Generation, TextDelta
from autoglm.errors import AutoGLMError, RequestError
from autoglm.service.bodies import body_schema, read_model
from autoglm.service.chat import FAILURES, VERSION_HEADER, submit
from autoglm.service.replies import Head, usage_body
from autoglm.service.schemas import ChatRequest, SampledRequest, StreamOptions, Text
from autoglm.service.state import OpenState, ServiceState
from autoglm.service.streaming import ChunkStream, Metered, all_begun, broken, collect, merge, server_event
from autoglm.service.turns import let_in

MAX_PROMPTS = 32

router = APIRouter(tags=["inference"], responses=FAILURES)


class CompletionRequest(SampledRequest):
    """``POST /v1/completions``; what the fields mean is as in chat."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": (None, ""),
        "echo": (None, False),
        "best_of": (None, 1),
    }

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: Annotated[int, Field(ge=1, le=1 << 31)] = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """What is asked, one answer or more to each."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def chats(self) -> list[ChatRequest]:
        """Return the same as chats of one turn."""
        fields = self.model_dump(include={*SampledRequest.model_fields, "max_tokens"})
        if self.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": self.logprobs}
        turns = ([{"role": "user", "content": prompt}] for prompt in self.prompts)
        return [ChatRequest.model_validate(fields | {"messages": turn}) for turn in turns]


@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def complete_text(request: Request, state: OpenState) -> Response:
    """Answer a prompt, or each of several; as one JSON object or as server-sent events."""
    wanted = await read_model(request, CompletionRequest, state.settings.max_body_bytes)
    version = state.version_of(wanted.model)
    await let_in(state)
    generations = await anyio.to_thread.run_sync(
        _submit_all, state, wanted, version, limiter=state.decoding, abandon_on_cancel=False
    )
    await all_begun(generations)
    head = Head(wanted.model, generations[0].fingerprint, id=f"cmpl-{uuid.uuid4().hex}")
    headers = {VERSION_HEADER: generations[0].release}
    if spend := state.access.quota.spender(request):
        generations = [Metered(generation, spend) for generation in generations]
    if wanted.stream:
        include_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
        return ChunkStream(_chunks(head, generations, include_usage), generations, headers)
    answers = await collect(request, generations)
    choices = [_choice(index, events) for index, events in enumerate(answers)]
    usage = _usage([event for events in answers for event in events], len(wanted.prompts))
    return JSONResponse(head.body("text_completion") | {"choices": choices, "usage": usage}, headers=headers)


def _submit_all(state: ServiceState, wanted: CompletionRequest, version: str | None) -> list[Generation]:
    generations: list[Generation] = []
    try:
        for chat in wanted.chats():
            pinned = generations[0].release if generations else version  # all answers on one release
            generations += submit(state, chat, pinned, {})[1]
    except RequestError as error:
        _cancel(generations)
        if error.param == "messages":
            raise RequestError(f"prompt: {error}", param="prompt") from error
        raise
    except BaseException:
        _cancel(generations)
        raise
    return generations


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()


def _choice(index: int, events: Sequence[TextDelta | Finished]) -> dict[str, Any]:
    deltas = [event for event in events if isinstance(event, TextDelta) and event.kind == "answer"]
    endings = [event for event in events if isinstance(event, Finished)]
    return {
        "index": index,
        "text": "".join(delta.text for delta in deltas),
        "logprobs": _logprobs(deltas),
        "finish_reason": _reason(endings[0]) if endings else None,
    }


def _reason(ending: Finished) -> str:
    return "length" if ending.reason == "length" else "stop"


def _logprobs(deltas: Sequence[TextDelta]) -> dict[str, Any] | None:
    entries = [entry for delta in deltas for entry in delta.logprobs]
    if not entries:
        return None
    offsets, place = list[int](), 0
    for entry in entries:
        offsets.append(place)
        place += len(entry.text)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [max(entry.logprob, -9999.0) for entry in entries],
        "top_logprobs": [{text: max(value, -9999.0) for _, text, value in entry.top} for entry in entries],
        "text_offset": offsets,
    }


def _usage(events: Sequence[TextDelta | Finished], num_prompts: int) -> dict[str, Any]:
    """Return the usage of all answers: each prompt counts once, however many answers it has."""
    usages = [event.usage for event in events if isinstance(event, Finished)]
    each = max(1, len(usages) // num_prompts)
    prompt = sum(usage.prompt_tokens for usage in usages[::each])
    body = usage_body(usages)
    return body | {"prompt_tokens": prompt, "total_tokens": prompt + body["completion_tokens"]}


async def _chunks(
    head: Head, generations: Sequence[Generation], include_usage: bool
) -> AsyncGenerator[bytes]:
    endings: list[TextDelta | Finished] = []
    async for index, event in merge(generations):
        if isinstance(event, AutoGLMError):
            yield broken(event)
            return
        if isinstance(event, Finished):
            endings.append(event)
        elif event.kind != "answer":
            continue
        yield server_event(head.body("text_completion") | {"choices": [_choice(index, [event])]})
    if include_usage:
        usage = _usage(endings, len(endings))
        yield server_event(head.body("text_completion") | {"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"
