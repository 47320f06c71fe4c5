"""Tools and formats over HTTP, and how calls are taken out of a text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autoglm.model.tools import call_text
from autoglm.service.tool_calls import CallReader, joined

TAP = {
    "type": "function",
    "function": {
        "name": "tap",
        "description": "Tap.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/place"}},
            "required": ["x"],
            "additionalProperties": False,
            "$defs": {"place": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
    },
}
TRICKY = json.dumps({"a": '}</tool_call> "{', "b": {"c": ["\\", {}]}})


def read(text: str, size: int) -> dict[str, Any]:
    """Feed a text in pieces of ``size`` characters; return the joined fields."""
    reader, message = CallReader(), dict[str, Any]()
    pieces = [reader.push(text[i : i + size]) for i in range(0, len(text), size)]
    for fields in [*pieces, reader.finish()]:
        for key, more in fields.items():
            message[key] = message[key] + more if key in message else more
    return message


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_found_however_the_text_comes(size: int) -> None:
    """Names and arguments come out whole from pieces of any size, also where arguments look like tags."""
    message = read(call_text("one", TRICKY) + call_text("two", "{}"), size)
    calls = joined(message["tool_calls"])
    assert [call["function"]["name"] for call in calls] == ["one", "two"]
    assert [call["function"]["arguments"] for call in calls] == [TRICKY, "{}"]
    assert len({call["id"] for call in calls}) == 2
    assert "content" not in message


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("text", ["hello", "<tool", "<tool_cart>", "a <tool_call> inside"])
def test_text_stays_text(text: str, size: int) -> None:
    """What only looks like the beginning of a call is content, to the last character."""
    assert read(text, size) == {"content": text}


def test_a_required_call_comes_as_a_tool_call(service: Any) -> None:
    """The message has no content, one call with valid arguments, and the reason says so."""
    body = service.chat(tools=[TAP], tool_choice="required", parallel_tool_calls=False, max_tokens=120).json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "tap")
    assert 0 <= json.loads(call["function"]["arguments"])["x"] <= 9


def test_a_stream_of_a_call_joins_to_the_whole_call(service: Any) -> None:
    """Deltas carry index, id and name once, then pieces of the arguments."""
    wanted = {
        "tools": [TAP],
        "tool_choice": {"type": "function", "function": {"name": "tap"}},
        "max_tokens": 120,
    }
    lines = [
        json.loads(line[6:])
        for line in service.chat(**wanted, stream=True).text.splitlines()
        if line.startswith("data: {")
    ]
    deltas = [piece for line in lines for piece in line["choices"][0]["delta"].get("tool_calls", [])]
    [call] = joined(deltas)
    assert deltas[0]["function"] == {"name": "tap", "arguments": ""}
    assert 0 <= json.loads(call["function"]["arguments"])["x"] <= 9
    assert lines[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_conversation_with_calls_and_results_goes_on(service: Any) -> None:
    """History with a call and its result is understood; no choice of tools is plain text."""
    called = {"id": "call_1", "type": "function", "function": {"name": "tap", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "tap 1"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    response = service.chat(messages=messages, tools=[TAP], tool_choice="none", max_tokens=5)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"]


def test_a_json_schema_is_followed_and_streams_as_content(service: Any) -> None:
    """The answer is JSON of the schema, in one piece or as a stream."""
    schema = TAP["function"]["parameters"]  # type: ignore[index]
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    whole = service.chat(response_format=wanted, max_tokens=60).json()
    assert 0 <= json.loads(whole["choices"][0]["message"]["content"])["x"] <= 9
    assert whole["choices"][0]["finish_reason"] == "stop"
    text = service.chat(response_format=wanted, max_tokens=60, stream=True).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.splitlines() if line[6:7] == "{"]
    assert "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]


def test_choices_are_told_apart_and_the_prompt_is_counted_once(service: Any) -> None:
    """n answers of one request differ by their seeds, and what the prompt shares shows in the usage."""
    body = service.chat(
        messages=[{"role": "user", "content": "x" * 100}], n=3, temperature=1.5, seed=1, max_tokens=12
    ).json()
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    assert body["usage"]["prompt_tokens"] < 120
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
