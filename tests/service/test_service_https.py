"""HTTPS from end to end, and what a proxy may say: a real service, the real SDK."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from authority import Authority
from autoglm.device import Updater
from autoglm.service.callers import Proxies, base_url, caller_network, is_host
from autoglm.service.problems import APIError

TIMEOUT_S = 60
QUESTION = {"device_id": "d"}


def url_of(service: Any, **headers: str) -> str:
    """The start of the address that a device is given."""
    answer = service.post("/v1/model/update", QUESTION, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["download_url"].partition("/v1/")[0]


def test_a_device_updates_over_https(start_service: Any, tmp_path: Path) -> None:
    """Check, metadata, package and events go over TLS with a pinned CA and key, and so is the address."""
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    service = start_service(tls={"cert": str(issued.cert), "key": str(issued.key)})
    hub = service.state.hub
    with Updater(
        tmp_path / "phone",
        hub_url=service.url,
        trust_root=hub.trust.repository.root,
        device_id="d1",
        ca_file=authority.pem,
        pins=[issued.pin],
    ) as updater:
        result = updater.update()
        assert (result.kind, result.to_version) == ("updated", "v1.2"), result
    assert [each.version for each in hub.devices() if each.device_id == "d1"] == [None]
    answer = requests.post(
        f"{service.url}/v1/model/update", json=QUESTION, verify=str(authority.pem), timeout=TIMEOUT_S
    )
    assert answer.json()["download_url"].startswith(f"{service.url}/v1/model/packages/")


def test_addresses_begin_with_the_host_that_was_asked(service: Any) -> None:
    """Without public_url, scheme and Host of the request; other headers of a stranger say nothing."""
    assert url_of(service) == service.url
    assert url_of(service, host="hub.example:81") == "http://hub.example:81"
    said = {
        "x-forwarded-proto": "https",
        "x-forwarded-host": "evil.example",
        "forwarded": "host=evil.example",
    }
    assert url_of(service, **said) == service.url


@pytest.mark.parametrize(
    "host", ["", "a b", "evil.example/x", "user@evil.example", "a..b-", "x" * 300, "[::1"]
)
def test_a_host_that_is_none_is_a_400(service: Any, host: str) -> None:
    """Nothing that could lead elsewhere gets into an address."""
    answer = service.post("/v1/model/update", QUESTION, headers={"host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_host"


def test_a_trusted_proxy_speaks_for_its_clients(start_service: Any) -> None:
    """Its X-Forwarded-Host and -Proto make the address; its -For is who is counted."""
    service = start_service(trusted_proxies=["127.0.0.0/8"], limits={"requests_per_minute": 2})
    said = {"x-forwarded-proto": "https", "x-forwarded-host": "hub.example"}
    assert url_of(service, **said, **{"x-forwarded-for": "203.0.113.1"}) == "https://hub.example"
    assert url_of(service, **{"x-forwarded-for": "203.0.113.1"}) == service.url
    spoofed = "198.51.100.7, 203.0.113.1"  # the client wrote the first, the proxy the last
    asked = service.post("/v1/model/update", QUESTION, headers={"x-forwarded-for": spoofed})
    assert asked.status_code == 429
    assert url_of(service, **{"x-forwarded-for": "203.0.113.2"}) == service.url


def test_a_proxy_that_is_not_named_speaks_for_nobody(start_service: Any) -> None:
    """Another address in trusted_proxies leaves this one a caller like any other."""
    service = start_service(trusted_proxies=["10.0.0.0/8"], limits={"requests_per_minute": 1})
    first = {"x-forwarded-for": "203.0.113.1", "x-forwarded-host": "evil.example"}
    assert url_of(service, **first) == service.url
    again = service.post("/v1/model/update", QUESTION, headers={"x-forwarded-for": "203.0.113.2"})
    assert again.status_code == 429


@pytest.mark.parametrize(
    ("trusted", "chain", "client"),
    [
        (["10.0.0.1"], ["1.2.3.4"], "1.2.3.4"),
        (["10.0.0.1"], ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        (["10.0.0.0/8"], ["1.2.3.4", "10.0.0.2"], "1.2.3.4"),
        (["10.0.0.0/8"], ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        (["10.0.0.0/8"], ["1.2.3.4:5678", "10.0.0.2:1"], "1.2.3.4"),
        (["10.0.0.0/8"], ["[2001:db8::1]:443"], "2001:db8::1"),
        (["10.0.0.0/8"], ["1.2.3.4", "nonsense"], None),
        (["10.0.0.0/8"], ["unknown"], None),
        (["10.0.0.0/8"], [], None),
        (["*"], ["1.2.3.4", "5.6.7.8"], "1.2.3.4"),
        (["*"], ["_hidden"], None),
    ],
)
def test_the_last_address_that_is_no_proxy_counts(
    trusted: list[str], chain: list[str], client: str | None
) -> None:
    """Whatever a client puts in front of it is not believed; what is no address is nobody."""
    assert Proxies(trusted).client_of(chain) == client


@pytest.mark.parametrize(
    ("trusted", "address", "expected"),
    [
        ([], "127.0.0.1", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "::ffff:127.0.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["fd00::/8"], "fd12::1%eth0", True),
        (["10.0.0.0/8"], "not an address", False),
        (["*"], "whoever", True),
    ],
)
def test_who_is_a_proxy(trusted: list[str], address: str, expected: bool) -> None:
    """Addresses are compared as addresses, however they are written."""
    assert (address in Proxies(trusted)) is expected


def test_a_household_of_addresses_is_one_caller() -> None:
    """IPv6 addresses of one /64 are counted together, IPv4 ones each, however they come."""
    assert (
        caller_network("2001:db8::1") == caller_network("2001:db8::ffff:1") != caller_network("2001:db9::1")
    )
    assert caller_network("::ffff:1.2.3.4") == caller_network("1.2.3.4") != caller_network("1.2.3.5")
    assert caller_network("testclient") == "testclient"


@pytest.mark.parametrize("text", ["hub", "hub.example", "hub.example:8443", "1.2.3.4:1", "[::1]:80", "a_b.c"])
def test_hosts_are_hosts(text: str) -> None:
    """Names and addresses, with and without a port."""
    assert is_host(text)


def test_a_request_without_a_host_is_answered_with_where_it_went() -> None:
    """HTTP/1.0 need not say a host; two of them say nothing."""
    from starlette.requests import Request

    def request(*hosts: bytes) -> Request:
        headers = [(b"host", host) for host in hosts]
        return Request({"type": "http", "headers": headers, "scheme": "http", "server": ("::1", 80)})

    assert base_url(request(), None) == "http://[::1]:80"
    assert base_url(request(b"a", b"b"), "https://public.example") == "https://public.example"
    with pytest.raises(APIError):
        base_url(request(b"a", b"b"), None)


def test_handshakes_that_never_end_do_not_stop_health(start_service: Any, tmp_path: Path) -> None:
    """Two hundred connections that say nothing, or nonsense, before TLS: the next request is answered."""
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    service = start_service(tls={"cert": str(issued.cert), "key": str(issued.key)})
    host, port = service.url.removeprefix("https://").split(":")
    with ExitStack() as stack:
        for number in range(200):
            connection = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
            stack.enter_context(connection)
            connection.sendall((b"", b"GET /health HTTP/1.1\r\n\r\n", b"\x16\x03\x01")[number % 3])
        assert service.get("/health", verify=str(authority.pem)).json() == {"status": "ok"}
