"""Listen: take the address, say when it really listens, and end in order on a signal.

Shared by the service and by a device process that answers requests itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, cast

import uvicorn

from autoglm.service.app import create_app
from autoglm.service.callers import Forwarded, Proxies
from autoglm.service.connections import (
    ConnectionLimits,
    Doorkeeper,
    room_for_connections,
    room_outside,
)
from autoglm.service.machine import check_certificate, listen
from autoglm.service.protocol import bounded_protocol
from autoglm.service.settings import Settings
from autoglm.service.state import ServiceState

GRACE_S = 25
_END_S = 3
_BACKLOG = 2048
_HANDSHAKE_S = 10.0
_TICKS_PER_LOOK = 10
_EVERY_ANSWER = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A uvicorn server that says when its socket really listens, and looks after its connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        doorkeeper: Doorkeeper,
        on_listening: Callable[[], None],
        state: ServiceState,
    ) -> None:
        super().__init__(config)
        self.doorkeeper = doorkeeper
        self._on_listening = on_listening
        self._state = state
        self._drained_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a bound on TLS handshakes, then say so."""
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if config.ssl is not None:  # whoever does not finish one is no connection yet, but holds a file
            tls = {
                "ssl": config.ssl,
                "ssl_handshake_timeout": _HANDSHAKE_S,
                "ssl_shutdown_timeout": _HANDSHAKE_S,
            }
        self.servers = [
            await loop.create_server(self._connection, sock=each, backlog=config.backlog, **tls)
            for each in sockets or []
        ]
        self.started = True
        self._on_listening()

    def _connection(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        """Do what is due every tenth of a second; connections are looked at every second."""
        if counter % _TICKS_PER_LOOK == 0:
            self.doorkeeper.inspect()
        await self._go_on_draining()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first lets the requests under way end, the second ends at once."""
        self._captured_signals.append(sig)
        if self._drained_at is None:
            self.drain()
        else:
            self.should_exit = self.force_exit = True

    def drain(self) -> None:
        """Take no new requests, and end when those under way have ended, or their time is up."""
        self._state.stopping = True
        self._drained_at = time.monotonic() + self._state.settings.limits.drain_seconds

    async def _go_on_draining(self) -> None:
        if self._drained_at is None or self.should_exit:
            return
        if time.monotonic() >= self._drained_at:
            _log.warning("answers took longer than limits.drain_seconds to end: the rest is broken off")
            self.config.timeout_graceful_shutdown = _END_S
            if self._state.engine is not None:  # streams then end with an error that says so
                await asyncio.to_thread(self._state.engine.close)
            self.should_exit = True
        elif not self.server_state.tasks:
            self.should_exit = True


def make_server(state: ServiceState, on_listening: Callable[[], None]) -> Server:
    """Return the HTTP server over running parts, with the settings' TLS and proxies.

    Raises:
        ConfigError: the certificate or key cannot be used.
    """
    settings = state.settings
    check_certificate(settings)
    tls, proxies = settings.tls, Proxies(settings.trusted_proxies)
    doorkeeper = Doorkeeper(connection_limits(settings), proxies)
    app = create_app(state)
    config = uvicorn.Config(
        Forwarded(app, proxies) if proxies else app,
        http=bounded_protocol(doorkeeper),
        log_config=None,
        log_level="error",  # it warns of each request that is none: strangers could fill the disk
        access_log=False,
        server_header=False,
        headers=list(_EVERY_ANSWER.items()),
        lifespan="off",
        ws="none",
        proxy_headers=False,
        ssl_certfile=None if tls.cert is None else settings.path(tls.cert),
        ssl_keyfile=None if tls.key is None else settings.path(tls.key),
        backlog=_BACKLOG,
        timeout_keep_alive=settings.limits.idle_seconds,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config, doorkeeper, on_listening, state)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits of connections, as far as this process may open files."""
    limits = settings.limits
    total = room_for_connections(limits.connections)
    if total < limits.connections:
        _log.warning(
            "this process may open files for %d connections only, of the %d in limits.connections: "
            "raise its limit (ulimit -n)",
            total,
            limits.connections,
        )
    per_address, outside = limits.connections_per_address, room_outside(total)
    return ConnectionLimits(total, per_address, limits.slow_seconds, outside=outside)


def run_server(state: ServiceState, listener: socket.socket, on_listening: Callable[[str], None]) -> None:
    """Serve on a bound socket until a signal comes; running answers are finished within a bound.

    Raises:
        ConfigError: the certificate cannot be used, or somebody else took the port meanwhile.
    """
    host, port = listener.getsockname()[:2]
    scheme = "http" if state.settings.tls.cert is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    server = make_server(state, lambda: on_listening(url))
    listen(listener, server.config.backlog)
    try:
        server.run(sockets=[listener])
    finally:
        state.stopping = True


class Stop(BaseException):
    """Ends a service that is still starting."""


@contextlib.contextmanager
def stoppable() -> Generator[None]:
    """Let SIGTERM and SIGINT end the block in order, also while no server handles them itself.

    What the block opened is closed; the caller goes on behind the block.
    """
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise Stop

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.suppress(Stop):
            yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
