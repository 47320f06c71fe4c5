"""Listen: take the address, say when it really listens, and end in order on a signal.

Shared by the service and by a device process that answers requests itself.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from autoglm.service.app import create_app
from autoglm.service.machine import check_certificate, listen
from autoglm.service.protocol import BoundedProtocol
from autoglm.service.state import ServiceState

GRACE_S = 25
_KEEP_ALIVE_S = 75


class Server(uvicorn.Server):
    """A uvicorn server that says when its socket really listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_listening()


def make_server(state: ServiceState, on_listening: Callable[[], None]) -> Server:
    """Return the HTTP server over running parts, with the settings' TLS and proxies.

    Raises:
        ConfigError: the certificate or key cannot be used.
    """
    settings = state.settings
    check_certificate(settings)
    tls = settings.tls
    config = uvicorn.Config(
        create_app(state),
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        ssl_certfile=None if tls.cert is None else settings.path(tls.cert),
        ssl_keyfile=None if tls.key is None else settings.path(tls.key),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config, on_listening)


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
