"""Whom the SDK believes to be its hub: real TLS servers, most of them somebody else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from authority import Authority, Issued
from autoglm.device import HttpTransport, Updater
from autoglm.device.certificates import PinError, public_key_sha256, read_pin
from autoglm.errors import CertificateError, ConfigError, NetworkError, ProtocolError
from autoglm.releases import UpdateRequest

NOTHING = json.dumps({"need_update": False, "target_version": None, "download_url": None}).encode()
PATH = "/v1/model/packages/x.wpatch"


class Server:
    """A server that answers every POST with "nothing newer", and a GET as ``get`` says."""

    def __init__(self, issued: Issued | None) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.get: Callable[[Any], None] = lambda handler: reply(handler, 200, b"bytes")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.seen.append((self.path, self.headers["Authorization"]))
                self.rfile.read(int(self.headers["Content-Length"]))
                reply(self, 200, NOTHING)

            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers["Authorization"]))
                outer.get(self)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        if issued is not None:
            self.http.socket = issued.context().wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self.http.server_port
        self.url = f"{'http' if issued is None else 'https'}://localhost:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(handler: Any, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def redirect_to(url: str) -> Callable[[Any], None]:
    return lambda handler: reply(handler, 302, Location=url)


Serve = Callable[[Issued | None], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(issued: Issued | None) -> Server:
            server = Server(issued)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def check(url: str, **trust: Any) -> bool:
    """Ask the hub at a URL; say whether it had anything."""
    transport = HttpTransport(url, random_source=random.Random(1), **trust)
    try:
        return transport.check(UpdateRequest("d1")).need_update
    finally:
        transport.close()


def test_a_hub_of_the_pinned_ca_is_believed(serve: Serve, authority: Authority) -> None:
    """The CA may be given as a file or as bytes, alone or with the pin of the hub's key among others."""
    issued = authority.issue("localhost")
    url = serve(issued).url
    other = authority.issue("localhost").pin
    for ca in (authority.pem, str(authority.pem), authority.pem.read_bytes()):
        assert check(url, ca_file=ca) is False
        assert check(url, ca_file=ca, pins=[other, issued.pin]) is False


def test_the_command_line_pins_a_key(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """``autoglm device check --pin`` talks to a hub with that key, and to no other."""
    issued = authority.issue("localhost")
    url, other = serve(issued).url, authority.issue("localhost").pin
    command = [sys.executable, "-m", "autoglm.cli", "device", "check", "--hub", url, "--trust-first-use"]
    command += ["--data", str(tmp_path / "device"), "--ca-file", str(authority.pem), "--pin"]
    assert "nothing newer" in subprocess.run([*command, issued.pin], capture_output=True, text=True).stdout
    refused = subprocess.run([*command, other], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "not pinned" in refused.stderr


def test_a_pin_outlives_a_renewal_of_the_certificate(serve: Serve, authority: Authority) -> None:
    """A new certificate for the same key is the same hub."""
    issued = authority.issue("localhost")
    renewed = authority.issue("localhost", days=(0, 400), key=issued.private)
    assert check(serve(renewed).url, ca_file=authority.pem, pins=[issued.pin]) is False


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("of another CA", "unable to get local issuer"),
        ("for another name", "Hostname mismatch"),
        ("expired", "has expired"),
        ("not yet valid", "not yet valid"),
        ("of the right CA with another key", "not pinned"),
        ("of no CA that the system knows", "unable to get local issuer"),
    ],
)
def test_a_man_in_the_middle_is_refused(
    serve: Serve, authority: Authority, tmp_path: Path, who: str, reason: str
) -> None:
    """He gets no request, no token and no second try; the error says what is wrong; nothing is installed."""
    middle = {
        "of another CA": lambda: Authority(tmp_path, "Other CA").issue("localhost"),
        "for another name": lambda: authority.issue("hub.example"),
        "expired": lambda: authority.issue("localhost", days=(-30, -1)),
        "not yet valid": lambda: authority.issue("localhost", days=(1, 30)),
    }.get(who, lambda: authority.issue("localhost"))()
    server = serve(middle)
    trust: dict[str, Any] = {"ca_file": authority.pem, "token": "secret"}
    if "another key" in who:
        trust["pins"] = [authority.issue("localhost").pin]
    if "no CA" in who:
        del trust["ca_file"]
    with pytest.raises(CertificateError, match=reason) as caught:
        check(server.url, **trust)
    assert isinstance(caught.value, NetworkError)
    with Updater(tmp_path / "device", hub_url=server.url, trust_first_use=True, **trust) as updater:
        result = updater.update()
        assert (result.kind, result.code, updater.active) == ("failed", "E_CERTIFICATE", None)
    assert server.seen == []


