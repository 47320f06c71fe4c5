"""Schemas that lead back to themselves: followed where there is a way out, refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from autoglm.engine import Engine, GenerationRequest, JsonAnswer, Sampling, ToolAnswer
from autoglm.engine.closing import closed
from autoglm.engine.endless import is_endless
from autoglm.errors import RequestError
from autoglm.model.tools import Tool

Ask = Callable[..., GenerationRequest]
TEXT = {"type": "string"}
ROOT = {"$ref": "#"}
NODE = {"$ref": "#/$defs/node"}


def needing(schema: object, **more: object) -> dict[str, Any]:
    """An object that must have a property of this schema."""
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


WITH_A_WAY_OUT: list[dict[str, Any]] = [
    {"type": "object", "properties": {"value": {"type": "boolean"}, "next": ROOT}, "required": ["value"]},
    {"anyOf": [ROOT, {"type": "null"}]},
    {"type": "array", "items": ROOT},
    needing(NODE, **{"$defs": {"node": {"anyOf": [needing(NODE), {"type": "null"}]}}}),
    needing({"type": "array", "items": ROOT, "maxItems": 2}),
    needing({"$ref": "#/properties/b"}, properties={"a": {"$ref": "#/properties/b"}, "b": TEXT}),
    {"$defs": {"a/b": TEXT, "c~d": {"$ref": "#/$defs/a~1b"}}, "$ref": "#/$defs/c~0d"},
    {"properties": {"a": ROOT}, "required": ["a"]},  # it need not be an object
    {"type": ["object", "null"], "properties": {"a": ROOT}, "required": ["a"]},
    {"$ref": "#", "enum": [1]},
    {"$ref": "https://example.com/schema"},
    {"$ref": "#/nowhere"},
    {"$ref": "#/anyOf/7", "anyOf": [TEXT]},
    {"type": ["object"], "properties": {"a": ROOT}},
    {"type": ["array"], "items": ROOT},
    {"type": ["object", "array"], "properties": {"a": ROOT}, "required": ["a"], "items": ROOT},
    {"type": ["object", "array"], "properties": {"a": ROOT}, "items": ROOT, "minItems": 1},
    {"type": ["array", "string"], "items": ROOT, "minItems": 1},
    {"type": [], "properties": {"a": ROOT}, "required": ["a"]},
    {"type": "object", "additionalProperties": ROOT},
    {"type": "object", "required": ["a"]},
    {"type": "object", "required": ["a"], "additionalProperties": {"anyOf": [ROOT, TEXT]}},
    {"type": "object", "required": ["a"], "patternProperties": {"^b": ROOT}},
    {
        "type": "object",
        "required": ["a"],
        "patternProperties": {"^[b-z]$": ROOT},
        "additionalProperties": TEXT,
    },
    {"type": "object", "required": ["a"], "patternProperties": {"^a$": TEXT}, "additionalProperties": ROOT},
    {"type": "object", "minProperties": 1, "additionalProperties": TEXT, "patternProperties": {"a": ROOT}},
    {"type": "object", "minProperties": 1, "properties": {"b": TEXT}, "additionalProperties": ROOT},
    {"type": "object", "minProperties": 1, "required": ["b"], "additionalProperties": {"type": "array"}},
    {"anyOf": [ROOT, True]},
]
WITHOUT: list[dict[str, Any]] = [
    ROOT,
    {"anyOf": [ROOT, needing(ROOT)]},
    {"allOf": [TEXT, ROOT]},
    needing(ROOT),
    needing({"type": "array", "items": ROOT, "minItems": 1}),
    needing({"type": "array", "prefixItems": [TEXT, ROOT], "minItems": 2}),
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": ["object"], "properties": {"a": ROOT}, "required": ["a"]},
    {"type": ["array"], "items": ROOT, "minItems": 1},
    {"type": "array", "items": [TEXT, ROOT], "minItems": 2},
    {"type": ["object", "array"], "properties": {"a": ROOT}, "required": ["a"], "items": ROOT, "minItems": 1},
    {"type": "object", "required": ["a"], "additionalProperties": ROOT},
    {"type": "object", "required": ["a"], "patternProperties": {"^a$": ROOT}, "additionalProperties": False},
    {"type": "object", "required": ["a"], "patternProperties": {"^a": ROOT}},
    {"type": "object", "required": ["ab"], "patternProperties": {"b$": ROOT, "^a": TEXT}},
    {"type": "object", "required": ["a"], "patternProperties": {".*": ROOT}},
    {
        "type": "object",
        "required": ["a"],
        "patternProperties": {"^[a-z]$": ROOT},
        "additionalProperties": False,
    },
    {"type": "object", "minProperties": 1, "additionalProperties": ROOT},
    {"type": "object", "minProperties": 1, "properties": {"a": ROOT}},
    {
        "type": "object",
        "minProperties": 2,
        "required": ["b"],
        "properties": {"b": TEXT},
        "additionalProperties": ROOT,
    },
    {"anyOf": [needing(ROOT), needing(False), False]},
    needing(needing({"$ref": "#/$defs/node"}), **{"$defs": {"node": {"oneOf": [needing(NODE)]}}}),
]


@pytest.mark.parametrize("schema", WITH_A_WAY_OUT, ids=json.dumps)
def test_a_way_out_is_seen(schema: dict[str, Any]) -> None:
    """What may be left out, empty or another ends; what is not understood is left to the parser."""
    assert not is_endless(closed(schema))


@pytest.mark.parametrize("schema", WITHOUT, ids=json.dumps)
def test_a_schema_without_a_way_out_is_a_refusal_at_submission(
    engine: Engine, ask: Ask, schema: dict[str, Any]
) -> None:
    """Nothing is generated, in JSON and in a tool's arguments; the reason says what is wrong."""
    assert is_endless(closed(schema))
    inner = json.loads(json.dumps(schema).replace('"#', '"#/properties/x'))
    tool = Tool("f", "", {"properties": {"x": inner}, "required": ["x"]})
    for structure in (JsonAnswer(schema), ToolAnswer((tool,))):
        with pytest.raises(RequestError, match=r"nothing that ends.*\$ref that leads back") as caught:
            engine.submit(ask("hi", structure=structure))
        assert caught.value.param == structure.param
    assert engine.stats().requests == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_list_of_lists_is_written_to_its_end(engine: Engine, ask: Ask, seed: int) -> None:
    """A random model follows a schema that leads back to itself, and what it writes is nested."""
    schema = {
        "type": "object",
        "properties": {"next": {"anyOf": [ROOT, {"type": "null"}]}},
        "required": ["next"],
    }
    sampling = Sampling(temperature=2.0, seed=seed)
    answer = engine.submit(
        ask("hi", max_tokens=220, sampling=sampling, structure=JsonAnswer(schema))
    ).result()
    assert answer.finished.reason == "stop"
    value, depth = json.loads(answer.answer), 0
    while value is not None:
        assert set(value) == {"next"}
        value, depth = value["next"], depth + 1
    assert depth >= 1


def test_a_long_chain_of_references_is_followed_at_once() -> None:
    """Thousands of references, each to the next, are looked at once each, with and without an end."""
    chain = {f"n{i}": needing({"$ref": f"#/$defs/n{i + 1}"}) for i in range(5000)}
    ended = {"$defs": chain | {"n5000": TEXT}, "$ref": "#/$defs/n0"}
    assert not is_endless(ended)
    assert is_endless(ended | {"$defs": chain | {"n5000": ROOT}})


def test_many_names_and_patterns_are_not_compared_each_with_each() -> None:
    """Thousands of names beside thousands of patterns leave a way out where not all is looked into."""
    names, patterns = [f"n{i}" for i in range(20_000)], {f"^p{i}": ROOT for i in range(20_000)}
    schema = {"type": "object", "required": names, "patternProperties": patterns}
    assert not is_endless(schema)
    assert is_endless(schema | {"additionalProperties": False})
