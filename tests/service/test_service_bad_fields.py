"""Every field of the inference routes with a wrong type, range or size, generated from the schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from autoglm.service.bodies import component_schemas
from autoglm.service.completions import CompletionRequest
from autoglm.service.embeddings import EmbeddingsRequest
from autoglm.service.schemas import ChatRequest

MODEL = "autoglm-phone-9b"
SAMPLES: dict[str, Any] = {
    "string": "x",
    "integer": 7,
    "number": 1.5,
    "boolean": True,
    "array": [{"nothing": "known"}],
    "object": {"nothing": "known"},
}
# Nothing is wrong with these as such: what they mean is looked at elsewhere.
FREE = {("extra_body", "object"), ("chat_template_kwargs", "object"), ("stream_options", "object")}
BODIES = {
    "/v1/chat/completions": (
        ChatRequest,
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    ),
    "/v1/completions": (CompletionRequest, {"model": MODEL, "prompt": "hi", "max_tokens": 1}),
    "/v1/embeddings": (EmbeddingsRequest, {"model": MODEL, "input": "hi"}),
}


def kinds_of(schema: dict[str, Any], known: dict[str, Any]) -> set[str]:
    """The JSON types that a schema takes."""
    if "$ref" in schema:
        return kinds_of(known[schema["$ref"].rpartition("/")[2]], known)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return set().union(*(kinds_of(option, known) for option in options))
    if "const" in schema or "enum" in schema:
        return {"string"}
    found = schema.get("type", "object")
    return {"number", "integer"} if found == "number" else {found}


def bounds_of(schema: dict[str, Any]) -> Iterator[Any]:
    """Values just outside of what a number or text may be."""
    for option in schema.get("anyOf", [schema]):
        if "maximum" in option:
            yield option["maximum"] + 1
        if "minimum" in option:
            yield option["minimum"] - 1
        if "exclusiveMaximum" in option:
            yield option["exclusiveMaximum"]
        if "exclusiveMinimum" in option:
            yield option["exclusiveMinimum"]
        if "maxLength" in option:
            yield "x" * (option["maxLength"] + 1)
        if "minLength" in option:
            yield "x" * (option["minLength"] - 1)
        if "const" in option or "enum" in option:
            yield "none of them"


def wrong_fields() -> Iterator[Any]:
    """``(path, field, value)`` of everything that no field of a route takes."""
    for path, (kind, _) in BODIES.items():
        known = component_schemas(kind)
        for name, schema in known[kind.__name__]["properties"].items():
            kinds = kinds_of(schema, known)
            for given, value in SAMPLES.items():
                if given not in kinds and (name, given) not in FREE:
                    yield pytest.param(path, name, value, id=f"{path[4:]} {name} {given}")
            for number, value in enumerate(bounds_of(schema)):
                yield pytest.param(path, name, value, id=f"{path[4:]} {name} bound{number}")


@pytest.mark.parametrize(("path", "name", "value"), list(wrong_fields()))
def test_no_field_takes_another_kind_or_range(service: Any, path: str, name: str, value: Any) -> None:
    """400 in OpenAI's shape, and ``param`` names the field."""
    answer = service.post(path, BODIES[path][1] | {name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(name), error


WHOLE: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "be brief", "name": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "a", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ],
    "max_tokens": 2,
    "temperature": 0.5,
    "stop": ["a", "b"],
    "logit_bias": {"40": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [
        {"type": "function", "function": {"name": "a", "description": "d", "parameters": {"type": "object"}}}
    ],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "stream": False,
}
HOSTILE = [
    *(None, True, -1, 0, 10**30, 1.5, -0.0, "", "\x00", "x" * 2000, "\u202e"),
    *([], [[]], {}, {"": None}, ["x"] * 3),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, inner ones included."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


@pytest.mark.parametrize("root", WHOLE)
def test_whatever_stands_anywhere_is_answered_in_shape(service: Any, root: str) -> None:
    """At every place of a full request every odd value: an answer, or a 400 or 404 that names its field."""
    for path in places({root: WHOLE[root]}):
        for value in HOSTILE:
            body = copy.deepcopy(WHOLE)
            place: Any = body
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            answer = service.post("/v1/chat/completions", body)
            assert answer.status_code in (200, 400, 404), (path, value, answer.text)
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert error["type"] in ("invalid_request_error", "not_found_error")
                # One part of a request may be wrong by what another one says.
                assert error["param"] or "needs" in error["message"], (path, value, error)


ANY = {200, 400}


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ('"messages": [{"role": "user", "content": "a"}], "messages": []', {400}),
        ('"n": 1, "n": 1', {200}),
        ('"seed": ' + "9" * 5000, {400}),
        ('"seed": 1e400', {400}),
        ('"temperature": 1e400', {400}),
        ('"temperature": NaN', {400}),
        ('"temperature": -Infinity', {400}),
        ('"max_tokens": 1E0', {200, 400}),
        ('"metadata": ' + nested(100), {200}),
        ('"metadata": ' + nested(5000), {200, 400}),
        ('"metadata": ' + "[" * 100_000, {400}),
        (
            '"tools": [{"type": "function", "function": {"name": "a", "parameters": ' + nested(150) + "}}]",
            ANY,
        ),
        ('"user": "\\ud800"', {400}),
        ('"user": "\\u0000"', {200}),
        ('"messages": [{"role": "user", "content": "\\udc00"}]', {400}),
        ('"messages": [{"role": "user", "content": "a\\u0000b\\ufffe\\u202e"}]', {200}),
        ('"messages": [{"role": "user", "content": ""}]', {200}),
        ('"messages": [{"role": "user", "content": "<|eos|><think></answer>"}]', {200}),
        ('"messages": [{"role": "assistant", "content": "hi"}]', {200}),
        (
            '"messages": [' + '{"role": "user", "content": ""},' * 1000 + '{"role": "user", "content": ""}]',
            {400},
        ),
        ('"logit_bias": {"99999999999999999999": 1}', {200, 400}),
        ('"stop": ["\\n", "", "x"]', {200}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_json_is_answered_in_shape(service: Any, text: str, statuses: set[int]) -> None:
    """Duplicate keys, numbers beyond all bounds, deep nesting, NUL, halves of characters, control words."""
    body = (
        f'{{"model": "{MODEL}", "max_tokens": 1, "messages": [{{"role": "user", "content": "hi"}}], {text}}}'
    )
    answer = service.post("/v1/chat/completions", data=body.encode())
    assert answer.status_code in statuses, answer.text
    assert "error" in answer.json() or answer.status_code == 200


@pytest.mark.parametrize("content", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf8\x88\x80\x80\x80"'])
def test_bytes_that_are_no_utf8_are_refused(service: Any, content: bytes) -> None:
    """Invalid, overlong and half characters in the body are a 400."""
    body = json.dumps(BODIES["/v1/chat/completions"][1]).encode().replace(b'"hi"', content)
    answer = service.post("/v1/chat/completions", data=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


STOPS: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stop": ["x"] * 17}


@pytest.mark.parametrize(
    ("path", "fields", "param", "limit"),
    [
        ("/v1/chat/completions", STOPS, "stop", "16"),
        ("/v1/completions", {"prompt": ["x"] * 33}, "prompt", "32"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input", "2048"),
        ("/v1/embeddings", {"input": [{"type": "text", "text": "x"}] * 2049}, "input", "2048"),
    ],
)
def test_a_list_that_is_too_long_is_told_its_limit(
    service: Any, path: str, fields: dict[str, Any], param: str, limit: str
) -> None:
    """Where a field takes a text or a list, too long a list is not called a wrong text."""
    error = service.post(path, {"model": MODEL} | fields).json()["error"]
    assert error["param"] == param
    assert f"at most {limit} items" in error["message"]
