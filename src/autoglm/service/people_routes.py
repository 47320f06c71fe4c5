"""Administration of people and devices: registration, enrolment codes, tokens, the audit log.

What it guarantees: a secret is in exactly one answer, which is never cached; a device gets the groups and the
region of its code or its administrator, whatever it says itself.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from autoglm.errors import PermissionDeniedError
from autoglm.hub import Claims
from autoglm.hub.audit import AuditQuery
from autoglm.hub.enrolment import MAX_SECONDS, MAX_USES, MIN_SECONDS
from autoglm.hub.fleet import FleetQuery
from autoglm.hub.permissions import Role
from autoglm.releases import RegistrationRequest
from autoglm.service.access import actor_of
from autoglm.service.bodies import body_schema, read_body, read_model
from autoglm.service.guards import ADMINISTRATORS, needs
from autoglm.service.problems import APIError, ErrorAnswer, problem_of, read_json
from autoglm.service.state import ServiceState, state_of

_MAX_BODY_BYTES = 64 << 10
_MAX_TOKEN_SECONDS = 10 * 366 * 86400.0
_SECRET = {"cache-control": "no-store"}
_ANCHOR = re.compile(r"(\d{1,15}):([0-9a-f]{64})")
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413)
}

router = APIRouter(
    prefix="/v1/admin", tags=["administration"], responses=_FAILURES, dependencies=[ADMINISTRATORS]
)
register_router = APIRouter(
    tags=["devices"],
    responses={status: {"model": ErrorAnswer} for status in (400, 401, 403, 409, 413, 429)},
)

Name = Annotated[str, Field(min_length=1, max_length=64)]
Names = Annotated[list[Name], Field(max_length=32)]
DeviceId = Annotated[str, Path(min_length=1, max_length=128)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Word = Annotated[str | None, Query(min_length=1, max_length=200)]
Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class NewToken(_Body):
    """What a token is for, what it may do, and until when."""

    name: Name
    role: Role
    scopes: Names = []
    device_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    groups: Names = []
    region: Name | None = None
    expires_in_s: Annotated[float, Field(ge=1, le=_MAX_TOKEN_SECONDS, allow_inf_nan=False)] | None = None


class NewInvite(_Body):
    """What an enrolment code gives, how often, and for how long."""

    groups: Names = []
    region: Name | None = None
    uses: Annotated[int, Field(ge=1, le=MAX_USES)] = 1
    expires_in_s: Annotated[float, Field(ge=MIN_SECONDS, le=MAX_SECONDS, allow_inf_nan=False)] = 86400.0


class DeviceChange(_Body):
    """A device's new groups, or its new region (null for none); what is not named stays."""

    groups: Names | None = None
    region: Name | None = None


BODIES = (NewToken, NewInvite, DeviceChange)

