"""The end of an answer, as clients need it.

What it guarantees: a client whose body is still on its way when the answer is complete gets to read that
answer, because closing at once would reset the connection and undo it (RFC 9112, section 9.6); a client of
HTTP/1.0, which knows no chunks, gets an answer of unknown length as it is, ended by the end of the connection
(RFC 9112, section 6.3).

    >>> end_kindly(cycle, transport, lambda: print("once its body has come"))               # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class _Ending:
    """The transport as an answer sees it: what closing means is not the answer's to say."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


def end_kindly(cycle: RequestResponseCycle, transport: asyncio.Transport, close: Callable[[], None]) -> None:
    """Let an answer that would close its connection call ``close``; give HTTP/1.0 what it understands."""
    cycle.transport = cast("asyncio.Transport", _Ending(transport, close))
    if cycle.scope["http_version"] == "1.0":
        _without_chunks(cycle)


def _without_chunks(cycle: RequestResponseCycle) -> None:
    """Send an answer whose length is not known as it is."""
    send, is_unsized = cycle.send, False

    async def plain(message: Any) -> None:
        nonlocal is_unsized
        if message["type"] == "http.response.start":
            is_unsized = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if is_unsized:
                cycle.chunked_encoding = False
        elif is_unsized:  # each piece has the length that it has
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = plain  # type: ignore[method-assign]
