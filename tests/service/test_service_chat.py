"""Chat completions as real clients send them."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import re
import time
import wave
from typing import Any

import pytest
import requests
from fastapi import Request
from langchain_openai import ChatOpenAI
from openai import OpenAI
from PIL import Image
from starlette.requests import ClientDisconnect

from autoglm.engine import GenerationRequest
from autoglm.model.prompt import Message
from autoglm.model.tokenizer import CONTROLS
from autoglm.service.streaming import collect

AGENT_PROMPT = 'You operate a phone. Answer with do(action="Tap", element=[x,y]) or finish(message="...").'
DEADLINE_S = 60


def sse(response: requests.Response) -> list[Any]:
    """The events of a stream, ``[DONE]`` included as text."""
    data = [line[6:] for line in response.iter_lines() if line.startswith(b"data: ")]
    return [part.decode() if part == b"[DONE]" else json.loads(part) for part in data]


@pytest.fixture
def thinking(service: Any) -> dict[str, Any]:
    """Sampling under which the tiny model ends its thought after some tokens and then answers."""
    bias = {str(control): -100.0 for control in range(len(CONTROLS))}
    bias[str(service.state.engine.active.tokenizer.end_think)] = 4.0
    return {"temperature": 1.0, "seed": 2, "logit_bias": bias, "max_tokens": 100}


def test_an_answer_has_the_shape_of_openais_api(service: Any) -> None:
    """A completion names its model, release, choice, finish reason and usage."""
    response = service.chat(max_tokens=8)
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-autoglm-version"] == "v1.2"
    assert body["system_fingerprint"] == service.state.engine.active.fingerprint
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 8


@pytest.mark.parametrize("empty", [{"content": None}, {}, {"content": ""}])
def test_an_answer_without_content_is_an_empty_one(service: Any, empty: dict[str, Any]) -> None:
    """As with OpenAI, a message of the assistant may be null or have no content; others may not."""
    question = {"role": "user", "content": "hi"}
    answers = [
        service.chat(messages=[question, {"role": "assistant", **each}, question]).json()
        for each in (empty, {"content": ""})
    ]
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["choices"] == answers[1]["choices"]
    if empty != {"content": ""}:
        refused = service.chat(messages=[{"role": "user", **empty}])
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "messages[0].content"


def test_a_stream_says_the_same_as_a_whole_answer(service: Any) -> None:
    """The deltas joined are the content; role first, finish reason, usage chunk and [DONE] last."""
    whole = service.chat(max_tokens=40).json()["choices"][0]["message"]["content"]
    events = sse(service.chat(max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 40
    chunks = [event["choices"][0] for event in events[:-2]]
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole
    assert all(event["usage"] is None for event in events[:-2])


def test_a_stream_without_the_option_has_no_usage(service: Any) -> None:
    """Clients that do not ask for usage see chunks with choices only."""
    events = sse(service.chat(stream=True))
    assert all(event["choices"] and "usage" not in event for event in events[:-1])


def test_the_openai_client_reads_answers_and_streams(service: Any) -> None:
    """The official client with ``api_key="EMPTY"`` works, streaming and not, and lists the models."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0)
    messages: Any = [{"role": "user", "content": "你是谁?"}]
    ask: Any = {"model": "autoglm-phone-9b", "messages": messages, "max_tokens": 16}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(piece or "" for piece in pieces) == whole
    assert whole
    assert [model.id for model in client.models.list()] == ["autoglm-phone-9b", "autoglm-phone-nano"]
    assert client.models.retrieve("autoglm-phone-nano").id == "autoglm-phone-nano"


def test_the_specifications_langchain_client_streams(service: Any) -> None:
    """ChatOpenAI with exactly the specification's arguments gets an answer to 「你是谁?」."""
    chat_model = ChatOpenAI(
        model="autoglm-phone-9b",
        temperature=0.5,
        base_url=f"{service.url}/v1",
        api_key="EMPTY",  # type: ignore[arg-type]
        extra_body={"enable_thinking": True, "return_reasoning": True},
        streaming=True,
    )
    response = chat_model.invoke("你是谁?")
    assert isinstance(response.content, str)
    assert "<think>" not in response.content
    assert response.response_metadata["finish_reason"] in ("stop", "length")