_STRING = {"type": "string"}
_REGISTRATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["device_id"],
                    "properties": {
                        "device_id": _STRING,
                        "code": _STRING,
                        "request_id": _STRING,
                        "groups": {"type": "array", "items": _STRING},
                        "region": _STRING,
                        "new_token": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


# Devices


@register_router.post("/v1/model/register", status_code=201, openapi_extra=_REGISTRATION)
async def register(request: Request) -> JSONResponse:
    """Register a device and give it its token: with an enrolment code, or by an administrator."""
    state = state_of(request)
    state.access.register_route(request)
    body = read_json(await read_body(request, _MAX_BODY_BYTES), "registration")
    wanted = RegistrationRequest.from_json(body)
    enrolment = state.some_hub.enrolment
    if wanted.code is None:
        actor = actor_of(request, state.access.admin_route(request, "devices:write"))
        answer = await anyio.to_thread.run_sync(enrolment.register, wanted, actor)
    else:
        try:
            answer = await anyio.to_thread.run_sync(enrolment.enrol, wanted, actor_of(request, None).address)
        except PermissionDeniedError as error:
            state.access.failed(request)
            state.access.note_refusal(request, None, problem_of(error), "an enrolment code")
            raise
    return JSONResponse(answer.to_json(), status_code=201, headers=_SECRET)


@router.get("/devices")
async def list_devices(
    state: Annotated[ServiceState, needs("devices:read")],
    version: Word = None,
    group: Word = None,
    region: Word = None,
    status: Annotated[str | None, Query(alias="state", min_length=1, max_length=64)] = None,
    after: Word = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """List the devices that were seen or registered, newest sight first, a page at a time."""
    query = FleetQuery(version, group, region, status, after, limit)
    page = await anyio.to_thread.run_sync(state.some_hub.fleet.list, query)
    return page.to_json()


@router.get("/devices/{device_id}")
async def show_device(
    device_id: DeviceId, state: Annotated[ServiceState, needs("devices:read")]
) -> dict[str, Any]:
    """Show a device and its newest events."""
    device, events = await anyio.to_thread.run_sync(state.some_hub.fleet.show, device_id)
    return device.to_json() | {"events": events}


@router.patch("/devices/{device_id}", openapi_extra=body_schema(DeviceChange))
async def move_device(device_id: DeviceId, request: Request) -> dict[str, Any]:
    """Give a registered device other groups or another region; its token goes on working."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "devices:write"))
    change = await read_model(request, DeviceChange, _MAX_BODY_BYTES)
    no_region = "region" in change.model_fields_set and change.region is None
    moved = await anyio.to_thread.run_sync(
        lambda: state.some_hub.enrolment.move(
            device_id, groups=change.groups, region=change.region, no_region=no_region, actor=actor
        )
    )
    return {"device_id": moved.device_id, "groups": list(moved.groups), "region": moved.region}


@router.delete("/devices/{device_id}")
async def forget_device(device_id: DeviceId, request: Request) -> dict[str, Any]:
    """Drop a device's registration and sighting, and revoke its tokens."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "devices:write"))
    hub = state.some_hub
    revoked = await anyio.to_thread.run_sync(hub.forget_device, device_id, actor)
    return {"device_id": device_id, "tokens_revoked": revoked}


# Enrolment codes


@router.get("/invites")
async def list_invites(
    state: Annotated[ServiceState, needs("devices:read")], live: bool = False
) -> dict[str, Any]:
    """List the enrolment codes, without the codes, newest first."""
    invites = await anyio.to_thread.run_sync(lambda: state.some_hub.enrolment.invites(live=live))
    return {"invites": [invite.to_json() for invite in invites]}


@router.post("/invites", status_code=201, openapi_extra=body_schema(NewInvite))
async def create_invite(request: Request) -> JSONResponse:
    """Make an enrolment code; it is shown this once."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "devices:write"))
    wanted = await read_model(request, NewInvite, _MAX_BODY_BYTES)
    code, invite = await anyio.to_thread.run_sync(
        lambda: state.some_hub.enrolment.invite(
            groups=wanted.groups,
            region=wanted.region,
            uses=wanted.uses,
            seconds=wanted.expires_in_s,
            actor=actor,
        )
    )
    return JSONResponse({"code": code} | invite.to_json(), status_code=201, headers=_SECRET)


@router.delete("/invites/{invite_id}")
async def revoke_invite(invite_id: Annotated[str, Path(max_length=64)], request: Request) -> dict[str, Any]:
    """Make an enrolment code useless."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "devices:write"))
    enrolment = state.some_hub.enrolment
    return (await anyio.to_thread.run_sync(enrolment.revoke_invite, invite_id, actor)).to_json()


# Tokens


@router.get("/tokens")
async def list_tokens(
    state: Annotated[ServiceState, needs("tokens:read")],
    role: Annotated[Role | None, Query()] = None,
    device_id: Annotated[str | None, Query(max_length=128)] = None,
    live: bool = False,
    after: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
    limit: Limit = 100,
) -> dict[str, Any]:
    """List the tokens, without the tokens, oldest first, a page at a time."""
    tokens = await anyio.to_thread.run_sync(
        lambda: state.some_hub.tokens.list(
            role=role, device_id=device_id, live=live, after=after, limit=limit
        )
    )
    following = int(tokens[-1].id[1:]) if len(tokens) == limit else None
    return {"tokens": [token.to_json() for token in tokens], "next": following}


@router.post("/tokens", status_code=201, openapi_extra=body_schema(NewToken))
async def create_token(request: Request) -> JSONResponse:
    """Make a token that may do no more than the caller's; it is shown this once."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "tokens:write"))
    wanted = await read_model(request, NewToken, _MAX_BODY_BYTES)
    hub = state.some_hub
    claims = Claims(
        role=wanted.role,
        name=wanted.name,
        device_id=wanted.device_id,
        groups=tuple(sorted(set(wanted.groups))),
        region=wanted.region,
        scopes=tuple(sorted(set(wanted.scopes))),
        expires_at=None if wanted.expires_in_s is None else hub.now() + wanted.expires_in_s,
    )
    token, record = await anyio.to_thread.run_sync(hub.tokens.create, claims, actor)
    return JSONResponse({"token": token} | record.to_json(), status_code=201, headers=_SECRET)


@router.delete("/tokens/{name}")
async def revoke_token(name: Annotated[str, Path(max_length=64)], request: Request) -> dict[str, Any]:
    """Revoke all tokens of a name, or the one of an id such as ``t3``."""
    state = state_of(request)
    actor = actor_of(request, state.access.admin_route(request, "tokens:write"))
    revoked = await anyio.to_thread.run_sync(state.some_hub.tokens.revoke, name, actor)
    return {"name": name, "revoked": revoked}


# The audit log


@router.get("/audit")
async def list_audit(
    state: Annotated[ServiceState, needs("audit:read")],
    since: Moment = None,
    until: Moment = None,
    who: Word = None,
    what: Word = None,
    subject: Word = None,
    before: Annotated[int | None, Query(ge=1, le=1 << 53)] = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """List what was done, newest first, a page at a time."""
    query = AuditQuery(since, until, who, what, subject, before, limit)
    entries = await anyio.to_thread.run_sync(state.some_hub.audit.list, query)
    following = entries[-1].number if len(entries) == limit else None
    return {"entries": [entry.to_json() for entry in entries], "next": following}


@router.get("/audit/verify")
async def verify_audit(
    state: Annotated[ServiceState, needs("audit:read")],
    anchor: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """Follow the log's chain to its end; an anchor ``NUMBER:HASH``, noted before, must still be in it."""
    match = _ANCHOR.fullmatch(anchor or "")
    if anchor is not None and match is None:
        raise APIError(
            400, "anchor: write NUMBER:HASH, as verify gave it", param="anchor", code="invalid_value"
        )
    known = (int(match[1]), match[2]) if match else None
    verdict = await anyio.to_thread.run_sync(state.some_hub.audit.verify, known)
    return verdict.to_json()
