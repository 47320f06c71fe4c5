"""How a device talks to its hub: four calls, over whatever lies between them.

:class:`~autoglm.device.http.HttpTransport` does it over the network. :class:`LocalTransport` does it
inside one process, for a service whose own engine is just another device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from autoglm.errors import MetadataError, NetworkError, NotFoundError, ProtocolError
from autoglm.releases import EventAnswer, EventBatch, UpdateAnswer, UpdateRequest

_READ_BYTES = 1 << 16
_PACKAGE_URL = re.compile(r"(?:.*/)?([0-9a-f]{64})\.wpatch")


class RefusedError(ProtocolError):
    """The hub understood that this request is wrong (HTTP 400 or 422); repeating it cannot help."""


class LostPlaceError(ProtocolError):
    """The other side did not go on where it was asked to; starting from the first byte may help."""


class BusyError(NetworkError):
    """The hub asks to come back later.

    Attributes:
        retry_after_s: when, in seconds from now; None when it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Body(Protocol):
    """Bytes of a package that are arriving."""

    @property
    def status(self) -> int:
        """206 when they begin at the offset asked for, 200 when at the first byte."""
        ...

    @property
    def offset(self) -> int:
        """Where in the package the first of them lies."""
        ...

    @property
    def total(self) -> int | None:
        """The size of the whole package, when the other side says it."""
        ...

    @property
    def etag(self) -> str | None:
        """The strong validator with which a later request may go on."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they come.

        Raises:
            NetworkError: they broke off.
        """
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Transport(Protocol):
    """The four calls."""

    @property
    def wire_bytes(self) -> int:
        """Bytes sent and received over a network so far, heads included; 0 where there is none."""
        ...

    def check(self, request: UpdateRequest, /) -> UpdateAnswer:
        """Ask whether there is something to install.

        Raises:
            NetworkError: not reached, or an answer that breaks the protocol.
            HubError: the hub refuses this device.
        """
        ...

    def fetch(self, url: str, offset: int, etag: str | None, /) -> Body:
        """Ask for a package from ``offset`` on, if it is still the one that ``etag`` names.

        Raises:
            NetworkError: as for :meth:`check`.
            HubError: the hub does not give this package (any more).
        """
        ...

    def metadata(self, name: str, max_bytes: int, /) -> bytes:
        """Fetch a file of signed metadata, such as ``timestamp.json``.

        Args:
            name: its file name.
            max_bytes: a longer one is broken off.

        Raises:
            NotFoundError: there is none of that name.
            MetadataError: it is longer.
            NetworkError, HubError: as for :meth:`check`.
        """
        ...

    def report(self, batch: EventBatch, /) -> EventAnswer:
        """Deliver events.

        Raises:
            NetworkError: as for :meth:`check`; :class:`RefusedError` when the batch itself is at fault.
        """
        ...


class FileBody:
    """A package that lies in a file on this machine."""

    status = 206
    etag = None

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb")
        self.total: int | None = path.stat().st_size
        self.offset = self._file.seek(offset)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes from the offset to the end."""
        while content := self._file.read(_READ_BYTES):
            yield content

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LocalTransport:
    """Talks to a hub in the same process.

    Args:
        check: the hub's decision for a request.
        report: takes events.
        package: returns where the package of a SHA-256 lies.
        metadata: returns a file of signed metadata.

    Example::

        LocalTransport(
            check=hub.check, report=hub.record, package=hub.package_path, metadata=hub.metadata
        )
    """

    wire_bytes = 0

    def __init__(
        self,
        *,
        check: Callable[[UpdateRequest], UpdateAnswer],
        report: Callable[[EventBatch], EventAnswer],
        package: Callable[[str], Path],
        metadata: Callable[[str], bytes],
    ) -> None:
        self._check, self._report, self._package, self._metadata = check, report, package, metadata

    def check(self, request: UpdateRequest, /) -> UpdateAnswer:
        """Ask the hub."""
        return self._check(request)

    def report(self, batch: EventBatch, /) -> EventAnswer:
        """Deliver events to the hub."""
        return self._report(batch)

    def metadata(self, name: str, max_bytes: int, /) -> bytes:
        """Return a file of the hub's signed metadata.

        Raises:
            NotFoundError: there is none of that name.
            MetadataError: it is too long.
        """
        if len(content := self._metadata(name)) > max_bytes:
            raise MetadataError(f"{name} has {len(content)} bytes; at most {max_bytes} are taken")
        return content

    def fetch(self, url: str, offset: int, etag: str | None = None, /) -> FileBody:
        """Open the package that ``url`` names by its hash.

        Raises:
            NotFoundError: it is not there.
        """
        match = _PACKAGE_URL.fullmatch(url)
        if match is None:
            raise NotFoundError(f"{url} names no package")
        try:
            return FileBody(self._package(match[1]), offset)
        except OSError as error:
            raise NetworkError(f"package {match[1]} cannot be read") from error