def test_no_redirect_leads_from_https_to_http(serve: Serve, authority: Authority) -> None:
    """Not even to this machine, and not where plain http is allowed; the other server is never asked."""
    plain, hub = serve(None), serve(authority.issue("localhost"))
    hub.get = redirect_to(plain.url + PATH)
    for allow in (False, True):
        transport = HttpTransport(hub.url, ca_file=authority.pem, allow_http=allow)
        with pytest.raises(ProtocolError, match="from https"):
            transport.fetch(PATH, 0)
        transport.close()
    assert plain.seen == []


def test_a_redirect_to_another_host_carries_no_token(serve: Serve, authority: Authority) -> None:
    """Bytes may come from elsewhere, without a pin of their own; the token goes to the hub alone."""
    issued = authority.issue("localhost")
    hub, elsewhere = serve(issued), serve(authority.issue("localhost"))
    hub.get = redirect_to(elsewhere.url + PATH)
    transport = HttpTransport(hub.url, ca_file=authority.pem, token="secret", pins=[issued.pin])
    body = transport.fetch(PATH, 0)
    assert b"".join(body.chunks()) == b"bytes"
    body.close()
    transport.close()
    assert hub.seen == [(PATH, "Bearer secret")]
    assert elsewhere.seen == [(PATH, None)]


def test_a_redirect_to_an_untrusted_host_is_refused(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """Where a redirect leads is verified like the hub."""
    hub, elsewhere = (
        serve(authority.issue("localhost")),
        serve(Authority(tmp_path, "Other").issue("localhost")),
    )
    hub.get = redirect_to(elsewhere.url + PATH)
    transport = HttpTransport(hub.url, ca_file=authority.pem)
    with pytest.raises(CertificateError):
        transport.fetch(PATH, 0)
    transport.close()
    assert elsewhere.seen == []


def test_a_hub_elsewhere_cannot_send_a_device_to_its_own_ports(serve: Serve) -> None:
    """Plain http to loopback is for a hub on loopback."""
    local = serve(None)
    transport = HttpTransport("https://hub.example")
    with pytest.raises(ProtocolError, match="plain http"):
        transport.fetch(local.url + PATH, 0)
    assert local.seen == []


@pytest.mark.parametrize(
    "url", ["http://hub.example", "http://10.0.0.7:8000", "http://127.0.0.1.hub.example"]
)
def test_plain_http_needs_to_be_allowed(url: str) -> None:
    """Another machine without TLS is a ConfigError that names the way out."""
    with pytest.raises(ConfigError, match="allow_http"):
        HttpTransport(url)
    HttpTransport(url, allow_http=True).close()


@pytest.mark.parametrize(
    "trust",
    [
        {"pins": ["sha256/short"]},
        {"pins": ["sha1/" + "A" * 43 + "="]},
        {"pins": ["A" * 64]},
        {"ca_file": b"no certificate"},
        {"ca_file": "no such file"},
        {"ca_file": b"\xff\xfe"},
    ],
)
def test_trust_that_cannot_be_used_is_a_config_error(trust: dict[str, Any]) -> None:
    """A wrong pin or CA is named at the start, not at the first update."""
    with pytest.raises(ConfigError, match=r"pin|ca_file"):
        HttpTransport("https://hub.example", **trust)


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_the_key_of_any_certificate_is_found(kind: str, tmp_path: Path) -> None:
    """What is hashed is what the certificate's own library calls its public key."""
    key: Any = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(key, hashes.SHA256() if kind == "rsa" else None)
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public)
    assert public_key_sha256(der) == digest.finalize()


def test_bytes_that_are_no_certificate_are_refused(authority: Authority) -> None:
    """Cut or changed anywhere, a certificate gives a hash or a PinError, never anything else."""
    pem = authority.issue("localhost").cert.read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    for length in range(0, len(der), 7):
        with pytest.raises(PinError):
            public_key_sha256(der[:length])
    change = random.Random(5)
    for _ in range(2000):
        damaged = bytearray(der)
        damaged[change.randrange(len(der))] = change.randrange(256)
        with suppress(PinError):
            assert len(public_key_sha256(bytes(damaged))) == 32


def test_a_pin_is_read_to_its_bytes() -> None:
    """The usual notation, as other clients have it."""
    assert read_pin("sha256/" + "A" * 43 + "=") == bytes(32)
