"""The messages of devices as JSON Schema, for ``/openapi.json``.

:mod:`autoglm.releases` reads and writes them. A test holds the fields to those of the messages.
"""

from __future__ import annotations

from typing import Any

from autoglm.releases import MAX_FILE_BYTES

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_DEVICE_ID = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
_MAX_COUNTER = 1 << 53

Schema = dict[str, Any]


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}


def _text(**rules: Any) -> Schema:
    return {"type": "string", **rules}


def _number(least: int = 0, most: int = _MAX_COUNTER) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _list(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": most}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


_name, _sha256 = _text(pattern=_NAME), _text(pattern="^[0-9a-f]{64}$")
_device_id = _text(pattern=_DEVICE_ID)

_ENVIRONMENT = _object(
    {
        "free_bytes": _or_null(_number()),
        "net": _or_null(_text(maxLength=32)),
        "charging": _or_null({"type": "boolean"}),
        "battery": _or_null(_number(most=100)),
    }
)

_EVENT = _object(
    {
        "event_id": _name,
        "seq": _number(),
        "state": _name,
        "result": _text(enum=["progress", "ok", "fail"]),
        "attempt_id": _or_null(_text(maxLength=64)),
        "rollout_id": _or_null(_text(maxLength=64)),
        "from": _or_null(_text(maxLength=64)),
        "to": _or_null(_text(maxLength=64)),
        "code": _or_null(_name),
        "bytes": _or_null(_number(most=MAX_FILE_BYTES)),
        "ms": _or_null(_number()),
        "ts": _or_null(_text(maxLength=40)),
        "stats": {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 16},
    },
    "event_id",
    "seq",
    "state",
    "result",
)

WIRE_SCHEMAS: dict[str, Schema] = {
    "UpdateRequest": _object(
        {
            "device_id": _device_id,
            "current_version": _or_null(_text(maxLength=64)),
            "current_sha256": _or_null(_sha256),
            "model": _or_null(_name),
            "variant": _or_null(_name),
            "accept": _list(_name, 32),
            "env": _or_null(_ENVIRONMENT),
            "failed": _list(_name, 32),
        },
        "device_id",
    ),
    "UpdateAnswer": _object(
        {
            "need_update": {"type": "boolean"},
            "target_version": _or_null(_name),
            "download_url": _or_null(_text()),
            "kind": _text(enum=["patch", "full"]),
            "manifest": _text(),
            "manifest_sha256": _sha256,
            "counter": _number(1),
            "sha256": _sha256,
            "size": _number(1, MAX_FILE_BYTES),
            "header_length": _number(1),
            "header_sha256": _sha256,
            "full_url": _text(),
            "full_sha256": _sha256,
            "full_size": _number(1, MAX_FILE_BYTES),
            "full_header_length": _number(1),
            "full_header_sha256": _sha256,
            "rollout_id": _text(),
            "attempt_id": _text(),
            "retry_after_s": _number(),
        },
        "need_update",
        "target_version",
        "download_url",
    ),
    "EventBatch": _object({"device_id": _device_id, "events": _list(_EVENT, 200)}, "device_id", "events"),
    "EventAnswer": _object(
        {"accepted": _list(_name, 200), "control": _text(enum=["continue", "pause", "cancel"])},
        "accepted",
        "control",
    ),
}


def exchange(request: str, answer: str, status: int) -> dict[str, Any]:
    """Return the part of a route's description that names its body and its answer."""
    return {
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {str(status): {"description": "Successful Response", "content": _json(answer)}},
    }


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
