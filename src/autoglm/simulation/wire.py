"""HTTP for a fleet: very many requests over few connections, each answered in order.

Requests are sent ahead of their answers (pipelining, RFC 9112 section 9.3.2), so that a hub is kept busy by
one connection and still does one thing after another: that is what makes a run repeatable. A connection that
breaks is made anew, and what was not answered is sent again, as devices do.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from autoglm.errors import ConfigError, NetworkError, ProtocolError

WINDOW = 64
TIMEOUT_S = 120.0
_MAX_HEAD_BYTES = 64 << 10
_MAX_BODY_BYTES = 64 << 20
_MAX_BREAKS = 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,18})\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *(\d{1,9})\r\n", re.IGNORECASE)
_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Answer:
    """A response: its status, its body, and when to come back if it says so."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Place:
    """Where the hub is.

    Args:
        url: its address.
        ca_file: PEM certificates to believe in place of the machine's own.

    Raises:
        ConfigError: the address is none, or the file no certificate.
    """

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no address; write for example http://127.0.0.1:8000")
        self.url, self.path = url.rstrip("/"), parts.path.rstrip("/")
        self.host, self.authority = parts.hostname, parts.netloc
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            self._tls = None if parts.scheme == "http" else ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ConfigError(f"{ca_file} holds no certificate: {error}") from error

    def connect(self) -> socket.socket:
        """Return a new connection.

        Raises:
            NetworkError: not reached.
        """
        try:
            plain = socket.create_connection((self.host, self.port), TIMEOUT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=self.host)
        except OSError as error:
            raise NetworkError(f"{self.url} was not reached: {error}") from error

    def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
        """Return the bytes of a request; ``headers`` are further lines, each with its CRLF."""
        head = (
            f"{method} {self.path}{path} HTTP/1.1\r\nhost: {self.authority}\r\n{headers}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connection:
    """One connection, on which requests are sent ahead of their answers."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer.clear()

    def exchange(self, requests: Sequence[bytes]) -> Iterator[Answer]:
        """Send requests and yield their answers in order.

        Raises:
            NetworkError: not reached, or broken off again and again.
            ProtocolError: what answers does not speak HTTP.
        """
        answered, sent, breaks = 0, 0, 0
        while answered < len(requests):
            try:
                if sent - answered <= WINDOW // 2:
                    sent = self._send(requests, sent, answered)
                answer = self._read()
            except OSError as error:
                breaks += 1
                if breaks > _MAX_BREAKS:
                    raise NetworkError(f"{self._place.url} breaks off: {error}") from error
                self.close()
                sent = answered
                continue
            answered += 1
            yield answer

    def _send(self, requests: Sequence[bytes], sent: int, answered: int) -> int:
        if self._socket is None:
            self._socket = self._place.connect()
        end = min(len(requests), answered + WINDOW)
        self._socket.sendall(b"".join(requests[sent:end]))
        return end

    def _read(self) -> Answer:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ProtocolError(f"{self._place.url} sends a head without end")
            self._receive()
        head = bytes(self._buffer[: end + 2])
        length, status = _LENGTH.search(head), head[9:12]
        if not head.startswith(b"HTTP/1.1 ") or not status.isdigit() or length is None:
            raise ProtocolError(f"{self._place.url} does not answer as a hub does")
        total = end + 4 + int(length[1])
        if total > _MAX_BODY_BYTES:
            raise ProtocolError(f"{self._place.url} sends an answer of {total} bytes")
        while len(self._buffer) < total:
            self._receive()
        body = bytes(self._buffer[end + 4 : total])
        del self._buffer[:total]
        retry = _RETRY.search(head)
        return Answer(int(status), body, float(retry[1]) if retry else None)

    def _receive(self) -> None:
        if self._socket is None:
            raise ConnectionError("it is closed")
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the other side hung up")
        self._buffer += data


class Wire:
    """A few connections, taken in turn.

    Args:
        place: where the hub is.
        connections: how many.
    """

    def __init__(self, place: Place, connections: int = 1) -> None:
        self.place = place
        self._connections = [Connection(place) for _ in range(connections)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()

    def exchange(self, requests: Sequence[bytes]) -> Iterator[Answer]:
        """Send requests and yield their answers in order; raises as :meth:`Connection.exchange`."""
        count = len(self._connections)
        streams = [
            connection.exchange(requests[place::count]) for place, connection in enumerate(self._connections)
        ]
        if count == 1:
            yield from streams[0]
            return
        for place in range(len(requests)):
            yield next(streams[place % count])