def test_a_phone_agents_request_is_answered(service: Any) -> None:
    """The real agent client's request (1080x2400 PNG, penalties, top_p, streaming) is served as it comes."""
    pixels = Image.effect_noise((1080, 2400), 40).convert("RGB")
    file = io.BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "打开微信"}]
    history = "<think>I see</think><answer>do(action='Home')"
    body = {
        "model": "autoglm-phone-9b",
        "messages": [
            {"role": "system", "content": AGENT_PROMPT},
            {"role": "user", "content": "start"},
            {"role": "assistant", "content": history},
            {"role": "user", "content": content},
        ],
        "max_tokens": 24,
        "temperature": 0.0,
        "top_p": 0.85,
        "frequency_penalty": 0.2,
        "stream": True,
    }
    headers = {"authorization": "Bearer EMPTY"}
    response = service.post("/v1/chat/completions", body, headers=headers, stream=True)
    events = sse(response)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert response.status_code == 200
    assert events[-1] == "[DONE]"
    assert text.startswith("<think>")
    assert "</answer>" not in text


def test_the_agents_preflight_is_answered(service: Any) -> None:
    """ "Hi" with five tokens, not streaming, is a plain answer without tags."""
    content = service.chat("Hi", max_tokens=5).json()["choices"][0]["message"]["content"]
    assert content
    assert "<" not in content[:1]


def test_thinking_and_returning_gives_the_thought_in_both_fields(service: Any, thinking: dict) -> None:
    """enable_thinking with return_reasoning: the thought is in two fields, the answer alone in content."""
    body = service.chat(enable_thinking=True, return_reasoning=True, **thinking).json()
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] != ""
    assert message["content"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_streamed_thought_comes_in_both_fields_before_the_answer(service: Any, thinking: dict) -> None:
    """In a stream each thought delta carries both fields, and none follows the first content."""
    response = service.chat(stream=True, enable_thinking=True, return_reasoning=True, **thinking)
    deltas = [event["choices"][0]["delta"] for event in sse(response)[1:-1]]
    kinds = ["thought" if "reasoning" in delta else "answer" for delta in deltas if delta]
    assert all(delta["reasoning"] == delta["reasoning_content"] for delta in deltas if "reasoning" in delta)
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"thought", "answer"}


def test_thinking_alone_drops_the_thought(service: Any, thinking: dict) -> None:
    """enable_thinking alone: the same thought is made, counted, and not shown; the answer is the same."""
    shown = service.chat(enable_thinking=True, return_reasoning=True, **thinking).json()
    hidden = service.chat(enable_thinking=True, **thinking).json()
    assert "reasoning" not in hidden["choices"][0]["message"]
    assert "reasoning_content" not in hidden["choices"][0]["message"]
    assert hidden["choices"][0]["message"]["content"] == shown["choices"][0]["message"]["content"]
    assert hidden["usage"] == shown["usage"]


def test_without_both_nothing_is_thought(service: Any) -> None:
    """Without the flags, or with return_reasoning alone, the model answers at once."""
    for flags in ({}, {"return_reasoning": True}, {"enable_thinking": False}):
        body = service.chat(**flags).json()
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
        assert "reasoning" not in body["choices"][0]["message"]


def test_an_agent_prompt_thinks_inline(service: Any, thinking: dict) -> None:
    """Under an action grammar and without flags, the thought is inline and no tag follows the answer."""
    messages = [{"role": "system", "content": AGENT_PROMPT}, {"role": "user", "content": "go"}]
    body = service.post(
        "/v1/chat/completions", {"model": "autoglm-phone-9b", "messages": messages, **thinking}
    ).json()
    assert re.fullmatch(
        r"<think>.+</think><answer>.+", body["choices"][0]["message"]["content"], flags=re.DOTALL
    )
    assert "</answer>" not in body["choices"][0]["message"]["content"]


