"""What the routes of one running service share, and the names under which it serves its model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

import anyio
from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from autoglm.device import Agent, Updater
from autoglm.hub import Hub
from autoglm.service.access import Access
from autoglm.service.fetching import ImageFetcher
from autoglm.service.http_metrics import HttpMetrics
from autoglm.service.pictures import DecodedImages
from autoglm.service.problems import APIError
from autoglm.service.settings import Settings

if TYPE_CHECKING:
    from autoglm.service.start import (
        Backend,
    )  # a process that is a hub only goes without the model's libraries

# Decoding a large image takes a core and its pixels' memory: this many at once, the others wait.
MAX_DECODING = 2


@dataclass
class ServiceState:
    """The parts behind the routes.

    Attributes:
        settings: as configured.
        engine: answers; None in a process that is a hub only.
        access: who may call what.
        hub: releases and roll-outs; None in a device or engine process, which serves inference only.
        updater: the one that keeps the engine's release.
        agent: asks for updates by itself.
        stopping: whether the service is on its way out; it is not ready any more.
        created: when this service began, seconds since 1970.
        decoding: the tickets for decoding media.
        images: pictures decoded lately.
        metrics: counts the requests.
        fetcher: gets images from addresses, where that is allowed.
    """

    settings: Settings
    engine: Backend | None
    access: Access
    hub: Hub | None = None
    updater: Updater | None = None
    agent: Agent | None = None
    stopping: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    decoding: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_DECODING))
    images: DecodedImages = field(default_factory=DecodedImages)
    metrics: HttpMetrics = field(default_factory=HttpMetrics)
    fetcher: ImageFetcher = field(init=False)

    def __post_init__(self) -> None:
        self.fetcher = ImageFetcher(self.settings.limits)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that clients may ask for, the model's own first."""
        return (self.settings.model.name, *self.settings.model.aliases)

    @property
    def unready(self) -> str | None:
        """Why requests are not answered just now; None when they are."""
        if self.stopping:
            return "the service is stopping"
        return None if self.engine is None else self.engine.trouble

    @property
    def some_hub(self) -> Hub:
        """The hub, on routes that exist only where there is one."""
        if self.hub is None:
            raise APIError(404, "this process serves inference only", type="not_found_error")
        return self.hub

    @property
    def some_engine(self) -> Backend:
        """The engine, on routes that exist only where there is one."""
        if self.engine is None:
            raise APIError(409, "this process is a hub only", type="conflict_error", code="E_CONFLICT")
        return self.engine

    def require_own_model(self, what: str) -> None:
        """See that the project's own engine answers.

        Raises:
            APIError: vLLM servers do, which serve a chat model; ``what`` is what they do not have.
        """
        if self.settings.backend.kind == "vllm":
            message = f"{what} are not available with the vLLM backend"
            raise APIError(400, message, code="unsupported_parameter")

    def nudge(self) -> None:
        """Let this process's engine ask its hub now, unless operators alone decide when it is updated."""
        if self.agent is not None and self.settings.update.automatic:
            self.agent.update_now()

    def version_of(self, model: str) -> str | None:
        """Return the version that ``name@version`` pins, None for a plain name.

        Raises:
            APIError: 404, the name is not served here.
        """
        name, _, version = model.partition("@")
        if name not in self.names or model.endswith("@"):
            message = f"the model {model[:80]!r} does not exist; this service has {', '.join(self.names)}"
            raise APIError(404, message, type="not_found_error", param="model", code="model_not_found")
        return version or None


def state_of(connection: HTTPConnection) -> ServiceState:
    """Return the state of the application that a request came to."""
    return cast("ServiceState", connection.app.state.service)


def _let_in(request: Request) -> ServiceState:
    state = state_of(request)
    state.access.open_route(request)
    return state


OpenState = Annotated[ServiceState, Depends(_let_in)]
"""The state, on a route that needs a token only when ``auth.required`` is set."""
