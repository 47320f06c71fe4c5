"""Signed metadata over real sockets, from a server that means harm."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from autoglm.device import HttpTransport
from autoglm.errors import MetadataError, NetworkError, NotFoundError, PermissionDeniedError

LIMIT = 10_000
CONTENT = b'{"signed": {}}' * 100


class Server:
    """Answers every GET by ``answer``; remembers what was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], None] = lambda handler: reply(handler, CONTENT)
        self.asked: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, dict(self.headers)))
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def reply(handler: Any, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 4096)
    except OSError:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def transport(server: Server, clock: Any) -> Iterator[HttpTransport]:
    transport = HttpTransport(server.url, token="t", clock=clock, random_source=random.Random(1))
    yield transport
    transport.close()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_arrives_packed_or_not(server: Server, transport: HttpTransport, packed: bool) -> None:
    """The device asks for gzip; either way the same bytes come out, and its token goes along."""
    if packed:
        server.answer = lambda handler: reply(handler, gzip.compress(CONTENT), Content_Encoding="gzip")
    assert transport.metadata("timestamp.json", LIMIT) == CONTENT
    path, headers = server.asked[0]
    assert (path, headers["Accept-Encoding"]) == ("/v1/model/metadata/timestamp.json", "gzip")
    assert headers["Authorization"] == "Bearer t"
    assert transport.wire_bytes > 0


def test_endless_metadata_is_broken_off(server: Server, transport: HttpTransport) -> None:
    """After the limit, not after the disk is full."""
    server.answer = endless
    with pytest.raises(MetadataError, match="more than 10000 bytes"):
        transport.metadata("timestamp.json", LIMIT)
    assert transport.wire_bytes < 1 << 20


def test_a_packed_bomb_is_broken_off(server: Server, transport: HttpTransport) -> None:
    """A gigabyte in a megabyte never unfolds."""
    bomb = gzip.compress(bytes(1 << 28), 9)
    server.answer = lambda handler: reply(handler, bomb, Content_Encoding="gzip")
    with pytest.raises(MetadataError, match="more than 10000 bytes"):
        transport.metadata("timestamp.json", LIMIT)


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(CONTENT)[:-20] + bytes(20)])
def test_damaged_packing_is_named(server: Server, transport: HttpTransport, body: bytes) -> None:
    """What does not unpack is no metadata."""
    server.answer = lambda handler: reply(handler, body, Content_Encoding="gzip")
    with pytest.raises(MetadataError, match="damaged"):
        transport.metadata("timestamp.json", LIMIT)


def test_a_trickle_is_broken_off(server: Server, transport: HttpTransport, clock: Any) -> None:
    """A byte now and then, for ever: the device's own clock ends it."""

    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                clock.seconds += 7
                handler.wfile.write(b"x")
        except OSError:
            return

    server.answer = trickle
    with pytest.raises(NetworkError, match="took more than 60 s"):
        transport.metadata("timestamp.json", LIMIT)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (403, PermissionDeniedError), (503, NetworkError)]
)
def test_refusals_are_named(
    server: Server, transport: HttpTransport, status: int, error: type[Exception]
) -> None:
    """Missing, forbidden and busy are three different things."""
    server.answer = lambda handler: reply(handler, b"", status)
    with pytest.raises(error):
        transport.metadata("2.root.json", LIMIT)


def test_redirects_end(server: Server, transport: HttpTransport) -> None:
    """A hub may keep its metadata elsewhere, but not nowhere."""
    server.answer = lambda handler: reply(handler, b"", 302, Location=server.url + "/again")
    with pytest.raises(NetworkError, match="without an end"):
        transport.metadata("timestamp.json", LIMIT)
