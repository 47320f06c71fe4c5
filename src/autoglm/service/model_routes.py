"""The routes of devices: what runs here, is there an update, what happened, and the package bytes.

What it guarantees: the update check answers 200 to every well-formed question, also of a device that the
hub has never heard of; only malformed bodies are refused. Groups and regions come from the device's token,
never from what it says of itself.
"""

from __future__ import annotations

import gzip
import os
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
from starlette.types import Receive, Scope, Send

from autoglm.releases import EventBatch
from autoglm.service.bodies import read_body
from autoglm.service.delivery import remote_package
from autoglm.service.problems import APIError, ErrorAnswer, read_json
from autoglm.service.state import OpenState, state_of
from autoglm.service.update_check import as_response, check_update
from autoglm.service.wire_schemas import exchange
from autoglm.trust.roles import TIMESTAMP_NAME

MAX_EVENTS_BYTES = 1 << 20
MIN_PACKED_BYTES = 512
_PACKAGE_TYPE = "application/octet-stream"
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 413, 429)
}

engine_router = APIRouter(tags=["devices"], responses=_FAILURES)
"""What a process without a hub has too."""
hub_router = APIRouter(tags=["devices"], responses=_FAILURES)
"""What needs the hub."""


@engine_router.get("/v1/model/info")
async def info(state: OpenState) -> dict[str, Any]:
    """Say which release answers requests here."""
    engine = state.some_engine
    manifest = engine.active.manifest
    return {
        "model": manifest.model,
        "variant": manifest.variant,
        "name": manifest.name,
        "version": manifest.version,
        "counter": manifest.counter,
        "channel": manifest.channel,
        "manifest_sha256": engine.active.manifest_sha256,
        "system_fingerprint": engine.active.fingerprint,
        "loaded_versions": list(engine.loaded_versions),
        "devices": [str(device) for device in engine.devices],
        "served_names": list(state.names),
    }


@hub_router.post("/v1/model/update", openapi_extra=exchange("UpdateRequest", "UpdateAnswer", 200))
async def check(request: Request) -> Response:
    """Answer a device that asks whether there is something for it; most never come as far as here."""
    return as_response(await check_update(request, state_of(request)))


@hub_router.post(
    "/v1/model/events", status_code=202, openapi_extra=exchange("EventBatch", "EventAnswer", 202)
)
async def record(request: Request) -> JSONResponse:
    """Take the events of a device; each is counted once, however often it is sent."""
    state = state_of(request)
    claims = state.access.open_route(request)
    body = read_json(await read_body(request, MAX_EVENTS_BYTES), "event batch")
    batch = EventBatch.from_json(body)
    answer = await anyio.to_thread.run_sync(state.some_hub.record, batch, claims)
    return JSONResponse(answer.to_json(), status_code=202)


class PackageResponse(FileResponse):
    """A package, with its refusals in the shape of all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes, or say why there is no such range."""
        self.set_stat_headers(await anyio.to_thread.run_sync(os.stat, self.path))
        refusal = self._refusal(Headers(scope=scope))
        await (super().__call__ if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        """Return the answer to a range that cannot be sent; None where the bytes, or some, are."""
        asked, if_range = headers.get("range"), headers.get("if-range")
        if asked is None or (if_range is not None and not self._should_use_range(if_range)):
            return None
        size = int(self.headers["content-length"])
        try:
            self._parse_range_header(asked, size)
        except MalformedRangeHeader as error:
            return APIError(400, error.content, param="range", code="invalid_range").response
        except RangeNotSatisfiable:
            message = f"the package has {size} bytes, the range lies outside of them"
            return APIError(
                416,
                message,
                param="range",
                code="range_not_satisfiable",
                headers={"content-range": f"bytes */{size}"},
            ).response
        return None


MetadataName = Annotated[str, Path(max_length=64)]


@hub_router.get("/v1/model/metadata/{name}", response_class=Response)
async def metadata(name: MetadataName, request: Request, state: OpenState) -> Response:
    """Send a file of signed metadata. All but ``timestamp.json`` never change under their names."""
    content = await anyio.to_thread.run_sync(state.some_hub.trust.repository.read, name)
    lasting = "no-cache" if name == TIMESTAMP_NAME else "public, max-age=31536000, immutable"
    headers = {"cache-control": lasting, "vary": "accept-encoding"}
    if len(content) > MIN_PACKED_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        content = await anyio.to_thread.run_sync(_packed, content)
    return Response(content, media_type="application/json", headers=headers)


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


@hub_router.get("/v1/model/packages/{sha256}.wpatch", response_class=FileResponse)
@hub_router.head("/v1/model/packages/{sha256}.wpatch", include_in_schema=False)
async def package(sha256: Sha256, request: Request) -> Response:
    """Send a package, or the range of it that was asked for. The bytes under a name never change.


    Where authentication is required, the query holds the link that the update check gave.
    """
    state = state_of(request)
    state.access.package_route(request, sha256)
    if state.some_hub.is_remote:
        return await remote_package(state.some_hub, sha256, request, state.settings.hub.delivery)
    path = await anyio.to_thread.run_sync(state.some_hub.package_path, sha256)
    lasting = "private" if state.access.required else "public"
    headers = {"etag": f'"{sha256}"', "cache-control": f"{lasting}, max-age=31536000, immutable"}
    prefix = state.settings.hub.accel_redirect
    if prefix is not None and getattr(request.state, "proxied", False):
        return Response(headers={"x-accel-redirect": prefix + path.name, **headers}, media_type=_PACKAGE_TYPE)
    return PackageResponse(path, media_type=_PACKAGE_TYPE, headers=headers)
