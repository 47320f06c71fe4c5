"""Requests counted by route, method and status; see :mod:`autoglm.service.metrics`."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import Message, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UNMATCHED = "none"


class HttpMetrics:
    """Counts requests by route, method and status.

    Attributes:
        registry: of these metrics and of the process's own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ["method", "route", "status"]
        self._requests = Counter(
            "autoglm_http_requests", "Requests answered.", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "autoglm_http_request_seconds",
            "From a request's head to the end of its answer, streams included.",
            ["method", "route"],
            buckets=_BOUNDS,
            registry=self.registry,
        )
        self._open = Gauge(
            "autoglm_http_requests_in_progress", "Requests being answered.", registry=self.registry
        )

    async def measure(self, app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request by ``app``, and count it."""
        status, started_s = 500, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open.inc()
        try:
            await app(scope, receive, watch)
        finally:
            self._open.dec()
            self._count(scope, status, time.perf_counter() - started_s)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or scope.get("answered", _UNMATCHED)
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
