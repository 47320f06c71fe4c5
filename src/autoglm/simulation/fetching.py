"""Real downloads for a share of the fleet: ranges, connections that are cut, and the hash at the end."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoglm.errors import NetworkError, ProtocolError
from autoglm.simulation.wire import Place

_HEAD_BYTES = 64 << 10
_READ_BYTES = 1 << 16
_RANGE = re.compile(rb"\r\ncontent-range: *bytes (\d+)-(\d+)/(\d+)\r\n", re.IGNORECASE)


class Fetcher:
    """Downloads packages piece by piece; of each device only the hash so far is kept.

    Args:
        ca_file: PEM certificates to believe in place of the machine's own.

    Attributes:
        fetched_bytes: received in all.
        broken: downloads that ended in other bytes than were promised, or in a refusal.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        self._ca_file = ca_file
        self._hashes: dict[str, Any] = {}
        self._places: dict[str, Place] = {}
        self.fetched_bytes = 0
        self.broken = 0

    def fetch(self, name: str, url: str, sha256: str, span: tuple[int, int, int], total: int) -> None:
        """Fetch a piece of a package for a device and hang up.

        Args:
            name: of the device.
            url: of the package.
            sha256: what the whole must have.
            span: the first byte wanted, the first that no longer comes through, and the first that is not
                kept.
            total: size of the package.
        """
        start, stop, keep = span
        digest = self._hashes.pop(name).copy() if start else hashlib.sha256()
        try:
            content = self._receive(url, sha256, start, stop, total)
        except (OSError, NetworkError, ProtocolError):
            self.broken += 1
            content = b""
        self.fetched_bytes += len(content)
        digest.update(content[: keep - start])
        if keep < total:
            self._hashes[name] = digest
        elif digest.hexdigest() != sha256:
            self.broken += 1

    def _receive(self, url: str, sha256: str, start: int, stop: int, total: int) -> bytes:
        parts = urlsplit(url)
        root = f"{parts.scheme}://{parts.netloc}"
        if (place := self._places.get(root)) is None:
            place = self._places[root] = Place(root, self._ca_file)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = f'range: bytes={start}-\r\nif-range: "{sha256}"\r\nconnection: close\r\n' if start else ""
        with place.connect() as connection:
            connection.sendall(place.request("GET", target, headers=headers))
            return _body(connection, start, stop, total)


def _body(connection: socket.socket, start: int, stop: int, total: int) -> bytes:
    """Read as much of an answer as the device's network lets through."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > _HEAD_BYTES or not (piece := connection.recv(_READ_BYTES)):
            raise ProtocolError("no answer to a download")
        received += piece
    head = bytes(received[: end + 2])
    _check(head, start, total)
    while len(received) < end + 4 + stop - start:
        if not (piece := connection.recv(_READ_BYTES)):
            raise ProtocolError("a download broke off by itself")
        received += piece
    return bytes(received[end + 4 : end + 4 + stop - start])


def _check(head: bytes, start: int, total: int) -> None:
    status, found = head[9:12], _RANGE.search(head)
    if start == 0 and status == b"200":
        return
    wanted = (start, total - 1, total)
    if status != b"206" or found is None or tuple(map(int, found.groups())) != wanted:
        raise ProtocolError(f"a download from {start} was answered {status.decode('latin-1')}")
