"""What a schema leaves open is closed for the writer, and nothing that it says is changed."""

from __future__ import annotations

from typing import Any

import pytest

from autoglm.engine.closing import SAFE, closed

WHOLE = {"type": "integer", "minimum": -SAFE, "maximum": SAFE}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "integer"}, WHOLE),
        ({"type": ["integer", "null"]}, WHOLE | {"type": ["integer", "null"]}),
        ({"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 0, "maximum": SAFE}),
        (
            {"type": "integer", "exclusiveMaximum": 7},
            {"type": "integer", "exclusiveMaximum": 7, "minimum": -SAFE},
        ),
        ({"type": "array", "items": {"type": "integer"}}, {"type": "array", "items": WHOLE}),
        (
            {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"},
            {"$defs": {"n": WHOLE}, "$ref": "#/$defs/n"},
        ),
        ({"anyOf": [{"type": "integer"}, TEXT]}, {"anyOf": [WHOLE, TEXT]}),
        (
            {"properties": {"a": {"properties": {"b": TEXT}}}},
            {
                "properties": {"a": {"properties": {"b": TEXT}, "additionalProperties": False}},
                "additionalProperties": False,
            },
        ),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
    ],
)
def test_open_ends_are_closed(schema: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Integers get bounds, and objects that name their properties get no others, wherever they stand."""
    assert closed(schema) == wanted


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 1 << 60},
        {"type": "integer", "minimum": -5, "maximum": 5},
        {"type": "integer", "enum": [1 << 70]},
        {"type": "number"},
        {"type": ["integer", "number"]},
        {"type": "integer", "minimum": "a text"},
        {"type": "object"},
        {"properties": {"a": TEXT}, "additionalProperties": True},
        {"properties": {"a": TEXT}, "patternProperties": {"^x": TEXT}},
        {"properties": {"a": TEXT}, "required": ["b"]},
        {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]},
        {"properties": {"a": TEXT}, "anyOf": [{"properties": {"b": TEXT}}, {"properties": {"c": TEXT}}]},
        {"properties": {"a": TEXT}, "$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": TEXT}}}},
        {"properties": ["wrong"], "required": 7},
        True,
        "no schema",
    ],
)
def test_what_is_said_or_composed_is_left_alone(schema: Any) -> None:
    """A bound, a list of values, a word on further properties and a composition stay as they were given."""
    assert closed(schema) == schema
