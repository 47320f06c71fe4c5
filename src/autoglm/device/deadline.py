"""A time by which the other side must have said something of use, whatever it trickles.

A socket's own timeout begins anew with every byte. A server that sends a byte now and then, in a head, a
header without an end or the length of a chunk, holds such a reader for days. Here the transport says when it
begins to wait, and every read below it, of however few bytes, counts against the same deadline.

    >>> deadline = Deadline(60.0)                        # doctest: +SKIP
    >>> keep_to(deadline, pool, read_seconds=30.0)       # doctest: +SKIP
    >>> deadline.begin(); pool.request("GET", url)       # doctest: +SKIP
"""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urllib3 import PoolManager


class Deadline:
    """When the present wait ends; shared by all connections of one transport, which waits on one at a time.

    Args:
        seconds: how long each wait may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, float("inf")

    def begin(self) -> None:
        """Begin to wait."""
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: none.
        """
        if (seconds := self._end - time.monotonic()) <= 0:
            raise TimeoutError("the answer did not come in time")
        return seconds


class _Reader(io.RawIOBase):
    """Reads a socket's bytes; each wait ends with the deadline at the latest."""

    def __init__(self, file: io.RawIOBase, place: socket.socket, deadline: Deadline, seconds: float) -> None:
        self._file, self._socket, self._deadline, self._seconds = file, place, deadline, seconds

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Read what there is."""
        self._socket.settimeout(min(self._seconds, self._deadline.left()))
        return self._file.readinto(buffer)

    def close(self) -> None:
        """Close the file, of which the socket keeps count."""
        self._file.close()
        super().close()


class _Watched:
    """A connected socket whose files keep to a deadline; everything else is the socket's own."""

    def __init__(self, place: Any, deadline: Deadline, seconds: float) -> None:
        self._socket, self._deadline, self._seconds = place, deadline, seconds

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        """Return a file to read an answer from."""
        raw = self._socket.makefile(mode, 0)
        return io.BufferedReader(_Reader(raw, self._socket, self._deadline, self._seconds))

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the socket."""
        return getattr(self._socket, name)


def keep_to(deadline: Deadline, pool: PoolManager, *, read_seconds: float) -> None:
    """Let all connections that ``pool`` makes from now on keep to ``deadline``, whatever else they keep to.

    Args:
        deadline: to be begun before each request and each read of a body.
        pool: used by one transport alone.
        read_seconds: the longest wait for the next byte.
    """

    pools: dict[str, Any] = {
        scheme: _watching(made, deadline, read_seconds)
        for scheme, made in pool.pool_classes_by_scheme.items()
    }
    pool.pool_classes_by_scheme = pools


def _watching(made: Any, deadline: Deadline, seconds: float) -> Any:
    """Return a class of connection pools like ``made``, whose connections keep to a deadline as well."""

    class Connection(made.ConnectionCls):
        def connect(self) -> None:
            super().connect()
            self.sock: Any = _Watched(self.sock, deadline, seconds)

    class Pool(made):
        ConnectionCls: Any = Connection

    return Pool
