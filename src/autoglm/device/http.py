"""The hub over HTTP, with the suspicion that a network deserves.

What it guarantees: no plain ``http`` except to a hub on this machine itself, or where the app said so, and
never from ``https`` back to it; every answer is bounded in bytes and in time; a range is only believed when
its ``Content-Range`` says exactly what was asked for; the device token goes to the hub and to nobody else;
every byte is counted.

It does not judge packages: their bytes are checked by the caller, against the promises of the offer.
"""

from __future__ import annotations

import ipaddress
import math
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, NameResolutionError
from urllib3.exceptions import ProtocolError as LibraryProtocolError
from urllib3.exceptions import TimeoutError as TimeoutException
from urllib3.response import BaseHTTPResponse

from autoglm import __version__
from autoglm.device.certificates import make_pool, mistrust, read_pin
from autoglm.device.clock import Clock
from autoglm.device.deadline import Deadline, keep_to
from autoglm.device.transport import BusyError, LostPlaceError, RefusedError
from autoglm.errors import (
    AutoGLMError,
    CertificateError,
    ConfigError,
    ConflictError,
    MessageError,
    MetadataError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
)
from autoglm.releases import (
    MAX_MESSAGE_BYTES,
    EventAnswer,
    EventBatch,
    RegistrationAnswer,
    RegistrationRequest,
    UpdateAnswer,
    UpdateRequest,
    canonical_json,
)

_TRIES = 3
_REDIRECTS = 3
_READ_BYTES = 1 << 16
_MESSAGE_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 86_400
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_T = TypeVar("_T")
_Message = TypeVar("_Message", UpdateAnswer, EventAnswer, RegistrationAnswer)


