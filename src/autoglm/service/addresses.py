"""Which addresses a request may make the service fetch from: public ones on the usual ports only.

Rules only, no I/O. What it guarantees: whatever notation an address is written in, it is judged by what it
resolves to; an address that leads to this machine, its network, its provider's metadata, or that carries such
an address inside (mapped, translated, tunnelled), is not public.

    >>> is_public("93.184.216.34"), is_public("127.0.0.1"), is_public("::ffff:10.0.0.1")
    (True, False, False)
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from autoglm.errors import RequestError

MAX_URL = 4096
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?|[0-9a-f:.]{2,45}")
_UNICAST_6 = ipaddress.ip_network("2000::/3")  # all else of IPv6 is special in some way
# What Python's tables call global, or did in older versions.
_SPECIAL = [
    ipaddress.ip_network(text)
    for text in (
        "100.64.0.0/10",  # between a provider and its customers; metadata of one cloud
        "168.63.129.16/32",  # metadata of another
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",  # tunnels to an IPv4 address
        "3fff::/20",
        "5f00::/16",
    )
]


@dataclass(frozen=True)
class Target:
    """Where to fetch from.

    Attributes:
        scheme: ``http`` or ``https``.
        host: a name in ASCII or an address, without a dot at its end.
        port: one of the usual ones.
        path: with the query, ready for a request line.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as text, for redirects that are relative to it."""
        return f"{self.scheme}://{self.authority}{self.path}"


def target_of(url: str, *, ports: frozenset[int] = frozenset(_PORTS.values())) -> Target:
    """Take an address apart.

    Raises:
        RequestError: it is none that may be fetched.
    """
    if len(url) > MAX_URL or any(letter <= " " or letter == "\x7f" for letter in url):
        raise RequestError("the address of the image is too long, or holds blanks or control characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode()
    except (ValueError, UnicodeError) as error:
        raise RequestError("the address of the image is no address") from error
    if parts.scheme not in _PORTS or "@" in parts.netloc:
        raise RequestError("the address of the image must be http or https, without a user or password")
    host = host.lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise RequestError("the address of the image names no host")
    port = _PORTS[parts.scheme] if port is None else port
    if port not in ports:
        raise RequestError("images are fetched from ports 80 and 443 only")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
    return Target(parts.scheme, host, port, f"{path}?{query}" if query else path)


def redirected(target: Target, location: str, *, ports: frozenset[int]) -> Target:
    """Return where a redirect leads, judged like any address.

    Raises:
        RequestError: somewhere that may not be fetched, or from https to http.
    """
    try:
        joined = urljoin(target.url, location)
    except ValueError as error:
        raise RequestError("the image's server redirects to no address") from error
    found = target_of(joined, ports=ports)
    if target.scheme == "https" and found.scheme == "http":
        raise RequestError("the image's server redirects from https to http")
    return found


def is_public(address: str) -> bool:
    """Tell whether an IP address may be connected to."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.version == 6:
        if found not in _UNICAST_6:
            return False
    elif found.is_multicast or found.is_reserved:
        return False
    is_special = any(found in network for network in _SPECIAL if network.version == found.version)
    return found.is_global and not is_special
