"""The servers that are measured, each in a process of its own: ``python target.py KIND --port N``.

``bare`` is an ASGI application that reads the request and sends a constant answer; ``route`` a route of the
framework that does; ``service`` is the service's own application over a hub, without a model; ``closed`` the
same with ``auth.required``, ``accelerated`` with packages sent by the proxy in front. All run on the
service's own HTTP server with the same settings.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from autoglm.hub import Hub, HubConfig
from autoglm.service.access import Access
from autoglm.service.machine import bind, listen
from autoglm.service.server import make_server
from autoglm.service.settings import parse_settings
from autoglm.service.state import ServiceState

BODY = b'{"need_update":false,"target_version":null,"download_url":null}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def bare(_scope: Any, receive: Any, send: Any) -> None:
    """Answer without looking."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def framework() -> FastAPI:
    """Return an application with one route that answers without looking."""
    app = FastAPI()

    @app.post("/v1/model/update")
    async def update() -> dict[str, Any]:
        return {"need_update": False, "target_version": None, "download_url": None}

    return app


def service_server(
    directory: Path, hub: Hub | None, *, required: bool = False, accelerated: bool = False
) -> uvicorn.Server:
    """Return the service's server over a hub and no model; accelerated, it leaves the bytes to a proxy."""
    more = {"hub": {"accel_redirect": "/objects/"}, "trusted_proxies": ["127.0.0.1"]} if accelerated else {}
    values = {"host": "127.0.0.1", "port": 0, "auth": {"required": required}, **more}
    settings = parse_settings(values, where="the benchmark", directory=directory)
    access = Access(hub, required=required, requests_per_minute=0)
    return make_server(ServiceState(settings, None, access, hub=hub), lambda: None)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("bare", "route", "service", "closed", "accelerated"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    listener = bind("127.0.0.1", options.port)
    listen(listener, 2048)
    with contextlib.suppress(KeyboardInterrupt):  # which ends a server in order, and is raised again after it
        _serve(options, listener)


def _serve(options: argparse.Namespace, listener: socket.socket) -> None:
    if options.kind in ("bare", "route"):
        server = service_server(Path.cwd(), None)
        server.config.app = bare if options.kind == "bare" else framework()
        server.run(sockets=[listener])
        return
    kinds = {"closed": {"required": True}, "accelerated": {"accelerated": True}}
    with Hub.open(HubConfig(options.directory)) as hub:
        service_server(options.directory, hub, **kinds.get(options.kind, {})).run(sockets=[listener])


if __name__ == "__main__":
    main()
