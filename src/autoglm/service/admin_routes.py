"""Administration: releases, packages, roll-outs, devices, and the service's own engine.

What it guarantees: every route needs a token whose role allows it, whatever the configuration; an upload
that breaks off or is refused leaves nothing behind; the engine is updated and rolled back by its own
updater only, there is no second way in.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from autoglm.errors import DiskFullError
from autoglm.files import storage_error
from autoglm.releases import MAX_FILE_BYTES
from autoglm.service.bodies import body_schema, bounded_chunks, promised_bytes, read_model
from autoglm.service.problems import APIError, ErrorAnswer
from autoglm.service.state import ServiceState, state_of
from autoglm.trust.admission import MAX_UPLOADED

_MAX_BODY_BYTES = 64 << 10
_MAX_METADATA_BYTES = 32 << 20
_RESERVE_BYTES = 64 << 20  # left free whatever is uploaded, so that the tables can still be written
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 507)
}


def _reader(request: Request) -> ServiceState:
    state = state_of(request)
    state.access.admin_route(request)
    return state


# The token is looked at before anything else of a request is.
router = APIRouter(
    prefix="/v1/admin", tags=["administration"], responses=_FAILURES, dependencies=[Depends(_reader)]
)

Reader = Annotated[ServiceState, Depends(_reader)]
Names = Annotated[list[str], Query(max_length=32)]
_NO_NAMES: list[str] = []
Percent = Annotated[float | None, Query(ge=0, le=100, allow_inf_nan=False)]


class NewRollout(BaseModel):
    """Whom a release is offered to: a percentage of the devices in any of the groups and regions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=64)]
    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 100.0
    groups: Annotated[list[str], Field(max_length=32)] = []
    regions: Annotated[list[str], Field(max_length=32)] = []


class SignedMetadata(BaseModel):
    """Files of signed metadata by name, such as ``2.root.json``; their signatures are what lets them in."""

    model_config = ConfigDict(strict=True, extra="forbid")

    files: Annotated[dict[str, str], Field(min_length=1, max_length=MAX_UPLOADED)]


class RolloutChange(BaseModel):
    """What becomes of a roll-out."""

    model_config = ConfigDict(strict=True, extra="forbid")

    state: Literal["active", "paused", "aborted"]


@router.get("/releases")
async def list_releases(state: Reader) -> dict[str, Any]:
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
    state.access.admin_route(request, "publisher")
    hub = state.some_hub
    async with contextmanager_in_threadpool(hub.upload()) as package:
        await _receive(request, package)
        publication = await anyio.to_thread.run_sync(
            lambda: hub.publish(package, percent=percent, groups=group, regions=region)
        )
    _nudge(state)
    return JSONResponse(publication.to_json(), status_code=201 if publication.created else 200)


@router.post("/releases/{version}/revoke")
async def revoke_release(version: str, request: Request) -> dict[str, Any]:
    """Call a release back with the release key of this machine; it is offered and installed no more."""
    state = state_of(request)
    state.access.admin_route(request, "publisher")
    release = await anyio.to_thread.run_sync(state.some_hub.revoke_release, version)
    _nudge(state)
    return release.to_json()


@router.post("/metadata", openapi_extra=body_schema(SignedMetadata))
async def upload_metadata(request: Request) -> dict[str, Any]:
    """Take in metadata that was signed by offline keys, all of it or none."""
    state = state_of(request)
    state.access.admin_route(request, "publisher")
    uploaded = await read_model(request, SignedMetadata, _MAX_METADATA_BYTES)
    files = {name: text.encode() for name, text in uploaded.files.items()}
    accepted = await anyio.to_thread.run_sync(state.some_hub.trust.accept, files)
    _nudge(state)
    return {"accepted": accepted}


@router.get("/packages")
async def list_packages(state: Reader) -> dict[str, Any]:
    """List the ledger: every package with its state."""
    rows = await anyio.to_thread.run_sync(state.some_hub.packages)
    return {"packages": [row.to_json() for row in rows]}


@router.get("/rollouts")
async def list_rollouts(state: Reader) -> dict[str, Any]:
    """List the roll-outs with their counts."""
    rollouts = await anyio.to_thread.run_sync(state.some_hub.rollouts)
    return {"rollouts": [rollout.to_json() for rollout in rollouts]}


@router.post("/rollouts", status_code=201, openapi_extra=body_schema(NewRollout))
async def create_rollout(request: Request) -> dict[str, Any]:
    """Offer a release."""
    state = state_of(request)
    state.access.admin_route(request, "operator")
    wanted = await read_model(request, NewRollout, _MAX_BODY_BYTES)
    hub = state.some_hub
    rollout = await anyio.to_thread.run_sync(
        lambda: hub.create_rollout(
            wanted.version, wanted.percent, groups=wanted.groups, regions=wanted.regions
        )
    )
    _nudge(state)
    return rollout.to_json()


@router.patch("/rollouts/{rollout_id}", openapi_extra=body_schema(RolloutChange))
async def change_rollout(rollout_id: str, request: Request) -> dict[str, Any]:
    """Pause, resume or abort a roll-out."""
    state = state_of(request)
    state.access.admin_route(request, "operator")
    change = await read_model(request, RolloutChange, _MAX_BODY_BYTES)
    hub = state.some_hub
    rollout = await anyio.to_thread.run_sync(hub.set_rollout_state, rollout_id, change.state)
    _nudge(state)
    return rollout.to_json()


@router.get("/devices")
async def list_devices(state: Reader) -> dict[str, Any]:
    """List the devices as last seen."""
    devices = await anyio.to_thread.run_sync(state.some_hub.devices)
    return {"devices": [device.to_json() for device in devices]}


@router.get("/engine")
async def engine_status(state: Reader) -> dict[str, Any]:
    """Show the engine's counters and its updater's state."""
    status = None if state.updater is None else await anyio.to_thread.run_sync(state.updater.status)
    return {
        "engine": dataclasses.asdict(state.engine.stats()),
        "updater": None if status is None else status.to_json(),
    }


@router.post("/engine/update", status_code=202)
async def engine_update(request: Request) -> dict[str, str]:
    """Let the engine's updater look for an update now."""
    state = state_of(request)
    state.access.admin_route(request, "operator")
    if state.agent is None:
        raise APIError(409, "this service does not follow a hub", type="conflict_error", code="E_CONFLICT")
    _nudge(state)
    return {"status": "asked"}


@router.post("/engine/rollback")
async def engine_rollback(request: Request) -> dict[str, Any]:
    """Return the engine to its previous release; the present one is not installed again."""
    state = state_of(request)
    claims = state.access.admin_route(request, "operator")
    updater, engine = state.updater, state.engine
    if updater is None:
        raise APIError(409, "this service does not follow a hub", type="conflict_error", code="E_CONFLICT")
    reason = f"asked for by {claims.name or claims.role}"
    await anyio.to_thread.run_sync(lambda: updater.rollback(engine, reason=reason))
    return {"version": engine.active_version}


def _nudge(state: ServiceState) -> None:
    """Let the service's own engine ask the hub now, as a phone would at its next check."""
    if state.agent is not None:
        state.agent.update_now()


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
