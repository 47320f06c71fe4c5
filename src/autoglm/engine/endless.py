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

from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote

Schema = Mapping[str, Any]
# A value ends when, of each of these groups of schemas, one has a value that ends.
Groups = list[list[Schema]]


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
    for key in ("anyOf", "oneOf"):
        if (choices := _listed(schema.get(key))) and all(isinstance(each, Mapping) for each in choices):
            yield choices
    for each in (*_listed(schema.get("allOf")), *_parts(schema)):
        if isinstance(each, Mapping):
            yield [cast("Schema", each)]


def _parts(schema: Schema) -> list[Any]:
    """Return the schemas of which every value of this one holds one."""
    if schema.get("type") == "object":
        named = schema.get("properties")
        known = cast("Schema", named) if isinstance(named, Mapping) else {}
        names = _listed(schema.get("required"))
        return [known[name] for name in names if isinstance(name, str) and name in known]
    least = schema.get("minItems")
    if schema.get("type") != "array" or not isinstance(least, int) or least < 1:
        return []
    first = _listed(schema.get("prefixItems"))
    return first[:least] + ([schema.get("items")] if least > len(first) else [])


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
