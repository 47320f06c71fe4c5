"""The update check ahead of the framework: what every device of a fleet asks again and again.

Most of the time of a check that goes through FastAPI is spent in FastAPI, so ``POST /v1/model/update`` is
answered before it. There is no rule of its own here: who may ask, how large a question may be and what the
answer is are decided by the same functions as on every other route, and so are the refusals.
:mod:`autoglm.service.model_routes` describes the route, and answers by the same :func:`check_update` what
comes to it below a mount point.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from autoglm.releases import UpdateRequest
from autoglm.service.bodies import read_body
from autoglm.service.callers import base_url
from autoglm.service.problems import read_json, refusal
from autoglm.service.state import ServiceState

UPDATE_PATH = "/v1/model/update"
MAX_CHECK_BYTES = 64 << 10
_dumps: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


def is_update_check(scope: Scope) -> bool:
    """Tell whether a request asks for an update."""
    return scope["type"] == "http" and scope["path"] == UPDATE_PATH and scope["method"] == "POST"


class UpdateCheck:
    """Answers the update check; an ASGI application.

    Args:
        state: the parts behind the routes; it has a hub.
    """

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        try:
            content = await check_update(request, self._state)
        except Exception as error:  # noqa: BLE001 - no handler of the framework stands behind this one
            await refusal(request, error)(scope, receive, send)
            return
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": 200, "headers": [length, *_HEADERS]})
        await send({"type": "http.response.body", "body": content})


def as_response(content: bytes) -> Response:
    """Return an answer of :func:`check_update` for a route of the framework."""
    return Response(content, headers={name.decode(): value.decode() for name, value in _HEADERS})


async def check_update(request: Request, state: ServiceState) -> bytes:
    """Return the JSON answer for a device that asks whether there is something for it.

    Raises:
        APIError: 401, 413, 429, or 400 for what is no JSON.
        MessageError: the question breaks a rule of the wire.
        PermissionDeniedError: the token belongs to another device.
        StorageError: the database refused.
        ClientDisconnect: nobody waits for the answer.
    """
    claims = state.access.open_route(request)
    body = read_json(await read_body(request, MAX_CHECK_BYTES), "update request")
    wanted = UpdateRequest.from_json(body)
    hub, base = state.some_hub, base_url(request, state.settings.public_url)
    answer = hub.check(wanted, claims, base)  # decided in memory
    if state.access.required:
        answer = hub.links.signed(answer, wanted.device_id)
    return _dumps(answer.to_json()).encode()
