"""Speak to a service over HTTP: JSON, uploads with progress, server-sent events.

What it guarantees: every failure is one of our errors, with the service's own words where it gave some;
answers are bounded. Only urllib3 is used, so a device's machine needs nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from autoglm.device.http import plain_cause
from autoglm.errors import (
    AutoGLMError,
    ConfigError,
    ConflictError,
    HubError,
    NetworkError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
)

MAX_ANSWER_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20
_CONNECT_S, _READ_S = 10.0, 120.0
_PUBLISH_S = 3600.0  # a large release is unpacked and hashed before the hub answers
_CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Told the bytes sent and the bytes in all."""

_ERRORS: dict[int, type[AutoGLMError]] = {
    401: PermissionDeniedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: OverloadedError,
    503: OverloadedError,
}


class ServiceClient:
    """One service.

    Args:
        url: its address, with or without ``/v1`` at the end.
        token: sent as the bearer token.
        certificate: the very certificate that the service must show, for a service on this machine whose
            certificate names another host.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, url: str, *, token: str | None = None, certificate: Path | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no address; write for example http://127.0.0.1:8000")
        self.url = parts.geturl().rstrip("/").removesuffix("/v1")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        trust: dict[str, Any] = {}
        if certificate is not None:
            trust = {"ca_certs": str(certificate), "assert_hostname": False}
        self._pool = urllib3.PoolManager(retries=False, **trust)

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at ``path``.

        Raises:
            NetworkError: not reached, or an answer that is no JSON object.
            HubError: the service refuses.
        """
        return self._json("GET", path)

    def fetch(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes at ``path``, at most ``max_bytes`` of them; raises as :meth:`get`."""
        response = self._open("GET", path)
        try:
            content = response.read(max_bytes + 1)
        except HTTPError as error:
            raise NetworkError(f"{self.url} broke off: {plain_cause(error)}") from error
        finally:
            response.release_conn()
        if response.status != 200:
            raise _refusal(response.status, content)
        if len(content) > max_bytes:
            raise ProtocolError(f"{self.url}{path} has more than {max_bytes} bytes")
        return content

    def send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON object and return the one that comes back; raises as :meth:`get`."""
        content = json.dumps(body).encode()
        return self._json(method, path, body=content, headers={"content-type": "application/json"})

    def delete(self, path: str) -> dict[str, Any]:
        """Delete what is at ``path`` and return the JSON object that comes back; raises as :meth:`get`."""
        return self._json("DELETE", path)

    def upload(
        self, path: str, file: Path, query: dict[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        """Send a file as the body; ``query`` values that are lists are repeated. Raises as :meth:`get`."""
        size = file.stat().st_size
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        with file.open("rb") as content:
            headers = {"content-type": "application/octet-stream", "content-length": str(size)}
            body = _chunks(content, size, progress)
            return self._json("POST", target, body=body, headers=headers, read_s=_PUBLISH_S)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a JSON object and yield the server-sent JSON events until ``[DONE]``.

        Raises:
            NetworkError: not reached, or broken off.
            HubError: the service refuses, or reports an error in the stream.
        """
        content = json.dumps(body).encode()
        response = self._open("POST", path, body=content, headers={"content-type": "application/json"})
        try:
            if response.status != 200:
                raise _refusal(response.status, _read(response))
            yield from _events(response)
        except HTTPError as error:
            raise NetworkError(f"{self.url} broke off: {plain_cause(error)}") from error
        finally:
            response.close()

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._open(method, path, **options)
        try:
            content = _read(response)
        except HTTPError as error:
            raise NetworkError(f"{self.url} broke off: {plain_cause(error)}") from error
        finally:
            response.release_conn()
        if not 200 <= response.status < 300:
            raise _refusal(response.status, content)
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ProtocolError(f"{self.url} does not answer as an AutoGLM service does") from error
        if not isinstance(value, dict):
            raise ProtocolError(f"{self.url} does not answer as an AutoGLM service does")
        return cast("dict[str, Any]", value)

    def _open(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        read_s: float = _READ_S,
        body: Any = None,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                method,
                self.url + path,
                body=body,
                headers=self._headers | (headers or {}),
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=read_s),
                preload_content=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise NetworkError(f"{self.url} was not reached: {plain_cause(error)}") from error


def _chunks(file: IO[bytes], size: int, progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        sent += len(chunk)
        if progress is not None:
            progress(sent, size)


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    content = response.read(MAX_ANSWER_BYTES + 1)
    if len(content) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"the service's answer is larger than {MAX_ANSWER_BYTES} bytes")
    return content


def _refusal(status: int, content: bytes) -> AutoGLMError:
    """Return the service's refusal as our error, in its words if it has some."""
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the service answered {status}"
    return _ERRORS.get(status, HubError)(message)


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ProtocolError("the stream holds an event that is not JSON") from error
        if "error" in event:
            raise HubError(str(event["error"].get("message", "the stream ended with an error")))
        yield event
    raise NetworkError("the stream ended before the answer was complete")


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body's lines as they arrive."""
    pending = b""
    for piece in response.stream(1 << 16):
        pending += piece
        *whole, pending = pending.split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            raise ProtocolError("the stream holds a line without end")
        yield from whole
