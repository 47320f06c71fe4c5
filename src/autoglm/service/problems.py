"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``, everywhere.

What it guarantees: whatever goes wrong, the answer has this shape and a fitting status; a message of ours
says what to do; the text of an unexpected exception never leaves the process (it is logged instead).
"""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from autoglm import errors
from autoglm.errors import AutoGLMError

_log = logging.getLogger(__name__)

# The first class that fits decides: (class, status, OpenAI's error type).
_STATUS: tuple[tuple[type[AutoGLMError], int, str], ...] = (
    (errors.RequestError, 400, "invalid_request_error"),
    (errors.OverloadedError, 503, "overloaded_error"),
    (errors.HealthError, 409, "conflict_error"),
    (errors.BackendTimeoutError, 504, "server_error"),
    (errors.BackendError, 502, "server_error"),
    (errors.EngineError, 500, "server_error"),
    (errors.NotFoundError, 404, "not_found_error"),
    (errors.ConflictError, 409, "conflict_error"),
    (errors.PermissionDeniedError, 403, "permission_error"),
    (errors.HubError, 400, "invalid_request_error"),
    (errors.FormatError, 400, "invalid_request_error"),
    (errors.TrustError, 400, "invalid_request_error"),
    (errors.LockedError, 503, "overloaded_error"),
    (errors.DiskFullError, 507, "server_error"),
    (errors.NetworkError, 502, "server_error"),
    (errors.ConfigError, 400, "invalid_request_error"),
)

# What pydantic says of a value that is of the right kind, and too large or too small.
_SIZES = ("too_long", "too_short", "string_too_long", "string_too_short")

# After an index these are the kind of a message's part, not a field of it.
_PART_TYPES = ("text", "image_url", "input_audio")


class APIError(Exception):
    """An answer other than success, to be raised anywhere below a route.

    Attributes:
        status: the HTTP status.
        type: OpenAI's error type.
        param: the request field at fault.
        code: a stable word for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


class ErrorBody(BaseModel):
    """What ``error`` holds."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


def problem_of(error: AutoGLMError) -> APIError:
    """Return the answer that fits one of our errors."""
    param = getattr(error, "param", None)
    if isinstance(error, errors.RequestError) and param == "model":
        return APIError(404, str(error), type="not_found_error", param="model", code="model_not_found")
    status, kind = next(
        ((status, kind) for cls, status, kind in _STATUS if isinstance(error, cls)), (500, "server_error")
    )
    headers: dict[str, str] = {}
    if status == 503 or isinstance(error, errors.BackendError):
        headers["retry-after"] = str(getattr(error, "retry_after_s", 1))
    return APIError(status, str(error), type=kind, param=param, code=error.code, headers=headers)


def problem_of_fields(error: ValidationError | RequestValidationError) -> APIError:
    """Return the answer for a body or a parameter that does not fit: 400, naming the first field at fault."""
    # Of a union, the branch that was meant: whose kind of value fits, else the one that fits deepest.
    first = max(error.errors(), key=lambda entry: (entry["type"] in _SIZES, len(entry["loc"])))
    if first["type"] == "json_invalid":
        return APIError(400, f"the body is not valid JSON: {first['msg']}", code="invalid_json")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "unsupported":
        return APIError(400, message, param=first["ctx"]["param"], code="unsupported_parameter")
    param = _dotted(first["loc"])
    text = f"{param}: {message}" if param else message
    return APIError(400, text, param=param or None, code="invalid_value")


def _dotted(location: tuple[int | str, ...] | list[int | str]) -> str:
    """Name a field as a person would; what pydantic adds to tell union members apart is left out."""
    text = ""
    before: int | str = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _is_field(part) and not (isinstance(before, int) and part in _PART_TYPES):
            text += f".{part}"
        before = part
    return text.removeprefix(".")


def _is_field(part: str) -> bool:
    return part.isidentifier() and part.islower() and part not in ("query", "body", "path", "str")


def read_json(content: bytes, what: str) -> object:
    """Parse a JSON body.

    Raises:
        APIError: it is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the {what} is not valid JSON", code="invalid_json") from error


def install_problem_handlers(app: FastAPI) -> None:
    """Give every failure of the application the one shape."""
    handlers: dict[Any, Any] = {
        APIError: _on_refusal,
        AutoGLMError: _on_refusal,
        HTTPException: _on_http_error,
        RequestValidationError: _on_fields,
        ClientDisconnect: _on_refusal,
        Exception: _on_surprise,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def refusal(request: Request, error: Exception) -> Response:
    """Return the answer to a request that came to this error; one that nobody expected is logged."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody is there to read it
    if isinstance(error, APIError):
        return error.response
    if isinstance(error, AutoGLMError):
        problem = problem_of(error)
        if problem.status >= 500 and problem.status != 503:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return problem.response
    _log.error("%s %s", request.method, request.url.path, exc_info=error)
    return _surprise().response


async def _on_refusal(request: Request, error: Exception) -> Response:
    return refusal(request, error)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"{http.HTTPStatus(error.status_code).phrase}: {request.method} {request.url.path}"
    return APIError(error.status_code, message, type=kind, headers=error.headers).response


async def _on_fields(_: Request, error: RequestValidationError) -> Response:
    return problem_of_fields(error).response


async def _on_surprise(_: Request, error: Exception) -> Response:
    return _surprise().response  # the server logs it


def _surprise() -> APIError:
    message = "an internal error occurred; the server's log says more"
    return APIError(500, message, type="server_error", code="internal_error")
