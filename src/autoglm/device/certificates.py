"""Whom a device believes to be its hub: a CA, the right name and dates, and where the app wants, a key.

What it guarantees: a certificate is always verified, by the system's CAs or by the one given alone; with
pins, whoever has another key, though a trusted CA has signed for it, is refused before a byte of a request
is sent.

A pin is ``sha256/`` and the Base64 of the SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 7469, 2.4),
so it outlives a renewal that keeps the key. Give two, one of them of a key that is kept in a safe.

    >>> read_pin("sha256/" + "A" * 43 + "=").hex()[:4]
    '0000'
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from autoglm.errors import ConfigError

_PREFIX = "sha256/"
_SEQUENCE, _VERSION = 0x30, 0xA0


class PinError(ConnectionError):
    """The certificate holds none of the pinned keys; caught inside the SDK."""


def read_pin(text: str) -> bytes:
    """Return the 32 bytes of a pin.

    Raises:
        ConfigError: it is none.
    """
    try:
        digest = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if not text.startswith(_PREFIX) or len(digest) != 32:
        raise ConfigError(f"{text[:80]!r} is no pin: write sha256/ and the Base64 of the key's SHA-256")
    return digest


def public_key_sha256(certificate: bytes) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo of a DER certificate (RFC 5280, 4.1).

    Raises:
        PinError: these bytes are no certificate.
    """
    fields, _ = _inside(certificate, 0)  # Certificate
    at, _ = _inside(certificate, fields)  # TBSCertificate
    if certificate[at : at + 1] == bytes([_VERSION]):
        at = _end(certificate, at)
    for _ in range(5):  # serialNumber, signature, issuer, validity, subject
        at = _end(certificate, at)
    if certificate[at : at + 1] != bytes([_SEQUENCE]):
        raise PinError("the certificate has no public key where it should be")
    return hashlib.sha256(certificate[at : _end(certificate, at)]).digest()


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the DER element at ``at`` begins and ends (X.690, 8.1)."""
    if at + 2 > len(der):
        raise PinError("the certificate breaks off")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        num_bytes = length & 0x7F
        if not 1 <= num_bytes <= 4:
            raise PinError("the certificate has a length that is none")
        length = int.from_bytes(der[start : start + num_bytes], "big")
        start += num_bytes
    if start + length > len(der):
        raise PinError("the certificate breaks off")
    return start, start + length


def _end(der: bytes, at: int) -> int:
    return _inside(der, at)[1]


class _PinnedConnection(HTTPSConnection):
    """A connection that looks at the key of the other side before it says anything."""

    pins: ClassVar[tuple[bytes, ...]] = ()

    def connect(self) -> None:
        """Shake hands, then compare.

        Raises:
            PinError: the key is none of the pinned ones.
        """
        super().connect()
        try:
            certificate = cast("ssl.SSLSocket", self.sock).getpeercert(binary_form=True)
            found = public_key_sha256(certificate or b"")
            if not any(hmac.compare_digest(found, pin) for pin in self.pins):
                pin = _PREFIX + base64.b64encode(found).decode()
                raise PinError(f"its key is {pin}, which is not pinned here")
        except BaseException:
            self.close()
            raise


def mistrust(error: BaseException) -> str | None:
    """Return what is wrong with the other side's certificate, None where an exchange failed otherwise."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, PinError):
            return str(found)
        if isinstance(found, ssl.SSLCertVerificationError):
            return found.verify_message
        inner = found.args[0] if found.args and isinstance(found.args[0], BaseException) else None
        found = inner or found.__cause__ or found.__context__
    return None


def make_pool(
    timeout: urllib3.Timeout, ca: str | Path | bytes | None, pins: Sequence[bytes] = ()
) -> urllib3.PoolManager:
    """Return connections to those who can be believed.

    Args:
        timeout: of each connection.
        ca: the only CA to trust, a PEM file or its content; None for the system's.
        pins: the keys that are believed, every key without any.

    Raises:
        ConfigError: the CA cannot be read.
    """
    manager = urllib3.PoolManager(timeout=timeout, ssl_context=_context(ca), retries=False)
    if pins:
        manager.pool_classes_by_scheme = {"http": urllib3.HTTPConnectionPool, "https": _pinned(tuple(pins))}
    return manager


def _pinned(keys: tuple[bytes, ...]) -> type[urllib3.HTTPSConnectionPool]:
    class Connection(_PinnedConnection):
        pins = keys

    class Pool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Connection  # type: ignore[assignment]

    return Pool


def _context(ca: str | Path | bytes | None) -> ssl.SSLContext:
    """Return the rules for TLS: a certificate by a trusted CA, of the right name and in its dates."""
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.check_hostname = True
    try:
        if isinstance(ca, bytes):
            context.load_verify_locations(cadata=ca.decode("ascii"))
        elif ca is not None:
            context.load_verify_locations(cafile=str(ca))
        else:
            context.load_default_certs()
    except FileNotFoundError as error:
        raise ConfigError(f"ca_file: there is no file {ca!s}") from error
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"ca_file: this is no certificate in PEM: {error}") from error
    return context
