"""A hub on a real socket, whose every byte is chosen by the test: tricks stand between it and the device."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from autoglm.errors import MessageError, NotFoundError
from autoglm.releases import EventBatch, UpdateRequest


@dataclass(frozen=True)
class Request:
    """What the device asked for; ``kind`` is update, events, metadata or packages."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        return self.path.split("/")[3]

    @property
    def offset(self) -> int:
        asked = self.headers.get("range", "")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


@dataclass(frozen=True)
class Answer:
    """What a good hub would say."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def raw(self) -> bytes:
        head = [
            f"HTTP/1.1 {self.status} Whatever",
            *(f"{name}: {text}" for name, text in self.headers.items()),
        ]
        return "\r\n".join([*head, "", ""]).encode() + self.body


Trick = Callable[[socket.socket, Request, Answer], None]


@dataclass
class Wire:
    """Serves a hub of ``conftest.py`` over HTTP, one request a connection.

    Attributes:
        tricks: (kind, trick), each for the next request of its kind; an empty kind stands for any.
        forge: changes the JSON of an answer to a check or to events before it is sent.
        asked: kinds of all requests so far.
        package_bytes: bytes of packages given to the kernel so far.
    """

    hub: Any
    tricks: list[tuple[str, Trick]] = field(default_factory=list[tuple[str, Trick]])
    forge: Callable[[str, dict[str, Any]], Any] = lambda kind, value: value
    asked: list[str] = field(default_factory=list[str])
    package_bytes: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open = True
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._open = False
        with suppress(OSError):
            socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (request := _read(connection)) is None:
                return
            self.asked.append(request.kind)
            answer = self._answer(request)
            if request.kind == "packages":
                self.package_bytes += len(answer.body)
            self._trick(request.kind)(connection, request, answer)
            finish(connection)

    def _trick(self, kind: str) -> Trick:
        for number, (wanted, trick) in enumerate(self.tricks):
            if wanted in ("", kind):
                del self.tricks[number]
                return trick
        return honest

    def _answer(self, request: Request) -> Answer:
        try:
            return getattr(self, f"_{request.kind}")(request)
        except (NotFoundError, KeyError):
            return _made(404, b"{}")
        except MessageError:
            return _made(422, b"{}")

    def _update(self, request: Request) -> Answer:
        answer = self.hub.check(UpdateRequest.from_json(json.loads(request.body)))
        return _made(200, json.dumps(self.forge("update", answer.to_json())).encode())

    def _events(self, request: Request) -> Answer:
        answer = self.hub.record(EventBatch.from_json(json.loads(request.body)))
        return _made(202, json.dumps(self.forge("events", answer.to_json())).encode())

    def _metadata(self, request: Request) -> Answer:
        return _made(200, self.hub.metadata(request.path.rpartition("/")[2]))

    def _packages(self, request: Request) -> Answer:
        content = self.hub.package(request.path.rpartition("/")[2].removesuffix(".wpatch")).read_bytes()
        etag, start = '"one"', request.offset
        if start and request.headers.get("if-range") in (None, etag):
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return _made(206, content[start:], {"Content-Range": place, "ETag": etag})
        return _made(200, content, {"ETag": etag})


def _made(status: int, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Length": str(len(body)), "Connection": "close"} | (headers or {}), body)


def _read(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        if not (piece := connection.recv(1 << 16)):
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(1 << 16)
    return Request(method, path, headers, body)


def finish(connection: socket.socket) -> None:
    """End the connection in order, and wait until the other side has done so."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 16):
        pass


# -- tricks ---------------------------------------------------------------------------------------------


def honest(connection: socket.socket, request: Request, answer: Answer) -> None:
    connection.sendall(answer.raw)


def cut_after(num_bytes: int, *, reset: bool = False) -> Trick:
    """Break the connection off after so many bytes of head and body; with ``reset``, by force."""

    def trick(connection: socket.socket, request: Request, answer: Answer) -> None:
        connection.sendall(answer.raw[:num_bytes])
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    return trick


def says(raw: bytes) -> Trick:
    """Send these bytes, whatever was asked for."""

    def trick(connection: socket.socket, request: Request, answer: Answer) -> None:
        connection.sendall(raw)

    return trick


def changed(
    status: int | None = None, body: bytes | Callable[[bytes], bytes] | None = None, **headers: str | None
) -> Trick:
    """Send the good answer with another status, body or headers; a header None is left out."""

    def trick(connection: socket.socket, request: Request, answer: Answer) -> None:
        content = body(answer.body) if callable(body) else answer.body if body is None else body
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        merged = answer.headers | {"Content-Length": str(len(content))} | given
        kept = {name: text for name, text in merged.items() if text is not None}
        connection.sendall(Answer(status or answer.status, kept, content).raw)

    return trick


def without_end(start: bytes, again: bytes) -> Trick:
    """Send ``again`` for as long as the other side listens."""

    def trick(connection: socket.socket, request: Request, answer: Answer) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(again)

    return trick


def trickle(start: bytes = b"", after_each: Callable[[], None] = lambda: None) -> Trick:
    """Send one byte at a time, for ever: first the good answer behind ``start``, then zeros."""

    def trick(connection: socket.socket, request: Request, answer: Answer) -> None:
        connection.sendall(start)
        left = b"" if start else answer.raw
        while True:
            connection.sendall(left[:1] or b"0")
            left = left[1:]
            after_each()
            time.sleep(0.01)

    return trick


def silence(connection: socket.socket, request: Request, answer: Answer) -> None:
    """Say nothing, and wait for the other side to go."""
    connection.recv(1)
