"""Links that end, and answers whose ranges do not add up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from autoglm.device import HttpTransport
from autoglm.device.transport import Body, LostPlaceError, Transport
from autoglm.errors import HubError, NetworkError, NotFoundError, PermissionDeniedError
from autoglm.releases import EventAnswer, EventBatch, UpdateAnswer, UpdateRequest

Lab = Any


class Cut:
    """A body that breaks off after some bytes."""

    def __init__(self, body: Body, num_bytes: int) -> None:
        self._body, self._left = body, num_bytes
        self.status, self.offset, self.total, self.etag = body.status, body.offset, body.total, body.etag

    def chunks(self) -> Iterator[bytes]:
        for piece in self._body.chunks():
            yield piece[: self._left]
            self._left -= len(piece)
            if self._left <= 0:
                raise NetworkError("cut")

    def close(self) -> None:
        self._body.close()


class Expiring:
    """A hub whose links are good for one request each, of which every one breaks off after some bytes."""

    wire_bytes = 0

    def __init__(self, inner: Transport, refusal: HubError, num_bytes: int) -> None:
        self._inner, self._refusal, self._num_bytes = inner, refusal, num_bytes
        self._dead: set[str] = set()
        self.offsets: list[int] = []
        self.num_checks = 0

    def check(self, request: UpdateRequest, /) -> UpdateAnswer:
        """Give a new link with each answer."""
        from dataclasses import replace

        self.num_checks += 1
        answer = self._inner.check(request)
        if answer.download_url is None:
            return answer
        link = f"http://127.0.0.1/{self.num_checks}/{answer.sha256}.wpatch"
        return replace(answer, download_url=link)

    def fetch(self, url: str, offset: int, etag: str | None, /) -> Body:
        """Refuse a link that was used."""
        if url in self._dead or self._num_bytes == 0:
            raise self._refusal
        self._dead.add(url)
        self.offsets.append(offset)
        return Cut(self._inner.fetch(url, offset, etag), self._num_bytes)

    def metadata(self, name: str, max_bytes: int, /) -> bytes:
        return self._inner.metadata(name, max_bytes)

    def report(self, batch: EventBatch, /) -> EventAnswer:
        return self._inner.report(batch)


@pytest.mark.parametrize(
    "refusal", [PermissionDeniedError("403"), PermissionDeniedError("401"), NotFoundError("410")]
)
def test_a_link_that_ends_is_asked_for_anew_as_often_as_it_takes(lab: Lab, refusal: HubError) -> None:
    """Each fresh link goes on where the one before broke off, and the release is installed."""
    lab.hub.target = "v1.2"
    lab.change(chunk_bytes=4096)
    transport = Expiring(lab.hub.transport, refusal, num_bytes=20_000)
    result = lab.open(transport=transport).update()
    assert (result.kind, result.to_version) == ("updated", "v1.2")
    assert transport.offsets == sorted(set(transport.offsets))
    assert len(transport.offsets) == transport.num_checks > 2


def test_links_that_are_never_good_end_the_attempt_for_now(lab: Lab) -> None:
    """Without a byte won, one fresh link is tried; then it waits for its next turn."""
    lab.hub.target = "v1.2"
    transport = Expiring(lab.hub.transport, PermissionDeniedError("403"), num_bytes=0)
    result = lab.open(transport=transport).update()
    assert (result.kind, result.code) == ("failed", "E_PERMISSION")
    assert transport.num_checks == 2


@pytest.fixture
def answer_with() -> Iterator[Callable[[dict[str, str], bytes], str]]:
    """Start a server that answers every request 206 with these headers; return its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(headers: dict[str, str], body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(206)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 10-9/20"},
        {"Content-Range": "bytes 10-20/20"},
        {"Content-Range": "bytes 10-19/5"},
        {"Content-Range": "bytes 10-19/20", "Content-Length": "11"},
        {"Content-Range": "bytes 10-19/20", "Content-Length": "9"},
        {"Content-Range": "bytes 11-19/20", "Content-Length": "9"},
        {"Content-Range": "bytes 0-9/20", "Content-Length": "10"},
        {"Content-Range": "bytes */20"},
        {"Content-Range": "items 10-19/20"},
        {"Content-Range": "bytes 10-19"},
        {"Content-Range": "bytes -10-19/20"},
        {},
    ],
)
def test_a_range_that_does_not_add_up_is_not_believed(
    headers: dict[str, str], answer_with: Callable[[dict[str, str], bytes], str]
) -> None:
    """A 206 must say which bytes it sends: those asked for, as many as it sends, inside of the whole."""
    transport = HttpTransport(answer_with(headers, b"0123456789"))
    with pytest.raises(LostPlaceError):
        transport.fetch("/v1/model/packages/x.wpatch", 10, '"etag"')
    transport.close()


def test_a_range_that_adds_up_is_taken(answer_with: Callable[[dict[str, str], bytes], str]) -> None:
    """Also one whose whole is not known, and one that stops short of the end."""
    for place, total in (("bytes 10-19/20", 20), ("bytes 10-19/*", None), ("bytes 10-19/30", 30)):
        headers = {"Content-Range": place, "Content-Length": "10"}
        transport = HttpTransport(answer_with(headers, b"0123456789"))
        body = transport.fetch("/v1/model/packages/x.wpatch", 10, '"etag"')
        assert (body.offset, body.total, b"".join(body.chunks())) == (10, total, b"0123456789")
        body.close()
        transport.close()