def test_the_flags_are_understood_where_clients_nest_them(service: Any, thinking: dict) -> None:
    """extra_body and chat_template_kwargs count as the top level does."""
    for place in ("extra_body", "chat_template_kwargs"):
        flags = {place: {"enable_thinking": True, "return_reasoning": True}}
        assert service.chat(**flags, **thinking).json()["choices"][0]["message"]["reasoning"]


def test_choices_are_counted_and_seeded_apart(service: Any) -> None:
    """n choices come with their indexes, differ under a seed, and come out the same again."""
    ask = {"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    first, second = service.chat(**ask).json(), service.chat(**ask).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert first["usage"]["completion_tokens"] > 12


def test_streamed_choices_are_told_apart_by_index(service: Any) -> None:
    """With n, the deltas of each index join to that choice's text."""
    ask = {"n": 2, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    whole = [choice["message"]["content"] for choice in service.chat(**ask).json()["choices"]]
    texts = ["", ""]
    for event in sse(service.chat(**ask, stream=True))[:-1]:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == whole


def test_logprobs_come_for_each_token(service: Any) -> None:
    """logprobs with top_logprobs give the chosen token first, none above 0."""
    choice = service.chat(logprobs=True, top_logprobs=2, max_tokens=4).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 4
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert entry["token"] == entry["top_logprobs"][0]["token"]


def test_an_answer_ends_before_a_stop_string(service: Any) -> None:
    """The stop string itself is never part of the answer."""
    whole = service.chat(max_tokens=60).json()["choices"][0]["message"]["content"]
    stop = next(character for character in whole[5:] if character.isascii())
    choice = service.chat(max_tokens=60, stop=[stop, ""]).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_a_recording_is_taken_as_input(service: Any) -> None:
    """input_audio with a WAV is part of the prompt."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(bytes(16_000))
    audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    plain = service.chat("hear").json()["usage"]["prompt_tokens"]
    content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "hear"}]
    body = service.chat(messages=[{"role": "user", "content": content}]).json()
    assert body["usage"]["prompt_tokens"] > plain


def test_a_version_may_be_named(service: Any) -> None:
    """``model@version`` runs a loaded release; one that is not loaded is an unknown model."""
    assert service.chat(model="autoglm-phone-9b@v1.2").status_code == 200
    missing = service.chat(model="autoglm-phone-9b@v9")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert missing.json()["error"]["type"] == "not_found_error"


@pytest.mark.usefixtures("unhurried")
def test_a_client_that_goes_away_cancels(service: Any) -> None:
    """Closing a stream early ends the generation, long before its token limit."""
    before = service.state.engine.stats().cancelled
    response = service.chat(stream=True, max_tokens=1)
    with requests.post(
        f"{service.url}/v1/chat/completions",
        json=json.loads(response.request.body) | {"max_tokens": 900},
        stream=True,
        timeout=DEADLINE_S,
    ) as stream:
        next(stream.iter_lines())
        stream.raw._fp.close()
    deadline = time.monotonic() + DEADLINE_S
    while service.state.engine.stats().cancelled == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.state.engine.stats().cancelled == before + 1


def test_harmless_fields_are_ignored(service: Any) -> None:
    """Labels that other services keep do not disturb this one."""
    extra = {
        "user": "u1",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "tools": [],
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
    }
    assert service.chat(**extra).status_code == 200


def test_a_client_that_vanishes_leaves_nothing_to_complain_of(service: Any) -> None:
    """How its generations ended is taken note of: asyncio does not log that nobody asked."""
    complaints: list[dict[str, Any]] = []

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        wanted = GenerationRequest((Message("user", "hi"),), max_tokens=500)
        generation = service.state.engine.submit(wanted)
        with pytest.raises(ClientDisconnect):
            await collect(Request({"type": "http"}, gone), [generation])
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.sleep(0)  # lets the end of the tasks be told
        gc.collect()

    asyncio.run(leave())
    assert not complaints
