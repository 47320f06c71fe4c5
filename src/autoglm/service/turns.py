"""Requests that come while a swap drains or exchanges the model wait here, without holding a thread."""

from __future__ import annotations

import asyncio

from autoglm.errors import OverloadedError
from autoglm.service.state import ServiceState

_RETRY_S = 5


async def let_in(state: ServiceState) -> None:
    """Wait until the engine takes requests; a client that goes away gives its place up.

    Raises:
        OverloadedError: ``limits.queue`` requests wait already, the service is shutting down, or the wait
            was longer than ``backend.wait_seconds`` allows.
    """
    backend = state.settings.backend
    limit_s = backend.wait_seconds if backend.kind == "vllm" else None  # our own engine bounds its swaps
    try:
        async with asyncio.timeout(limit_s):
            while (turn := state.some_engine.turn()) is not None:
                await asyncio.wrap_future(turn)
    except TimeoutError as error:
        message = f"the model was not there for {limit_s:g} s: try again later"
        raise OverloadedError(message, retry_after_s=_RETRY_S) from error
