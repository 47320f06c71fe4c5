"""Close what a JSON schema leaves open, so that an answer written by it comes to an end.

A schema says what a reader takes; a writer needs to be told when to stop. A grammar for "any integer" lets a
model write digits until its token limit, and one for an object with any further property lets it write
properties for ever. So in what the model is held to:

- an integer without a lower or an upper bound gets that of the safe integers (RFC 8259, section 6);
- an object that names its properties, and does not say whether there may be others, has no others.

The second is left alone in a schema that composes objects (``allOf``, or properties beside ``anyOf``,
``oneOf``, ``$ref``), where a property may stand elsewhere. What the schema does say is kept: whatever is
written by the closed schema fits the open one.

    >>> closed({"type": "integer", "minimum": 0})["maximum"]
    9007199254740991
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

Schema = Mapping[str, Any]

SAFE = (1 << 53) - 1
# Where a schema holds schemas: by name, in a list, or alone.
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_ELSEWHERE = {"anyOf", "oneOf", "$ref", "$dynamicRef", "if", "not", "dependentSchemas"}
_SAID = {"additionalProperties", "unevaluatedProperties", "patternProperties"}


def closed(schema: Any) -> Any:
    """Return the schema with its open ends closed; what is no schema comes back as it is.

    Raises:
        RecursionError: it is nested deeper than the interpreter's stack.
    """
    if not isinstance(schema, Mapping):
        return schema
    whole = cast("Schema", schema)
    return _closed(whole, names_all=not any(_is_composed(each) for each in _schemas(whole)))


def _schemas(schema: Schema) -> Iterator[Schema]:
    """Yield the schema and every one that stands in it."""
    yield schema
    for key in _MAPS + _LISTS + _SINGLE:
        inner = schema.get(key)
        for each in _inner(key, inner):
            if isinstance(each, Mapping):
                yield from _schemas(cast("Schema", each))


def _inner(key: str, value: Any) -> list[Any]:
    if key in _MAPS and isinstance(value, Mapping):
        return list(cast("Schema", value).values())
    if key in _LISTS and isinstance(value, list):
        return cast("list[Any]", value)
    return [value] if key in _SINGLE else []


def _is_composed(schema: Schema) -> bool:
    return "allOf" in schema or ("properties" in schema and bool(_ELSEWHERE & set(schema)))


def _closed(schema: Any, *, names_all: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(cast("Schema", schema))
    for key, value in made.items():
        if key in _MAPS and isinstance(value, Mapping):
            inner = cast("Schema", value)
            made[key] = {name: _closed(each, names_all=names_all) for name, each in inner.items()}
        elif key in _LISTS and isinstance(value, list):
            made[key] = [_closed(each, names_all=names_all) for each in cast("list[Any]", value)]
        elif key in _SINGLE:
            made[key] = _closed(value, names_all=names_all)
    if names_all and _names_its_properties(made):
        made["additionalProperties"] = False
    return made | _missing_bounds(made) if _is_integer(made) else made


def _names_its_properties(schema: Schema) -> bool:
    names, needed = schema.get("properties"), schema.get("required", [])
    if not isinstance(names, Mapping) or not isinstance(needed, list) or _SAID & set(schema):
        return False
    return set(map(str, cast("list[Any]", needed))) <= set(cast("Schema", names))


def _is_integer(schema: Schema) -> bool:
    kind = schema.get("type")
    kinds = cast("list[Any]", kind) if isinstance(kind, list) else [kind]
    # A choice of given values ends by itself, and a number may be larger than an integer of the same schema.
    return "integer" in kinds and "number" not in kinds and not {"enum", "const", "$ref"} & set(schema)


def _missing_bounds(schema: Schema) -> dict[str, int]:
    lower = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    upper = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    if any(not isinstance(bound, int | float) for bound in (*lower, *upper)):
        return {}  # a wrong schema: the parser says so
    bounds: dict[str, int] = {}
    if not lower and all(bound > -SAFE for bound in upper):
        bounds["minimum"] = -SAFE
    if not upper and all(bound < SAFE for bound in lower):
        bounds["maximum"] = SAFE
    return bounds
