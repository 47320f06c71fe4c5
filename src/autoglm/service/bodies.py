"""Request bodies, bounded: nothing larger than allowed is ever held in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

from autoglm.service.problems import APIError, problem_of_fields

_Model = TypeVar("_Model", bound=BaseModel)
_REFERENCE = "#/components/schemas/{model}"


def promised_bytes(request: Request) -> int | None:
    """Return the body's announced length, None when it is not announced.

    Raises:
        APIError: 400, the header is no number.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise APIError(400, "content-length must be a number")
    return int(text)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        APIError: 413, it is larger than ``max_bytes``.
        ClientDisconnect: the client went away.
    """
    if (promised_bytes(request) or 0) > max_bytes:
        raise _too_large(max_bytes)
    content, more = bytearray(), True
    while more:  # without the generator below, which costs as much as a whole update check decides
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content += message.get("body", b"")
        more = bool(message.get("more_body"))
        if len(content) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(content)


async def bounded_chunks(request: Request, max_bytes: int) -> AsyncGenerator[bytes]:
    """Yield the body as it comes.

    Raises:
        APIError: 413, it is larger than ``max_bytes``.
        ClientDisconnect: the client went away.
    """
    if (promised_bytes(request) or 0) > max_bytes:
        raise _too_large(max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


async def read_model(request: Request, kind: type[_Model], max_bytes: int) -> _Model:
    """Return a JSON body as ``kind``, parsed beside the event loop.

    Raises:
        APIError: 413, it is larger than ``max_bytes``; 400, it does not fit.
        ClientDisconnect: the client went away.
    """
    body = await read_body(request, max_bytes)
    try:
        return await anyio.to_thread.run_sync(kind.model_validate_json, body)
    except ValidationError as error:
        raise problem_of_fields(error) from error


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that a route reads by :func:`read_model`."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def component_schemas(*kinds: type[BaseModel]) -> dict[str, Any]:
    """Return what :func:`body_schema` refers to: these models and all that they hold, by name."""
    _, defined = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REFERENCE)
    return defined["$defs"]


def _too_large(max_bytes: int) -> APIError:
    message = f"the body is larger than the {max_bytes} bytes that are allowed"
    return APIError(413, message, code="body_too_large", headers={"connection": "close"})
