"""HTTP as it is parsed, for clients that do not mean well.

What it guarantees: a request head (or trailer) takes no more than :data:`MAX_HEAD_BYTES`, however many reads
from the network it comes in (one that is pipelined behind another request: twice as many); bytes that are no
HTTP are refused in the shape of all errors, and whoever is refused can read why; a head, a body or an answer
that does not get on is ended, and the place it held is free within :data:`LINGER_S`. Where an answer is
complete before the body has come, also because the service stops, the rest of that is thrown away, within
:data:`UNWANTED_S` and a bound on its bytes.
"""

from __future__ import annotations

import asyncio
import functools
import json
from http import HTTPStatus
from typing import Any, Literal, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from autoglm.service.answering import end_kindly
from autoglm.service.connections import MAX_UNWANTED_BYTES, SLOWEST_BYTES_PER_S, ConnectionLimits, Doorkeeper
from autoglm.service.problems import APIError

MAX_HEAD_BYTES = 64 << 10
LINGER_S = 2.0  # for a client that was refused to read why
UNWANTED_S = 20.0  # for a body whose answer is complete to come to its end


def bounded_protocol(doorkeeper: Doorkeeper) -> type[asyncio.Protocol]:
    """Return what uvicorn is to make of each connection."""
    return cast("type[asyncio.Protocol]", functools.partial(BoundedProtocol, doorkeeper))


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP, with a bound on what the parser keeps to itself, and on how slow it may be fed."""

    def __init__(self, doorkeeper: Doorkeeper, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._doorkeeper = doorkeeper
        self._kept_bytes = 0  # received since the parser last handed something on
        self._arriving: Literal["nothing", "head", "body"] = "nothing"
        self._since = doorkeeper.clock()  # when that began; of a body, when its present window did
        self._window_bytes = 0
        self._unwanted_bytes = 0
        self._is_refused = self._is_outside = self._is_lingering = False
        self._unsent_bytes = 0
        self._unsent_since = self._since

    @property
    def address(self) -> str:
        """Who is at the other end of the wire."""
        return self.client[0] if self.client else ""

    # -- what uvicorn calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is a place."""
        super().connection_made(transport)
        if not self._doorkeeper.enter(self):  # told so when it has asked, or has not for a while
            self._is_outside = True
            self._doorkeeper.turn_away(self)
            self.loop.call_later(LINGER_S, self._tell_it_has_no_place)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._doorkeeper.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, in pieces that are no longer than what may be kept of a head."""
        if self._is_outside:
            self._tell_it_has_no_place()
        while data and not (self._is_refused or self.transport.is_closing()):
            room = MAX_HEAD_BYTES + 1 - self._kept_bytes
            self._take(data[:room])
            data = data[room:]
        if self._is_refused:
            self._throw_away(len(data))

    def _take(self, data: bytes) -> None:
        if self._arriving == "nothing":
            self._arrives("head")
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._kept_bytes > MAX_HEAD_BYTES and not (self._is_refused or self.transport.is_closing()):
            message = f"the request's head is larger than the {MAX_HEAD_BYTES} bytes that are allowed"
            self._refuse(APIError(431, message, code="head_too_large"))

    def on_message_begin(self) -> None:
        """Begin to read a head."""
        self._arrives("head")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._kept_bytes = 0
        self._arrives("body")
        self._doorkeeper.speak(self)
        before = cast("RequestResponseCycle | None", self.cycle)
        super().on_headers_complete()
        if self.cycle is not before:
            end_kindly(self.cycle, self.transport, self._close_after_answer)

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of a body; what was answered already is thrown away, within a bound."""
        self._kept_bytes = 0
        self._window_bytes += len(body)
        if self.cycle.response_complete:
            self._throw_away(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._kept_bytes = 0
        self._arrives("nothing")
        super().on_message_complete()
        if self._is_lingering:
            self.transport.close()
        elif self.cycle.response_complete:
            self._doorkeeper.fall_silent(self)

    def on_response_complete(self) -> None:
        """End an answer."""
        super().on_response_complete()
        if self._arriving != "body" and self.cycle.response_complete:
            self._doorkeeper.fall_silent(self)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._refuse(APIError(400, "this is no valid HTTP request", code="invalid_http"))

    def _throw_away(self, count: int) -> None:
        self._unwanted_bytes += count
        if self._unwanted_bytes > MAX_UNWANTED_BYTES:
            self.transport.close()

    def shutdown(self) -> None:
        """End when the service does: at once, with the answer, or with a body that has its answer already."""
        if self._is_outside:
            self._tell_it_has_no_place()
        elif self._is_lingering:
            return
        elif self._arriving == "body" and self.cycle.response_complete:
            self._linger(UNWANTED_S)
        else:
            super().shutdown()

    def _close_after_answer(self) -> None:
        if self._arriving == "body" and self.cycle.response_complete and not self._is_lingering:
            self._linger(UNWANTED_S)
        else:
            self.transport.close()

    # -- what the doorkeeper calls ------------------------------------------------------------------

    def make_way(self) -> None:
        """Close a connection on which nothing is under way."""
        if self._is_outside:
            self._tell_it_has_no_place()
        self._unset_keepalive_if_required()
        self.transport.close()

    def inspect(self, now: float, limits: ConnectionLimits) -> None:
        """End what does not get on."""
        if self._is_stalled(now, limits.stall_seconds):
            self._let_go()
            self.transport.abort()
        elif self._is_refused or self.transport.is_closing() or now - self._since < limits.slow_seconds:
            return
        elif self._arriving == "head":
            self._refuse(APIError(408, "the request's head did not arrive in time", code="too_slow"))
        elif self._arriving == "body":
            self._inspect_body(now, limits.slow_seconds)
        elif (
            cast("RequestResponseCycle | None", self.cycle) is None
        ):  # connected, and never said anything; uvicorn ends those that did
            self.transport.close()

    def _inspect_body(self, now: float, seconds: float) -> None:
        waits_for_us = self.flow.read_paused
        if not waits_for_us and self._window_bytes < seconds * SLOWEST_BYTES_PER_S:
            if self.cycle.response_complete:  # it had its answer: the rest of its body is not wanted
                self.transport.close()
                return
            self._refuse(APIError(408, "the request's body did not arrive in time", code="too_slow"))
        self._since, self._window_bytes = now, 0

    def _is_stalled(self, now: float, seconds: float) -> bool:
        """Tell whether the other side takes nothing of what was written."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent_bytes:
            self._unsent_since = now
        self._unsent_bytes = unsent
        return now - self._unsent_since > seconds

    def _arrives(self, what: Literal["nothing", "head", "body"]) -> None:
        if what == "head" and self._arriving == "head":
            return  # its first bytes count
        self._arriving, self._since, self._window_bytes = what, self._doorkeeper.clock(), 0

    def _let_go(self) -> None:
        """Let what serves this request know that nobody is there any more."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_writing()

    def _tell_it_has_no_place(self) -> None:
        message = "too many connections are open: try again in a few seconds"
        problem = APIError(503, message, type="overloaded_error", code="too_many_connections")
        if not self.transport.is_closing():
            self._refuse(problem, {"retry-after": "5"})

    def _refuse(self, problem: APIError, headers: dict[str, str] | None = None) -> None:
        if self._is_lingering and not self._is_refused:  # it had its answer
            self.transport.close()
        if self._is_refused or self._is_lingering:
            return
        self._is_refused = True
        content = json.dumps(problem.body).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n"
        )
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()) + "\r\n"
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if not answering:  # in the middle of an answer there is no place for another one
            self.transport.write(head.encode() + content)
        self._let_go()
        if answering or self.pipeline:
            self.transport.close()
        else:
            self._linger()

    def _linger(self, seconds: float = LINGER_S) -> None:
        """Close once the client has read its answer: what it still sends would otherwise undo that."""
        self._is_lingering = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(seconds, self.transport.close)
