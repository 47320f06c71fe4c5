"""The HTTP application: the routes that a service, or a device process that listens, offers.

>>> app = create_app(ServiceState(settings, engine, access))        # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

import autoglm
from autoglm.service import admin_routes, health, model_routes, people_routes, reference, rollout_routes
from autoglm.service.admin_routes import SignedMetadata
from autoglm.service.bodies import component_schemas
from autoglm.service.problems import ErrorAnswer, install_problem_handlers
from autoglm.service.rollout_routes import NewRollout, RollbackRequest, RolloutChange
from autoglm.service.state import ServiceState
from autoglm.service.update_check import UpdateCheck, is_update_check
from autoglm.service.wire_schemas import WIRE_SCHEMAS


class Application(FastAPI):
    """FastAPI behind the one request that comes by the thousand; see :mod:`autoglm.service.update_check`."""

    update_check: UpdateCheck | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self.update_check is not None and is_update_check(scope):
            await self.update_check(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


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
    app.include_router(reference.router)
    bodies: list[type[BaseModel]] = [ErrorAnswer]
    messages: dict[str, dict[str, Any]] = {}
    if state.engine is not None:
        from autoglm.service import chat  # which imports the model's libraries
        from autoglm.service.schemas import ChatRequest

        app.include_router(chat.router)
        app.include_router(model_routes.engine_router)
        bodies.append(ChatRequest)
    if state.hub is not None:
        app.include_router(model_routes.hub_router)
        app.include_router(admin_routes.router)
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
