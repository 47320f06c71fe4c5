"""HTTP as it is parsed, for clients that do not mean well.

What it guarantees: a request head (or trailer) that does not end takes no more than :data:`MAX_HEAD_BYTES`
and one read from the network; bytes that are no HTTP are refused in the shape of all errors.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from autoglm.service.problems import APIError

MAX_HEAD_BYTES = 64 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP, with a bound on what the parser keeps to itself."""

    _kept_bytes = 0  # received since the parser last handed something on

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._kept_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            message = f"the request's head is larger than the {MAX_HEAD_BYTES} bytes that are allowed"
            self._refuse(APIError(431, message, code="head_too_large"))

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._kept_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of a body."""
        self._kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._kept_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(APIError(400, "this is no valid HTTP request", code="invalid_http"))

    def _refuse(self, problem: APIError) -> None:
        content = json.dumps(problem.body).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if not answering:  # in the middle of an answer there is no place for another one
            self.transport.write(head.encode() + content)
        self.transport.close()
