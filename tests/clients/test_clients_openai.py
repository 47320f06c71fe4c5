"""The official ``openai`` client, beyond the plain answers and streams that tests/service has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

MODEL = "autoglm-phone-9b"
WHO: Any = [{"role": "user", "content": "你是谁?"}]
THINKING: Any = {"extra_body": {"enable_thinking": True, "return_reasoning": True}}


class Point(BaseModel):
    """Where to tap."""

    kind: Literal["tap", "swipe"]
    x: int = Field(ge=0, le=999)


TAP: Any = {
    "type": "function",
    "function": {"name": "tap", "description": "Tap a point", "parameters": Point.model_json_schema()},
}


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, **{"messages": WHO, "temperature": 0, **fields})


def test_many_asynchronous_requests_are_answered_alike(url: str, client: OpenAI) -> None:
    """The async client streams and waits at the same time, and every answer is the synchronous one's."""

    async def stream(asker: AsyncOpenAI) -> str:
        chunks = await asker.chat.completions.create(model=MODEL, messages=WHO, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def whole(asker: AsyncOpenAI) -> str:
        answer = await asker.chat.completions.create(model=MODEL, messages=WHO, temperature=0)
        return answer.choices[0].message.content or ""

    async def everyone() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0) as asker:
            return await asyncio.gather(*(task(asker) for task in (stream, whole) for _ in range(3)))

    assert set(asyncio.run(everyone())) == {ask(client).choices[0].message.content}


def test_a_stream_ends_with_its_usage(client: OpenAI) -> None:
    """``include_usage`` gives one last chunk without choices, and no other has a usage."""
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == ask(client).usage.total_tokens


def test_the_thought_arrives_in_both_fields(client: OpenAI) -> None:
    """The client keeps fields that OpenAI does not have, whole and streamed."""
    message = ask(client, **THINKING).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True, **THINKING)]
    for name in ("reasoning_content", "reasoning"):
        streamed = "".join(getattr(delta, name, None) or "" for delta in deltas)
        assert streamed == getattr(message, name) != ""


def test_the_clients_own_stream_accumulates_to_the_answer(client: OpenAI) -> None:
    """``chat.completions.stream`` follows the deltas to the same final completion."""
    with client.chat.completions.stream(model=MODEL, messages=WHO, temperature=0) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ask(client).choices[0].message.content


def test_an_answer_is_parsed_into_the_callers_class(client: OpenAI) -> None:
    """``parse`` sends the class's JSON schema and gets an instance of it."""
    answer = client.chat.completions.parse(model=MODEL, messages=WHO, response_format=Point, max_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, Point)


def test_an_answer_cut_off_by_the_limit_is_the_clients_error(client: OpenAI) -> None:
    """Half an object is never parsed: the finish reason says why."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=WHO, response_format=Point, max_tokens=2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tap"}}])
def test_a_tool_is_called_whole_and_streamed(client: OpenAI, choice: Any) -> None:
    """A forced call has arguments of the tool's schema; its pieces in a stream join to the same."""
    fields: Any = {"tools": [TAP], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 120}
    call = ask(client, **fields).choices[0].message.tool_calls[0]
    Point.model_validate_json(call.function.arguments)
    pieces = [chunk.choices[0].delta.tool_calls or [] for chunk in ask(client, stream=True, **fields)]
    calls = [piece for chunk in pieces for piece in chunk]
    assert "".join(piece.function.arguments for piece in calls) == call.function.arguments
    assert [piece.function.name for piece in calls if piece.function.name] == ["tap"]


def test_a_result_is_sent_back_to_the_model(client: OpenAI) -> None:
    """The client's own message objects are accepted as history, with the tool's result after them."""
    message = ask(client, tools=[TAP], tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": json.dumps({"done": True})}
    answer = ask(client, messages=[*WHO, message, result], tools=[TAP], max_tokens=40).choices[0]
    assert answer.finish_reason in ("stop", "length", "tool_calls")


def test_logprobs_are_read_whole_and_streamed(client: OpenAI) -> None:
    """Tokens, their bytes and likeliest rivals are the same both ways, and join to the answer."""
    fields: Any = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12}
    whole = ask(client, **fields).choices[0]
    streamed = [
        entry
        for chunk in ask(client, stream=True, **fields)
        for entry in (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.logprobs.content]
    joined = b"".join(bytes(entry.bytes) for entry in whole.logprobs.content)
    assert joined.decode(errors="ignore").startswith(whole.message.content[:4])


def test_the_release_is_told_in_fingerprint_and_header(client: OpenAI) -> None:
    """Raw access shows the header; the fingerprint is the same whole and streamed."""
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=WHO, max_tokens=4)
    assert raw.headers["x-autoglm-version"] == "v1.2"
    chunk = next(iter(ask(client, stream=True, max_tokens=4)))
    assert chunk.system_fingerprint == raw.parse().system_fingerprint


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"model": f"{MODEL}@v0.1"}, openai.NotFoundError, "model"),
        ({"top_p": 7}, openai.BadRequestError, "top_p"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format"),
    ],
)
def test_a_refusal_is_the_clients_typed_error(
    client: OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    """Status, code and the field at fault are where the client looks for them."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": WHO} | fields)
    assert (caught.value.param or "").startswith(param)
    assert caught.value.code


def test_a_missing_key_is_an_authentication_error(start_tiny: Any) -> None:
    """Where keys are required, ``EMPTY`` is refused, and the right one opens the same routes."""
    service = start_tiny(auth={"required": True})
    stranger = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    known = stranger.with_options(api_key=service.token)
    assert ask(known, max_tokens=2).choices[0].finish_reason == "length"


def test_a_busy_service_is_asked_again_by_the_client_itself(start_tiny: Any) -> None:
    """503 with ``Retry-After`` is what the client's own retries need: the caller only sees the answer."""
    service = start_tiny(limits={"queue": 1}, model={"max_batch": 1})
    plain = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0)
    refusals: list[int] = []
    running: list[Any] = []

    def make_room(response: httpx.Response) -> None:
        if response.status_code == 503:
            refusals.append(int(response.headers["retry-after"]))
            for stream in running:
                stream.close()

    hooks: Any = {"response": [make_room]}
    patient = plain.with_options(max_retries=8, http_client=httpx.Client(event_hooks=hooks))
    for _ in range(20):  # on a fast machine the others may be done before the patient one comes
        running[:] = occupy(service, plain)
        assert ask(patient, max_tokens=2).choices[0].finish_reason == "length"
        if refusals:
            break
    assert refusals
    assert min(refusals) >= 1


def occupy(service: Any, client: OpenAI) -> list[Any]:
    """Keep the one place and the queue's one busy with long answers."""
    long: Any = {"stream": True, "max_tokens": 900, "logit_bias": {"2": -100, "10": -100}}
    streams: list[Any] = []
    for _ in range(2):
        with contextlib.suppress(openai.APIStatusError):
            streams.append(ask(client, **long))
    return streams


def test_a_timeout_of_the_client_frees_the_place(start_tiny: Any) -> None:
    """A caller that gives up gets its own error, and the service stops generating for it."""
    service = start_tiny()
    hasty = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0, timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        ask(hasty, max_tokens=900, n=8, logit_bias={"2": -100, "10": -100})
    engine, pause = service.state.engine, threading.Event()
    for _ in range(3000):
        if engine.stats().cancelled == 8:
            break
        pause.wait(0.02)
    assert engine.stats().cancelled == 8


def test_no_service_is_a_connection_error() -> None:
    """An address where nothing listens is the client's connection error, not a hang."""
    client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="EMPTY", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
