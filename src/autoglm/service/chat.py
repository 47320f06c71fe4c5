"""``POST /v1/chat/completions`` and ``GET /v1/models``: OpenAI's API over the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from autoglm.engine import Finished, Generation, GenerationRequest, Sampling, SharedPrompt
from autoglm.errors import RequestError
from autoglm.model.tools import tools_message
from autoglm.service.bodies import body_schema, read_model
from autoglm.service.fetching import Fetched
from autoglm.service.media import MediaReader, image_urls, parts_of
from autoglm.service.problems import APIError, ErrorAnswer
from autoglm.service.replies import Head, Presenter, Showing, choice_body, showing_of, usage_body
from autoglm.service.schemas import ChatRequest
from autoglm.service.state import OpenState, ServiceState
from autoglm.service.streaming import ChunkStream, Metered, all_begun, collect, stream_chunks
from autoglm.service.turns import let_in

VERSION_HEADER = "x-autoglm-version"
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 404, 413, 429, 500, 502, 503, 504)
}

router = APIRouter(tags=["inference"], responses=FAILURES)


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def complete(request: Request, state: OpenState) -> Response:
    """Answer a conversation, as one JSON object or as server-sent events."""
    chat = await read_model(request, ChatRequest, state.settings.max_body_bytes)
    version = state.version_of(chat.model)
    fetched = await state.fetcher.fetch_all(image_urls(parts_of(chat.messages)))
    await let_in(state)
    showing, generations = await anyio.to_thread.run_sync(
        submit, state, chat, version, fetched, limiter=state.decoding, abandon_on_cancel=False
    )
    await all_begun(generations)
    if spend := state.access.quota.spender(request):
        generations = [Metered(generation, spend) for generation in generations]
    head = Head(chat.model, generations[0].fingerprint)
    headers = {VERSION_HEADER: generations[0].release}
    if chat.stream:
        include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
        presenters = [Presenter(showing, has_tools=bool(chat.callable_tools)) for _ in generations]
        chunks = stream_chunks(head, generations, presenters, include_usage=include_usage)
        return ChunkStream(chunks, generations, headers)
    events = await collect(request, generations)
    choices = [
        choice_body(index, showing, choice, has_tools=bool(chat.callable_tools))
        for index, choice in enumerate(events)
    ]
    usages = [event.usage for choice in events for event in choice if isinstance(event, Finished)]
    body = head.body("chat.completion") | {"choices": choices, "usage": usage_body(usages)}
    return JSONResponse(body, headers=headers)


def submit(
    state: ServiceState, chat: ChatRequest, version: str | None, fetched: Fetched
) -> tuple[Showing, Sequence[Generation]]:
    """Decode the media and hand the request to the engine, once a choice.

    Raises:
        RequestError: what is asked for cannot be answered.
        OverloadedError: the queue is full.
    """
    messages = MediaReader(state.settings.limits, state.images, fetched).messages(chat.messages)
    tools, structure, shared = chat.callable_tools, chat.structure, SharedPrompt()
    told = [tools_message(tools), *messages] if tools else messages
    generations: list[Generation] = []
    try:
        for index in range(chat.n):
            wanted = GenerationRequest(
                messages=told,
                enable_thinking=chat.wants_thinking,
                sampling=_sampling(chat, index),
                max_tokens=chat.token_limit,
                stop=chat.stops,
                release=generations[0].release if generations else version,  # all choices on one
                structure=structure,
                shared=shared,
            )
            generations.append(state.some_engine.submit(wanted))
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise
    return showing_of(chat, messages), generations


def _sampling(chat: ChatRequest, index: int) -> Sampling:
    """Return how choice number ``index`` is drawn: with a seed, each choice has its own."""
    return Sampling(
        temperature=chat.temperature or 0.0,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        top_k=max(0, chat.top_k or 0),
        min_p=chat.min_p or 0.0,
        presence_penalty=chat.presence_penalty or 0.0,
        frequency_penalty=chat.frequency_penalty or 0.0,
        repetition_penalty=1.0 if chat.repetition_penalty is None else chat.repetition_penalty,
        logit_bias=_logit_bias(chat),
        seed=None if chat.seed is None else chat.seed + index,
        logprobs=bool(chat.logprobs),
        top_logprobs=chat.top_logprobs or 0,
    )


def _logit_bias(chat: ChatRequest) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in (chat.logit_bias or {}).items()}
    except ValueError as error:
        raise RequestError("logit_bias: the keys must be token ids", param="logit_bias") from error


def _model_body(state: ServiceState, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "autoglm",
        "version": state.some_engine.active_version,
    }


@router.get("/v1/models")
async def list_models(state: OpenState) -> dict[str, Any]:
    """List the names that a request may use; each also takes ``@version`` of a loaded release."""
    return {"object": "list", "data": [_model_body(state, name) for name in state.names]}


@router.get("/v1/models/{name}")
async def show_model(name: str, state: OpenState) -> dict[str, Any]:
    """Show one name."""
    version = state.version_of(name)
    if version not in (None, *state.some_engine.loaded_versions):
        message = f"the model {name[:80]!r} is not loaded"
        raise APIError(404, message, type="not_found_error", param="model", code="model_not_found")
    body = _model_body(state, name)
    return body if version is None else body | {"version": version}
