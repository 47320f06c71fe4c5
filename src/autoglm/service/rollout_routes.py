"""Roll-outs over HTTP: make, watch, change, take back; what they would do, and what was when.

What it guarantees: whoever may administer may look, operators change; each change is in the roll-out's log
and in the audit log, with the name of the token that made it. Everything here is one call of the hub.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from autoglm.hub import Actor, RolloutControl, Wanted
from autoglm.service.access import actor_of
from autoglm.service.bodies import body_schema, read_model
from autoglm.service.guards import ADMINISTRATORS, needs
from autoglm.service.problems import ErrorAnswer
from autoglm.service.state import ServiceState, state_of

_MAX_BODY_BYTES = 64 << 10
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 507)
}


router = APIRouter(prefix="/v1/admin", tags=["roll-outs"], responses=_FAILURES, dependencies=[ADMINISTRATORS])

Reader = Annotated[ServiceState, needs("rollouts:read")]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Share = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
DeviceId = Annotated[str, Path(max_length=128)]
Version = Annotated[str | None, Query(max_length=64)]
Seconds = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]
Limit = Annotated[int, Query(ge=0, le=10_000)]


class NewRollout(BaseModel):
    """Whom a release is offered to: at once by ``percent``, or by stages; default ones without either."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Name
    percent: Share | None = None
    groups: Annotated[list[str], Field(max_length=32)] = []
    regions: Annotated[list[str], Field(max_length=32)] = []
    stages: Annotated[list[Name], Field(max_length=32)] | None = None
    soak_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    threshold_percent: Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)] | None = None

    def wanted(self) -> Wanted:
        """Return what the hub is asked for."""
        return Wanted(
            self.percent,
            tuple(self.groups),
            tuple(self.regions),
            None if self.stages is None else tuple(self.stages),
            self.soak_s,
            self.threshold_percent,
        )


class RolloutChange(BaseModel):
    """What becomes of a roll-out."""

    model_config = ConfigDict(strict=True, extra="forbid")

    state: Literal["active", "paused", "aborted"]


class RollbackRequest(BaseModel):
    """How a release is taken back: to which one, and under which new version."""

    model_config = ConfigDict(strict=True, extra="forbid")

    to: Name | None = None
    version: Name | None = None


@router.get("/rollouts")
async def list_rollouts(state: Reader) -> dict[str, Any]:
    """List the roll-outs with their counts."""
    rollouts = await anyio.to_thread.run_sync(state.some_hub.rollouts)
    return {"rollouts": [rollout.to_json() for rollout in rollouts]}


@router.post("/rollouts", status_code=201, openapi_extra=body_schema(NewRollout))
async def create_rollout(request: Request) -> dict[str, Any]:
    """Offer a release."""
    control, actor = _operator(request)
    body = await read_model(request, NewRollout, _MAX_BODY_BYTES)
    rollout = await anyio.to_thread.run_sync(lambda: control.create(body.version, body.wanted(), actor=actor))
    _nudge(request)
    return rollout.to_json()


@router.post("/rollouts/preview", openapi_extra=body_schema(NewRollout))
async def preview_rollout(request: Request, state: Reader) -> dict[str, Any]:
    """Say what a roll-out would do, and change nothing."""
    body = await read_model(request, NewRollout, _MAX_BODY_BYTES)
    control = state.some_hub.rollout_control
    found = await anyio.to_thread.run_sync(lambda: control.preview(body.version, body.wanted()))
    return found.to_json()


@router.get("/rollouts/{rollout_id}")
async def show_rollout(rollout_id: str, state: Reader) -> dict[str, Any]:
    """Show a roll-out and its log."""
    rollout, log = await anyio.to_thread.run_sync(state.some_hub.rollout_control.get, rollout_id)
    return {"rollout": rollout.to_json(), "log": [entry.to_json() for entry in log]}


@router.patch("/rollouts/{rollout_id}", openapi_extra=body_schema(RolloutChange))
async def change_rollout(rollout_id: str, request: Request) -> dict[str, Any]:
    """Pause, resume or abort a roll-out."""
    control, actor = _operator(request)
    change = await read_model(request, RolloutChange, _MAX_BODY_BYTES)
    rollout = await anyio.to_thread.run_sync(lambda: control.set_state(rollout_id, change.state, actor=actor))
    _nudge(request)
    return rollout.to_json()


@router.post("/rollouts/{rollout_id}/promote")
async def promote_rollout(rollout_id: str, request: Request) -> dict[str, Any]:
    """Go on to the next stage now."""
    control, actor = _operator(request)
    rollout = await anyio.to_thread.run_sync(lambda: control.promote(rollout_id, actor=actor))
    _nudge(request)
    return rollout.to_json()


@router.post("/rollouts/{rollout_id}/rollback", status_code=201, openapi_extra=body_schema(RollbackRequest))
async def roll_back(rollout_id: str, request: Request) -> dict[str, Any]:
    """Take the release of a roll-out back; answers with the roll-out that offers the old bytes again."""
    control, actor = _operator(request)
    body = await read_model(request, RollbackRequest, _MAX_BODY_BYTES)
    rollout = await anyio.to_thread.run_sync(
        lambda: control.roll_back(rollout_id, to=body.to, version=body.version, actor=actor)
    )
    _nudge(request)
    return rollout.to_json()


@router.get("/devices/{device_id}/explain")
async def explain_device(device_id: DeviceId, state: Reader, version: Version = None) -> dict[str, Any]:
    """Say why a device is offered what it is offered."""
    control = state.some_hub.rollout_control
    found = await anyio.to_thread.run_sync(control.explain, device_id, version)
    return found.to_json()


@router.get("/history")
async def look_back(
    state: Reader, at: Seconds = None, version: Version = None, limit: Limit = 1000
) -> dict[str, Any]:
    """Show the fleet as it was at a time: devices by version, roll-outs by state."""
    control = state.some_hub.rollout_control
    found = await anyio.to_thread.run_sync(lambda: control.look_back(at, version=version, limit=limit))
    return found.to_json()


def _operator(request: Request) -> tuple[RolloutControl, Actor]:
    """Let in who may change roll-outs; return what changes them, and who that is for the logs."""
    state = state_of(request)
    claims = state.access.admin_route(request, "rollouts:write")
    return state.some_hub.rollout_control, actor_of(request, claims)


def _nudge(request: Request) -> None:
    """Let the service's own engine ask the hub now, as a phone would at its next check."""
    state_of(request).nudge()
