"""Find JSON schemas by which nothing can be written that ends.

A schema may lead back to itself (``"$ref": "#"``), as one of a tree must. It can be followed as long as there
is a way out: a property that may be left out, an array that may be empty, another choice. Without one a
model would write until its token limit, or could write nothing at all. So such a schema is refused before
anything is written.

What ends is found from the leaves up, by unit propagation over Horn clauses (Dowling and Gallier, 1984), in a
time that grows with the size of the schema.

    >>> is_endless({"$ref": "#"})
    True
    >>> is_endless({"type": "object", "properties": {"next": {"$ref": "#"}}})
    False
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote

Schema = Mapping[str, Any]
# A value ends when, of each of these groups of schemas, one has a value that ends.
Groups = list[list[Schema]]
# So many names are compared with patterns in one object, at the most.
MAX_MATCHES = 4096
# A pattern that needs no regular expression to be understood: others could take for ever to be tried.
_PLAIN = re.compile(r"\^?([\w -]*|\.\*)\$?")


def is_endless(root: object) -> bool:
    """Tell whether no value of a schema ends. What cannot be understood here is thought to end."""
    if not isinstance(root, Mapping):
        return False
    whole = cast("Schema", root)
    groups = _all_groups(whole)
    ends = [node for node, needs in groups.items() if not needs]
    met, open_groups = set[tuple[int, int]](), {node: len(needs) for node, needs in groups.items()}
    users = _users(groups)
    while ends:
        for user, index in users.get(ends.pop(), ()):
            if (user, index) in met:
                continue
            met.add((user, index))
            open_groups[user] -= 1
            if not open_groups[user]:
                ends.append(user)
    return open_groups[id(whole)] > 0


def _all_groups(root: Schema) -> dict[int, Groups]:
    """Return the groups of the root and of all that it needs, by the identity of the schema."""
    found: dict[int, Groups] = {}
    ahead = [root]
    while ahead:
        schema = ahead.pop()
        if id(schema) not in found:
            found[id(schema)] = groups = list(_groups(schema, root))
            ahead += [member for group in groups for member in group]
    return found


def _users(groups: dict[int, Groups]) -> dict[int, list[tuple[int, int]]]:
    """Return which groups each schema is a member of."""
    users: dict[int, list[tuple[int, int]]] = {}
    for node, needs in groups.items():
        for index, group in enumerate(needs):
            for member in group:
                users.setdefault(id(member), []).append((node, index))
    return users


def _groups(schema: Schema, root: Schema) -> Iterator[list[Schema]]:
    """Yield what a value of this schema needs."""
    if "const" in schema or "enum" in schema:
        return
    if "$ref" in schema and (target := _target(schema["$ref"], root)) is not None:
        yield [target]
    choices = [each for key in ("anyOf", "oneOf") if (each := _listed(schema.get(key)))]
    for choice in (*choices, *([each] for each in _listed(schema.get("allOf"))), *_held(schema)):
        if all(isinstance(each, Mapping) or each is False for each in choice):  # False has no value at all
            yield [cast("Schema", each) for each in choice if each is not False]


def _held(schema: Schema) -> list[list[Any]]:
    """Return groups of what every value of this schema holds: a value in it of one schema of each."""
    kind = schema.get("type")
    kinds = cast("list[Any]", kind) if isinstance(kind, list) else [kind]
    if not kinds or any(each not in ("object", "array") for each in kinds):
        return []
    ways = [_in_object(schema) if each == "object" else _in_array(schema) for each in kinds]
    if len(ways) == 1:
        return ways[0]
    return [[{"allOf": [{"anyOf": group} for group in way]} for way in ways]]


def _in_object(schema: Schema) -> list[list[Any]]:
    named, patterns = _mapped(schema.get("properties")), _mapped(schema.get("patternProperties"))
    names = {name for name in _listed(schema.get("required")) if isinstance(name, str)}
    groups = [[named[name]] for name in names if name in named]
    others = schema.get("additionalProperties", True)
    groups += _in_unnamed([name for name in names if name not in named], patterns, others)
    least = schema.get("minProperties")
    if isinstance(least, int) and least > len(names):
        free = [each for name, each in named.items() if name not in names]
        groups.append([*free, *patterns.values(), others])
    return groups


def _in_unnamed(names: list[str], patterns: Schema, others: Any) -> list[list[Any]]:
    """Return what properties hold that must be there and stand under no name."""
    groups: list[list[Any]] = []
    is_small = len(names) * len(patterns) <= MAX_MATCHES
    # A pattern that is not looked into may match or not.
    open_ones = [each for pattern, each in patterns.items() if not is_small or not _PLAIN.fullmatch(pattern)]
    plain = [pattern for pattern in patterns if is_small and _PLAIN.fullmatch(pattern)]
    matched = {name: [patterns[pattern] for pattern in plain if _matches(pattern, name)] for name in names}
    groups += [[each] for found in matched.values() for each in found]
    if not all(matched.values()):
        groups.append([*open_ones, others])
    return groups


def _matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern that is no more than a text and anchors, or any text, matches."""
    text = pattern.removeprefix("^").removesuffix("$")
    starts, ends = pattern.startswith("^"), pattern.endswith("$")
    if text == ".*":
        return not (starts and ends and "\n" in name)
    if starts and ends:
        return name == text
    return name.startswith(text) if starts else name.endswith(text) if ends else text in name


def _in_array(schema: Schema) -> list[list[Any]]:
    least = schema.get("minItems")
    if not isinstance(least, int) or least < 1:
        return []
    first, others = _listed(schema.get("prefixItems")), schema.get("items")
    if isinstance(others, list):  # as drafts before 2020-12 write it
        first, others = _listed(others), schema.get("additionalItems")
    return [[each] for each in (*first[:least], *([others] if least > len(first) else []))]


def _mapped(value: Any) -> Schema:
    return cast("Schema", value) if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _target(reference: Any, root: Schema) -> Schema | None:
    """Return what a reference inside the schema points to (RFC 6901), None when that is not known."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    place: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping) and name in place:
            place = cast("Schema", place)[name]
        elif isinstance(place, list) and name.isdecimal() and int(name) < len(cast("list[Any]", place)):
            place = cast("list[Any]", place)[int(name)]
        else:
            return None
    return cast("Schema", place) if isinstance(place, Mapping) else None
