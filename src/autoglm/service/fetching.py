"""Images from ``http`` addresses, where ``limits.fetch_images`` allows it; off by default.

What it guarantees: a name is resolved once and the connection goes to the very address that was judged, so
that a name cannot mean one machine while it is looked at and another when it is used; all addresses of a name
must be public; redirects are judged anew; nothing of the request but its path is sent; an answer has a total
time and size, and what is more is not read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httptools

from autoglm.errors import RequestError
from autoglm.service.addresses import Target, is_public, redirected, target_of
from autoglm.service.settings import LimitSettings

MAX_FETCHED = 16  # of one request
MAX_AT_ONCE = 16  # of all requests
MAX_REDIRECTS = 3
_MAX_HEAD_BYTES = 64 << 10
_CHUNK_BYTES = 64 << 10
_PORTS = frozenset((80, 443))

Resolve = Callable[[str, int], Awaitable[list[str]]]
Fetched = dict[str, bytes | RequestError]


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system finds them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class ImageFetcher:
    """Fetches the images of requests; used on one event loop.

    Args:
        limits: whether, how large and how long.
        resolve: finds a host's addresses.
        is_allowed: judges each of them.
        ports: that may be connected to.
        tls: what certificates are trusted; None takes the system's.
    """

    def __init__(
        self,
        limits: LimitSettings,
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        ports: frozenset[int] = _PORTS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits, self._resolve, self._is_allowed, self._ports = limits, resolve, is_allowed, ports
        self._tls = tls
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def fetch_all(self, images: Iterable[str]) -> Fetched:
        """Return what lies behind each ``http`` address among images' addresses, or why it is not had."""
        urls = list(dict.fromkeys(url for url in images if is_remote(url)))
        if not urls or not self._limits.fetch_images:
            return {}
        over = RequestError(f"a request may name at most {MAX_FETCHED} images by their addresses")
        found: Fetched = dict.fromkeys(urls[MAX_FETCHED:], over)
        urls = urls[:MAX_FETCHED]
        return found | dict(zip(urls, await asyncio.gather(*map(self._fetch_one, urls)), strict=True))

    async def _fetch_one(self, url: str) -> bytes | RequestError:
        try:
            async with self._places:
                return await self.fetch(url)
        except RequestError as error:
            return error

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind an address.

        Raises:
            RequestError: it may not be fetched, or is not had in time and whole.
        """
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                return await self._follow(target_of(url, ports=self._ports))
        except TimeoutError as error:
            message = f"the image did not come within {self._limits.fetch_seconds} seconds"
            raise RequestError(message) from error
        except (OSError, httptools.HttpParserError, UnicodeError) as error:
            raise RequestError("the image's server cannot be reached, or gives no proper answer") from error

    async def _follow(self, target: Target) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._ask(target)
            if answer.location is None:
                return answer.image
            target = redirected(target, answer.location, ports=self._ports)
        raise RequestError(f"the image's server redirects more than {MAX_REDIRECTS} times")

    async def _ask(self, target: Target) -> _Answer:
        addresses = await self._resolve(target.host, target.port)
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise RequestError("the address of the image is not a public one")
        reader, writer = await self._connect(target, addresses)
        try:
            writer.write(_request(target))
            return await _read(reader, self._limits.fetch_mb << 20)
        finally:
            writer.transport.abort()

    async def _connect(
        self, target: Target, addresses: list[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that takes it; the certificate must be the name's."""
        tls: dict[str, Any] = {}
        if target.scheme == "https":
            self._tls = self._tls or ssl.create_default_context()
            tls = {"ssl": self._tls, "server_hostname": target.host}
        for address in addresses[:-1]:
            try:
                return await asyncio.open_connection(address, target.port, **tls)
            except OSError:
                continue
        return await asyncio.open_connection(addresses[-1], target.port, **tls)


def is_remote(url: str) -> bool:
    """Tell whether an image's address would have to be fetched."""
    return url[:5].lower() in ("http:", "https")


def _request(target: Target) -> bytes:
    lines = (
        f"GET {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "User-Agent: autoglm",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii")


class _Answer:
    """An HTTP answer as it is parsed; the parser calls the ``on_`` methods.

    Attributes:
        status: the HTTP status; 0 before it is known.
        is_whole: whether its end was seen.
    """

    def __init__(self, max_bytes: int) -> None:
        self.status, self.is_whole = 0, False
        self._max_bytes = max_bytes
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Judge the head."""
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Note the end."""
        self.is_whole = True

    @property
    def location(self) -> str | None:
        """Where it redirects to."""
        return self._headers.get("location") if self.status in (301, 302, 303, 307, 308) else None

    @property
    def image(self) -> bytes:
        """The body.

        Raises:
            RequestError: the answer is no success, is compressed, or is not whole.
        """
        if self.status != 200:
            raise RequestError(f"the image's server answered with status {self.status or 'none'}")
        if self._headers.get("content-encoding", "identity") != "identity":
            raise RequestError("the image's server compressed its answer, which was not asked for")
        ends_anywhere = "content-length" not in self._headers and "transfer-encoding" not in self._headers
        if not (self.is_whole or ends_anywhere):
            raise RequestError("the image's server broke off")
        return bytes(self._body)

    def check_size(self) -> None:
        """Stop reading what is too large, by what it promises or by what has come.

        Raises:
            RequestError: it is.
        """
        promised = self._headers.get("content-length", "0")
        size = int(promised) if promised.isdigit() and len(promised) < 19 else self._max_bytes + 1
        if max(size, len(self._body)) > self._max_bytes:
            raise RequestError(f"the image has more than {self._max_bytes >> 20} MiB")


async def _read(reader: asyncio.StreamReader, max_bytes: int) -> _Answer:
    answer, head_bytes = _Answer(max_bytes), 0
    while not answer.is_whole and (content := await reader.read(_CHUNK_BYTES)):
        head_bytes += 0 if answer.status else len(content)
        answer.parser.feed_data(content)
        answer.check_size()
        if head_bytes > _MAX_HEAD_BYTES and not answer.status:
            raise RequestError("the image's server gives no proper answer")
        if answer.location is not None:
            break
    return answer
