"""Administration: releases, packages, devices, and the service's own engine.

What it guarantees: every route needs a token that is permitted to, whatever the configuration; an upload
that breaks off or is refused leaves nothing behind; the engine is updated and rolled back by its own
updater only, there is no second way in.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from autoglm.errors import DiskFullError
from autoglm.files import storage_error
from autoglm.releases import MAX_FILE_BYTES
from autoglm.service.access import actor_of
from autoglm.service.bodies import body_schema, bounded_chunks, promised_bytes, read_model
from autoglm.service.guards import ADMINISTRATORS, needs
from autoglm.service.problems import APIError, ErrorAnswer
from autoglm.service.state import ServiceState, state_of
from autoglm.service.swap_routes import WAIT_S
from autoglm.trust.admission import MAX_UPLOADED

_MAX_METADATA_BYTES = 32 << 20
_RESERVE_BYTES = 64 << 20  # left free whatever is uploaded, so that the tables can still be written
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 429, 507)
}


router = APIRouter(
    prefix="/v1/admin", tags=["administration"], responses=_FAILURES, dependencies=[ADMINISTRATORS]
)

Names = Annotated[list[str], Query(max_length=32)]
_NO_NAMES: list[str] = []
Percent = Annotated[float | None, Query(ge=0, le=100, allow_inf_nan=False)]


class SignedMetadata(BaseModel):
    """Files of signed metadata by name, such as ``2.root.json``; their signatures are what lets them in."""

    model_config = ConfigDict(strict=True, extra="forbid")

    files: Annotated[dict[str, str], Field(min_length=1, max_length=MAX_UPLOADED)]


@router.get("/releases")
async def list_releases(state: Annotated[ServiceState, needs("releases:read")]) -> dict[str, Any]:
    """List the releases and their packages."""
    releases = await anyio.to_thread.run_sync(state.some_hub.releases)
    info = await anyio.to_thread.run_sync(state.some_hub.info)
    return {"hub": info.to_json(), "releases": [release.to_json() for release in releases]}


@router.post(
    "/releases",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def publish(
    request: Request, percent: Percent = None, group: Names = _NO_NAMES, region: Names = _NO_NAMES
) -> JSONResponse:
    """Publish the ``.wpatch`` in the body; with a percentage, groups or regions it is offered at once."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "releases:write"))
    hub = state.some_hub
    async with contextmanager_in_threadpool(hub.upload()) as package:
        await _receive(request, package)
        publication = await anyio.to_thread.run_sync(
            lambda: hub.publish(package, percent=percent, groups=group, regions=region, actor=actor)
        )
    _nudge(state)
    return JSONResponse(publication.to_json(), status_code=201 if publication.created else 200)


@router.post("/releases/{version}/revoke")
async def revoke_release(version: str, request: Request) -> dict[str, Any]:
    """Call a release back with the release key of this machine; it is offered and installed no more."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "releases:write"))
    release = await anyio.to_thread.run_sync(state.some_hub.revoke_release, version, actor)
    _nudge(state)
    return release.to_json()


@router.post("/metadata", openapi_extra=body_schema(SignedMetadata))
async def upload_metadata(request: Request) -> dict[str, Any]:
    """Take in metadata that was signed by offline keys, all of it or none."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "releases:write"))
    uploaded = await read_model(request, SignedMetadata, _MAX_METADATA_BYTES)
    files = {name: text.encode() for name, text in uploaded.files.items()}
    accepted = await anyio.to_thread.run_sync(state.some_hub.trust.accept, files, actor)
    _nudge(state)
    return {"accepted": accepted}


@router.get("/packages")
async def list_packages(state: Annotated[ServiceState, needs("releases:read")]) -> dict[str, Any]:
    """List the ledger: every package with its state."""
    rows = await anyio.to_thread.run_sync(state.some_hub.packages)
    return {"packages": [row.to_json() for row in rows]}


@router.get("/engine")
async def engine_status(state: Annotated[ServiceState, needs("engine:read")]) -> dict[str, Any]:
    """Show the engine's counters and its updater's state."""
    status = None if state.updater is None else await anyio.to_thread.run_sync(state.updater.status)
    engine = state.some_engine
    swap = engine.last_swap
    return {
        "engine": dataclasses.asdict(engine.stats()),
        "last_swap": None if swap is None else dataclasses.asdict(swap),
        "updater": None if status is None else status.to_json(),
    }


@router.post("/engine/update", status_code=202)
async def engine_update(request: Request) -> dict[str, str]:
    """Let the engine's updater look for an update now."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "engine:write"))
    if state.agent is None:
        raise APIError(409, "this service does not follow a hub", type="conflict_error", code="E_CONFLICT")
    await anyio.to_thread.run_sync(state.some_hub.audit.note, actor, "engine.update", "service")
    state.agent.update_now()
    return {"status": "asked"}


@router.post("/engine/rollback")
async def engine_rollback(request: Request) -> dict[str, Any]:
    """Return the engine to its previous release; the present one is not installed again."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "engine:write"))
    updater, engine = state.updater, state.some_engine
    if updater is None:
        raise APIError(409, "this service does not follow a hub", type="conflict_error", code="E_CONFLICT")
    before = {"before": engine.active_version}
    reason = f"asked for by {actor.name}"
    await anyio.to_thread.run_sync(lambda: updater.rollback(engine, reason=reason, wait_s=WAIT_S))
    await anyio.to_thread.run_sync(state.some_hub.audit.note, actor, "engine.rollback", "service", before)
    return {"version": engine.active_version}


def _nudge(state: ServiceState) -> None:
    """Let the service's own engine ask the hub now, as a phone would at its next check."""
    state.nudge()


async def _receive(request: Request, path: Path) -> None:
    """Write the body to ``path``."""
    _check_room(path.parent, promised_bytes(request) or 0)
    try:
        with path.open("xb") as file:
            async for chunk in bounded_chunks(request, MAX_FILE_BYTES):
                await anyio.to_thread.run_sync(file.write, chunk)
    except OSError as error:
        raise storage_error(error, "receiving an upload") from error


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _RESERVE_BYTES:
        raise DiskFullError(
            f"the upload has {needed} bytes and the data directory has {free} free",
            needed_bytes=needed,
            free_bytes=free,
        )