class HttpTransport:
    """A hub at a URL.

    Args:
        hub_url: its address, such as ``https://hub.example``; a path in it is kept.
        token: the device's bearer token, when the hub asks for one.
        allow_http: accept plain ``http`` to other machines: for closed networks only.
        ca_file: trust this CA alone: a PEM file, or its content as bytes.
        pins: and only a hub whose certificate holds one of these keys, ``sha256/BASE64`` each; see
            :mod:`~autoglm.device.certificates`. Other hosts, such as a CDN for packages, need the CA alone.
        connect_seconds, read_seconds: longest wait for a connection, and for the next byte.
        patience_seconds: longest wait for a head, or for the next bytes of use, however it trickles.

    Raises:
        ConfigError: the address is no URL or is plain http to another machine; the CA or a pin is none.
    """

    def __init__(
        self,
        hub_url: str,
        *,
        token: str | None = None,
        allow_http: bool = False,
        ca_file: str | Path | bytes | None = None,
        pins: Sequence[str] = (),
        connect_seconds: float = 10.0,
        read_seconds: float = 30.0,
        patience_seconds: float = 60.0,
        clock: Clock | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        self._allow_http = allow_http
        self._hub_url = hub_url.rstrip("/") + "/"
        self._require_safe(self._hub_url, ConfigError)
        self._token = token
        self._clock = clock or Clock()
        self._random = random_source or random.Random()
        self.wire_bytes = 0
        timeout = urllib3.Timeout(connect=connect_seconds, read=read_seconds)
        self._pool = make_pool(timeout, ca_file, [read_pin(each) for each in pins])
        self._elsewhere = make_pool(timeout, ca_file) if pins else self._pool
        self._deadline = Deadline(patience_seconds)
        for pool in {self._pool, self._elsewhere}:
            keep_to(self._deadline, pool, read_seconds=read_seconds)

    # -- the four calls -----------------------------------------------------------------------------

    def check(self, request: UpdateRequest, /) -> UpdateAnswer:
        """Ask the hub; see :class:`~autoglm.device.transport.Transport`."""
        return self._patiently(lambda: self._post("v1/model/update", request.to_json(), UpdateAnswer))

    def report(self, batch: EventBatch, /) -> EventAnswer:
        """Deliver events; see :class:`~autoglm.device.transport.Transport`."""
        return self._patiently(lambda: self._post("v1/model/events", batch.to_json(), EventAnswer))

    def register(self, request: RegistrationRequest, /) -> RegistrationAnswer:
        """Enrol; see :class:`~autoglm.device.enrolment.Registrar`."""
        return self._patiently(lambda: self._post("v1/model/register", request.to_json(), RegistrationAnswer))

    def fetch(self, url: str, offset: int, etag: str | None = None, /) -> HttpBody:
        """Ask for a package, once: the caller resumes; see :class:`~autoglm.device.transport.Transport`."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag is not None:
                headers["If-Range"] = etag
        target, response = self._get(urljoin(self._hub_url, url), headers)
        return self._opened(response, target, offset)

    def metadata(self, name: str, max_bytes: int, /) -> bytes:
        """Fetch a file of signed metadata; see :class:`~autoglm.device.transport.Transport`."""
        url = urljoin(self._hub_url, "v1/model/metadata/" + name)
        return self._patiently(lambda: self.read(url, max_bytes))

    def read(self, url: str, max_bytes: int) -> bytes:
        """Fetch a small file, whole, once.

        Args:
            url: where it is.
            max_bytes: a longer one is broken off.

        Raises:
            MetadataError: it is longer, or its compression is damaged.
            NetworkError: it was not reached, broke off or took too long.
            HubError: it is not there, or not for this device.
        """
        target, response = self._get(url, {"Accept-Encoding": "gzip"})
        try:
            if response.status != 200:
                self._refuse(response, target)
            is_gzip = response.headers.get("Content-Encoding") == "gzip"
            return self._collect(
                response, max_bytes, MetadataError, zlib.decompressobj(31) if is_gzip else None
            )
        except zlib.error as error:
            raise MetadataError(f"{urlsplit(target).path} arrived damaged") from error
        finally:
            response.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()
        self._elsewhere.clear()

    # -- one exchange -------------------------------------------------------------------------------

    def _patiently(self, exchange: Callable[[], _T]) -> _T:
        """Repeat an exchange that did not come about; one that was refused is not repeated."""
        for attempt in range(_TRIES):
            try:
                return exchange()
            except (ProtocolError, CertificateError):
                raise
            except NetworkError as error:
                if attempt == _TRIES - 1 or (isinstance(error, BusyError) and error.retry_after_s):
                    raise
                self._clock.sleep(0.5 * 2**attempt * self._random.uniform(0.5, 1.5))
        raise AssertionError("unreachable: the last try returns or raises")

    def _get(self, url: str, headers: dict[str, str]) -> tuple[str, BaseHTTPResponse]:
        """Follow redirects; return where they end, and the answer there."""
        target = url
        for _ in range(_REDIRECTS + 1):
            response = self._send("GET", target, headers, None)
            if response.status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return target, response
            response.close()
            before, target = target, urljoin(target, response.headers["Location"])
            if before.startswith("https:") and not target.startswith("https:"):
                raise ProtocolError(f"{before} leads from https to {target[:200]}: refused")
        raise ProtocolError(f"{url} leads from one address to the next without an end")

    def _post(self, path: str, body: Mapping[str, Any], answer: type[_Message]) -> _Message:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        url = urljoin(self._hub_url, path)
        response = self._send("POST", url, headers, canonical_json(body))
        try:
            if response.status not in (200, 201, 202):
                self._refuse(response, url)
            return answer.from_bytes(self._collect(response, MAX_MESSAGE_BYTES, ProtocolError))
        except MessageError as error:
            raise ProtocolError(f"{url} answered with what is no answer: {error}") from error
        finally:
            response.close()

    def _collect(
        self, response: BaseHTTPResponse, max_bytes: int, error: type[AutoGLMError], unpack: Any = None
    ) -> bytes:
        """Return a whole body, broken off with ``error`` behind ``max_bytes``, packed or unpacked."""
        deadline = self._clock.monotonic() + _MESSAGE_SECONDS
        content, num_received = bytearray(), 0
        for piece in self._pieces(response):
            num_received += len(piece)
            # Never unpack more than one byte too many: a small body may hold gigabytes.
            room = max_bytes + 1 - len(content)
            content += piece if unpack is None else unpack.decompress(piece, room)
            if max(num_received, len(content)) > max_bytes:
                raise error(f"an answer of more than {max_bytes} bytes")
            if self._clock.monotonic() > deadline:
                raise NetworkError(f"an answer that took more than {_MESSAGE_SECONDS:.0f} s")
        return bytes(content)

    def _opened(self, response: BaseHTTPResponse, url: str, offset: int) -> HttpBody:
        if response.status == 206:
            start, total = self._content_range(response, url)
            if start != offset:
                response.close()
                raise LostPlaceError(f"{url} sent bytes from {start} where {offset} was asked for")
            return HttpBody(response, offset, total, self._pieces)
        if response.status == 200:
            return HttpBody(response, 0, _number(response.headers.get("Content-Length")), self._pieces)
        try:
            if response.status == 416:
                raise LostPlaceError(f"{url} has no byte {offset}")
            self._refuse(response, url)
        finally:
            response.close()

    def _content_range(self, response: BaseHTTPResponse, url: str) -> tuple[int, int | None]:
        """Return where a part begins and the size of the whole, if all that is said of it agrees."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None:
            response.close()
            raise LostPlaceError(f"{url} sent a part without saying which")
        start, last = int(match[1]), int(match[2])
        total = None if match[3] == "*" else int(match[3])
        length = _number(response.headers.get("Content-Length"))
        if last < start or (total is not None and last >= total) or length not in (None, last - start + 1):
            response.close()
            raise LostPlaceError(f"{url} sent a part whose Content-Range contradicts itself")
        return start, total

    def _pieces(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        """Yield what arrives, as it arrives, so that a trickle is seen as one."""
        try:
            while piece := self._next(response):
                self.wire_bytes += len(piece)
                yield piece
        except (HTTPError, HTTPException, OSError) as error:
            raise NetworkError(f"the connection broke off: {plain_cause(error)}") from error

    def _next(self, response: BaseHTTPResponse) -> bytes:
        self._deadline.begin()
        return response.read1(_READ_BYTES, decode_content=False)

    def _send(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> BaseHTTPResponse:
        self._deadline.begin()
        self._require_safe(url, ProtocolError)
        headers = {"User-Agent": f"autoglm-device/{__version__}"} | headers
        is_hub = _origin(url) == _origin(self._hub_url)
        if self._token is not None and is_hub:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            response = (self._pool if is_hub else self._elsewhere).request(
                method, url, headers=headers, body=body, redirect=False, preload_content=False
            )
        except (HTTPError, HTTPException, OSError, ValueError) as error:
            _unreachable(url, error)
        self.wire_bytes += _head_bytes(url, headers) + len(body or b"") + _head_bytes("", response.headers)
        return response

    def _refuse(self, response: BaseHTTPResponse, url: str) -> NoReturn:
        """Translate an HTTP error."""
        status, where = response.status, f"{urlsplit(url).path} answered {response.status}"
        if status in (401, 403):
            raise PermissionDeniedError(f"{where}: the device's token or link is missing, wrong or expired")
        if status == 409:
            raise ConflictError(f"{where}: it contradicts what is there")
        if status in (404, 410):
            raise NotFoundError(f"{where}: it is not there (any more)")
        if status in (429, 500, 502, 503, 504):
            after = response.headers.get("Retry-After")
            raise BusyError(f"{where}: the hub cannot answer now", retry_after_s=_retry_after_s(after))
        if status in (400, 413, 422):
            raise RefusedError(f"{where}: it does not accept this request")
        raise ProtocolError(where)

    def _require_safe(self, url: str, error: type[AutoGLMError]) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError as cause:
            raise error(f"{url!r} is no URL") from cause
        if parts.scheme not in ("http", "https") or not host:
            raise error(f"{url!r} is no http or https URL")
        if parts.scheme == "http" and not self._allow_http and not self._is_local(host):
            raise error(
                f"{url} is plain http, which anyone on the way can change: use https, or allow it on a "
                "closed network (allow_http=True, on the command line --allow-http)"
            )

    def _is_local(self, host: str) -> bool:
        """Tell whether host and hub are both this machine: no other one sends us to ports of our own."""
        return _is_this_machine(host) and _is_this_machine(urlsplit(self._hub_url).hostname or "")


class HttpBody:
    """A package arriving over HTTP."""

    def __init__(
        self,
        response: BaseHTTPResponse,
        offset: int,
        total: int | None,
        pieces: Callable[[BaseHTTPResponse], Iterator[bytes]],
    ) -> None:
        self._response, self._pieces = response, pieces
        self.status: int = response.status
        self.offset, self.total = offset, total
        etag = response.headers.get("ETag")
        # A weak validator does not promise the same bytes: nothing may be resumed with it (RFC 9110, 13.1.5).
        self.etag = etag if etag is not None and not etag.startswith("W/") and len(etag) <= 256 else None

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they come.

        Raises:
            NetworkError: they broke off.
        """
        return self._pieces(self._response)

    def close(self) -> None:
        """Drop the connection: what was not read is not wanted."""
        self._response.close()


def _unreachable(url: str, error: Exception) -> NoReturn:
    host = urlsplit(url).netloc.rpartition("@")[2]
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if (reason := mistrust(cause)) is not None:
        raise CertificateError(f"{host} has no certificate that this device trusts: {reason}") from error
    raise NetworkError(f"{host} was not reached: {plain_cause(cause)}") from error


def plain_cause(error: BaseException) -> str:
    """Return why an exchange failed in a person's words, without the library's own."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return plain_cause(error.reason)
    if isinstance(error, NameResolutionError):
        return "its name leads to no address"
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    if isinstance(error, TimeoutError | TimeoutException):
        return "it does not answer in time"
    if isinstance(error, LibraryProtocolError | HTTPException):
        return "it ended the connection before the answer was complete"
    return str(error)


def _number(text: str | None) -> int | None:
    """Return a header's number, None when it is none of a sane length."""
    return int(text) if text is not None and len(text) <= 18 and text.isdecimal() else None


def _retry_after_s(header: str | None) -> int | None:
    """Return the seconds that Retry-After asks to wait, as a number or a date; None when it is neither."""
    if header is None or len(header) > 64:
        return None
    try:
        return math.ceil(urllib3.Retry(retry_after_max=_LONGEST_RETRY_SECONDS).parse_retry_after(header))
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _head_bytes(line: str, headers: Mapping[str, str]) -> int:
    """Return about what a request or response head weighs: its lines, with their ends."""
    return 24 + len(line) + sum(len(key) + len(value) + 4 for key, value in headers.items())


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
