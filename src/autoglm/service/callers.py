"""Who is at the other end: networks that count as one caller, proxies that may speak for others, and hosts.

What it guarantees: ``X-Forwarded-For``, ``-Proto`` and ``-Host`` are believed from the configured proxies
and from nobody else; of a chain of proxies the last address that is none of them counts; the host in an
address that is given to a device was either configured or is at least a host.

    >>> caller_network("2001:db8::7")
    '2001:db8::/64'
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from autoglm.service.problems import APIError

_HOST = re.compile(
    r"([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?\Z"
)
_MAX_ADDRESS = 64
_FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")


@functools.lru_cache(maxsize=16_384)
def caller_network(address: str) -> str:
    """Return the network that an address is counted under: itself, or the /64 of an IPv6 address.

    One household or phone has a whole /64 to choose addresses from.
    """
    found = _address(address)
    if found is None or found.version == 4:
        return address if found is None else str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, an IPv4 one also where it comes as an IPv6 one; None for what is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0] if len(text) <= _MAX_ADDRESS else "")
    except ValueError:
        return None
    return found.ipv4_mapped or found if found.version == 6 else found


class Proxies:
    """The addresses whose ``X-Forwarded-*`` headers are believed.

    Args:
        trusted: addresses and networks, or ``*`` for everyone.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self.everyone = "*" in trusted
        self._networks = [ipaddress.ip_network(each) for each in trusted if each != "*"]

    def __bool__(self) -> bool:
        return self.everyone or bool(self._networks)

    def __contains__(self, address: str) -> bool:
        if self.everyone or not self._networks:
            return self.everyone
        found = _address(address)
        return found is not None and any(found in network for network in self._networks)

    def client_of(self, chain: Sequence[str]) -> str | None:
        """Return who began a chain of addresses: the last that is no proxy; None when it is no address."""
        addresses = [_without_port(entry.strip()) for entry in chain]
        if self.everyone:
            return next((entry for entry in addresses if _address(entry)), None)
        for entry in reversed(addresses):
            if _address(entry) is None:
                return None  # whoever wrote this is not to be followed further
            if entry not in self:
                return entry
        return addresses[0] if addresses else None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


class Forwarded:
    """Let an application see the client behind a trusted proxy, and nobody else's word for it."""

    def __init__(self, app: ASGIApp, proxies: Proxies) -> None:
        self._app, self._proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as its client meant it."""
        peer = scope.get("client")
        if scope["type"] == "http" and peer and peer[0] in self._proxies:
            scope = self._seen_through(scope)
        await self._app(scope, receive, send)

    def _seen_through(self, scope: Scope) -> Scope:
        said: dict[bytes, list[str]] = {name: [] for name in _FORWARDED}
        for name, value in scope["headers"]:
            if name in said:
                said[name] += value.decode("latin-1").split(",")
        chain, schemes, hosts = said.values()
        seen: dict[str, Any] = {}
        if (client := self._proxies.client_of(chain)) is not None:
            seen["client"] = (client, 0)
        if schemes and (scheme := schemes[-1].strip().lower()) in ("http", "https"):
            seen["scheme"] = scheme
        if hosts and is_host(host := hosts[-1].strip()):
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            seen["headers"] = [(b"host", host.encode()), *others]
        if chain:  # otherwise it is somebody on the proxy's machine, who speaks for himself
            seen["state"] = {**scope.get("state", {}), "proxied": True}
        return {**scope, **seen}


def is_host(text: str) -> bool:
    """Tell whether a text is a host name or address, with or without a port."""
    return _HOST.match(text) is not None


def base_url(request: Request, public_url: str | None) -> str:
    """Return what an address for the caller begins with: the configured one, else where the request went.

    Raises:
        APIError: 400, its ``Host`` is none.
    """
    if public_url is not None:
        return public_url
    hosts = request.headers.getlist("host")
    if not hosts:  # HTTP/1.0 need not say
        address, port = request.scope.get("server") or ("localhost", None)
        hosts = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}"]
    if len(hosts) > 1 or not is_host(hosts[0]):
        raise APIError(400, "the Host header names no host", param="host", code="invalid_host")
    return f"{request.scope['scheme']}://{hosts[0]}"
