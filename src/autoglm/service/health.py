"""``GET /health`` (the process lives) and ``GET /ready`` (it answers requests)."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from autoglm.service.state import state_of

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process lives; the body never changes."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Say whether requests are answered now, and by which release; 503 when they are not."""
    state = state_of(request)
    if (reason := state.unready) is not None:
        status = "stopping" if state.stopping else "unavailable"
        return JSONResponse({"status": status, "reason": reason}, 503, {"retry-after": "5"})
    if state.engine is None:
        await anyio.to_thread.run_sync(state.some_hub.info)  # a hub is ready when its tables answer
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "ready", "version": state.engine.active_version})
