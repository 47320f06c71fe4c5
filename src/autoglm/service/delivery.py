"""Packages that lie in cloud storage: sent there by redirect, or passed on by the hub.

A redirect leads to an address that is good for a quarter of an hour; the device follows it without its
token, and believes no byte before the package's signed SHA-256 has agreed.
"""

from __future__ import annotations

from typing import Literal

import anyio.to_thread
from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from autoglm.hub import Hub
from autoglm.service.problems import APIError

Delivery = Literal["redirect", "proxy"]
_TYPE = "application/octet-stream"


async def remote_package(hub: Hub, sha256: str, request: Request, delivery: Delivery) -> Response:
    """Answer a request for a package that lies elsewhere.

    Raises:
        NotFoundError: there is no such package.
        StorageError: the storage is not reached.
        APIError: the range that was asked for cannot be sent.
    """
    if delivery == "redirect":
        link = await anyio.to_thread.run_sync(hub.package_link, sha256)
        if link is not None:
            # 307 keeps the method and its Range; the address grows old, so nobody may keep it.
            return RedirectResponse(link, status_code=307, headers={"cache-control": "no-store"})
    size = await anyio.to_thread.run_sync(hub.package_size, sha256)
    return _passed_on(hub, sha256, size, request)


def _passed_on(hub: Hub, sha256: str, size: int, request: Request) -> Response:
    etag = f'"{sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "public, max-age=31536000, immutable",
    }
    asked, if_range = request.headers.get("range"), request.headers.get("if-range")
    part = None if asked is None or if_range not in (None, etag) else _range(asked, size)
    start, end = part or (0, size)
    if part is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=_TYPE)
    body = hub.package_stream(sha256, start, end)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=_TYPE)


class _Ranges(FileResponse):
    """Starlette's reading of a Range header, apart from its files."""

    @classmethod
    def read(cls, asked: str, size: int) -> list[tuple[int, int]]:
        """Return the ranges, each up to, not including, its end."""
        return cls._parse_range_header(asked, size)


def _range(asked: str, size: int) -> tuple[int, int] | None:
    """Return the one range that was asked for; several at once are answered with everything."""
    try:
        found = _Ranges.read(asked, size)
    except MalformedRangeHeader as error:
        raise APIError(400, error.content, param="range", code="invalid_range") from error
    except RangeNotSatisfiable as error:
        message = f"the package has {size} bytes, the range lies outside of them"
        headers = {"content-range": f"bytes */{size}"}
        raise APIError(416, message, param="range", code="range_not_satisfiable", headers=headers) from error
    return found[0] if len(found) == 1 else None
