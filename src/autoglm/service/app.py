"""The HTTP application: the routes that a service, or a device process that listens, offers.

>>> app = create_app(ServiceState(settings, engine, access))        # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

import autoglm
from autoglm.service import admin_routes, chat, health, model_routes, people_routes, rollout_routes
from autoglm.service.admin_routes import SignedMetadata
from autoglm.service.bodies import component_schemas
from autoglm.service.problems import install_problem_handlers
from autoglm.service.rollout_routes import NewRollout, RollbackRequest, RolloutChange
from autoglm.service.schemas import ChatRequest
from autoglm.service.state import ServiceState


def create_app(state: ServiceState) -> FastAPI:
    """Return the application over running parts.

    Without a hub it serves inference, ``/v1/model/info`` and health only: that is what a device does.
    """
    app = FastAPI(
        title="AutoGLM-Phone",
        version=autoglm.__version__,
        summary="An OpenAI-compatible model that is updated over the air.",
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.service = state
    install_problem_handlers(app)
    app.include_router(health.router)
    app.include_router(chat.router)
    app.include_router(model_routes.engine_router)
    if state.hub is not None:
        app.include_router(model_routes.hub_router)
        app.include_router(admin_routes.router)
        app.include_router(rollout_routes.router)
        app.include_router(people_routes.register_router)
        app.include_router(people_routes.router)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Let the OpenAPI description hold the bodies that routes read by themselves."""
    generate = app.openapi
    bodies = component_schemas(
        ChatRequest, NewRollout, RollbackRequest, RolloutChange, SignedMetadata, *people_routes.BODIES
    )

    def openapi() -> dict[str, Any]:
        description = generate()
        description["components"]["schemas"].update(bodies)
        return description

    app.openapi = openapi
