"""The HTTP application: the routes that a service, or a device process that listens, offers.

>>> app = create_app(ServiceState(settings, engine, access))        # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

import autoglm
from autoglm.service import (
    admin_routes,
    health,
    metrics,
    model_routes,
    people_routes,
    reference,
    rollout_routes,
    swap_routes,
)
from autoglm.service.admin_routes import SignedMetadata
from autoglm.service.bodies import component_schemas
from autoglm.service.problems import APIError, ErrorAnswer, install_problem_handlers
from autoglm.service.quotas import Quota
from autoglm.service.rollout_routes import NewRollout, RollbackRequest, RolloutChange
from autoglm.service.state import ServiceState
from autoglm.service.update_check import UPDATE_PATH, UpdateCheck, is_update_check
from autoglm.service.wire_schemas import WIRE_SCHEMAS

WHILE_STOPPING = ("/health", "/ready", "/metrics")
STOPPING = APIError(
    503,
    "the service is stopping: ask another one, or this one again after its restart",
    type="overloaded_error",
    code="stopping",
    headers={"retry-after": "5", "connection": "close"},
)
NO_HOST = APIError(
    400, "a request needs one Host header", param="host", code="invalid_host", headers={"connection": "close"}
)


class Application(FastAPI):
    """FastAPI behind the one request that comes by the thousand; see :mod:`autoglm.service.update_check`."""

    update_check: UpdateCheck | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        state: ServiceState = self.state.service
        if state.access.quota.is_limited:
            send = _with_limits(state.access.quota, scope, send)
        await state.metrics.measure(self._serve, scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: ServiceState = self.state.service
        if state.stopping and scope["path"] not in WHILE_STOPPING:
            await STOPPING.response(scope, receive, send)
        elif not _names_one_host(scope):
            await NO_HOST.response(scope, receive, send)
        elif self.update_check is not None and is_update_check(scope):
            scope["answered"] = UPDATE_PATH
            await self.update_check(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _names_one_host(scope: Scope) -> bool:
    """Tell whether a request has one ``Host``, as HTTP/1.1 demands; HTTP/1.0 need not say."""
    hosts = sum(name == b"host" for name, _ in scope["headers"])
    return hosts == 1 or (hosts == 0 and scope["http_version"] == "1.0")


def _with_limits(quota: Quota, scope: Scope, send: Send) -> Send:
    """Return a ``send`` that tells callers what is left to them, once it is known who they are."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(quota.headers(Request(scope)))
        await send(message)

    return tell


def create_app(state: ServiceState) -> Application:
    """Return the application over running parts.

    Without a hub it serves inference, ``/v1/model/info`` and health only: that is what a device does, and an
    engine that follows a hub elsewhere. Without an engine it serves the hub's routes and health only.
    """
    app = Application(
        title="AutoGLM-Phone",
        version=autoglm.__version__,
        summary="An OpenAI-compatible model that is updated over the air.",
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = state
    install_problem_handlers(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(reference.router)
    bodies: list[type[BaseModel]] = [ErrorAnswer]
    messages: dict[str, dict[str, Any]] = {}
    if state.engine is not None:
        from autoglm.service import (  # which import the model's libraries
            chat,
            completions,
            embeddings,
            transcriptions,
        )
        from autoglm.service.completions import CompletionRequest
        from autoglm.service.embeddings import EmbeddingsRequest
        from autoglm.service.schemas import ChatRequest

        app.include_router(chat.router)
        app.include_router(completions.router)
        app.include_router(embeddings.router)
        app.include_router(transcriptions.router)
        app.include_router(model_routes.engine_router)
        bodies += [ChatRequest, CompletionRequest, EmbeddingsRequest]
    if state.hub is not None:
        app.include_router(model_routes.hub_router)
        app.include_router(admin_routes.router)
        app.include_router(swap_routes.router)
        app.include_router(rollout_routes.router)
        app.include_router(people_routes.register_router)
        app.include_router(people_routes.router)
        app.update_check = UpdateCheck(state)
        bodies += [NewRollout, RollbackRequest, RolloutChange, SignedMetadata, *people_routes.BODIES]
        messages = WIRE_SCHEMAS
    _describe(app, component_schemas(*bodies) | messages)
    return app


def _describe(app: FastAPI, schemas: dict[str, Any]) -> None:
    """Let the OpenAPI description hold the bodies that routes read by themselves.

    What FastAPI says of malformed requests is left out: they are answered 400, in the shape of all errors.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        description = generate()
        for methods in description["paths"].values():
            for route in methods.values():
                route["responses"].pop("422", None)
        known: dict[str, Any] = description.setdefault("components", {}).setdefault("schemas", {})
        known.update(schemas)
        for name in ("HTTPValidationError", "ValidationError"):
            known.pop(name, None)
        return description

    app.openapi = openapi
