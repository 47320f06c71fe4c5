"""Staging, committing to and dropping a release of the service's own engine, one step at a time.

What it guarantees: everything goes through the engine's own updater, with its checks of signatures, hashes
and self-test, and behind its lock: an operator and the scheduled update never work at the same time, and
whoever comes second is told so (409).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Request

from autoglm.device import Updater, UpdateResult
from autoglm.hub.audit import Actor
from autoglm.service.access import actor_of
from autoglm.service.guards import ADMINISTRATORS
from autoglm.service.problems import APIError, ErrorAnswer
from autoglm.service.state import ServiceState, state_of

WAIT_S = 5.0
"""Longest wait for an update under way; a look at the files on the disk takes less."""

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 429, 503)
}
T = TypeVar("T")

router = APIRouter(
    prefix="/v1/admin/engine", tags=["administration"], responses=_FAILURES, dependencies=[ADMINISTRATORS]
)


@router.post("/stage")
async def stage(request: Request) -> dict[str, Any]:
    """Fetch, verify, load and examine what the hub offers the engine; the live release serves on."""
    state, updater, actor = _operator(request)
    engine = state.some_engine
    result = await _in_thread(lambda: updater.stage(engine, wait_s=WAIT_S))
    await _note(state, actor, "engine.stage", result)
    quarantined = (await _in_thread(updater.status)).quarantined
    return _answer(result) | {"retry_after_s": result.retry_after_s, "quarantined": quarantined}


@router.post("/commit")
async def commit(request: Request) -> dict[str, Any]:
    """Swap the staged release in; its trial begins."""
    state, updater, actor = _operator(request)
    engine = state.some_engine
    running = engine.stats().running
    result = await _in_thread(lambda: updater.commit(wait_s=WAIT_S))
    await _note(state, actor, "engine.commit", result)
    swap = engine.last_swap
    flight = {} if swap is None else {"in_flight": swap.in_flight, "drained_s": swap.drained_s}
    return _answer(result) | {"running": running, "pause_s": result.pause_s} | flight


@router.post("/discard")
async def discard(request: Request) -> dict[str, bool]:
    """Drop the staged release; the next scheduled update installs what the hub offers then."""
    state, updater, actor = _operator(request)
    discarded = await _in_thread(lambda: updater.discard(wait_s=WAIT_S))
    await _in_thread(lambda: state.some_hub.audit.note(actor, "engine.discard", "service"))
    return {"discarded": discarded}


def _operator(request: Request) -> tuple[ServiceState, Updater, Actor]:
    """Let whoever may change the engine in."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "engine:write"))
    _ = state.some_engine
    if state.updater is None:
        raise APIError(409, "this service does not follow a hub", type="conflict_error", code="E_CONFLICT")
    return state, state.updater, actor


async def _in_thread(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)


async def _note(state: ServiceState, actor: Actor, what: str, result: UpdateResult) -> None:
    details = {"result": result.kind, "version": result.to_version, "code": result.code}
    await _in_thread(lambda: state.some_hub.audit.note(actor, what, "service", details))


def _answer(result: UpdateResult) -> dict[str, Any]:
    """Return what came of it; what was held back or failed is a conflict with its own code."""
    if result.kind in ("held", "failed"):
        message = result.message or "it does not go on now"
        raise APIError(409, message, type="conflict_error", code=result.code)
    return {"result": result.kind, "version": result.to_version, "from_version": result.from_version}
