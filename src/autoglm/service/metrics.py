"""``GET /metrics``: what happens here, for Prometheus.

What it guarantees: labels have few values, all of them of this process's own making (a route's template, a
status, a version that is loaded), so nobody can fill the memory by asking for odd things; a scrape looks at
counters and at one snapshot of the hub, and waits for no request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from autoglm.errors import AutoGLMError
from autoglm.service.problems import ErrorAnswer
from autoglm.service.state import ServiceState, state_of

if TYPE_CHECKING:
    from autoglm.engine import EngineStats

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 429)
}

router = APIRouter(tags=["health"], responses=_FAILURES)


class _Everything:
    """All metrics of one service, as prometheus_client takes them."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its present values."""
        yield from self._state.metrics.registry.collect()
        yield _gauge("ready", "Whether requests are answered now.", self._state.unready is None)
        if self._state.engine is not None:
            yield self._release()
            yield from engine_metrics(self._state.engine.stats())
        if self._state.hub is not None:
            yield from self._hub_metrics()

    def _release(self) -> Metric:
        active = self._state.some_engine.active
        release = InfoMetricFamily("autoglm_release", "The release that answers new requests.")
        labels = {"model": active.manifest.model, "version": active.version}
        release.add_metric([], labels | {"fingerprint": active.fingerprint})
        return release

    def _hub_metrics(self) -> Iterator[Metric]:
        try:
            info = self._state.some_hub.info()
        except AutoGLMError:  # the tables do not answer: the rest is worth knowing all the more
            return
        yield _gauge("hub_releases", "Releases published.", info.releases)
        yield _gauge("hub_rollouts_offering", "Roll-outs that offer a release now.", info.active_rollouts)
        yield _gauge("hub_packages_unfinished", "Packages that wait or are made.", info.unfinished_packages)


def engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    """Yield what the engine counts."""
    yield _gauge("engine_running", "Requests being computed.", stats.running)
    yield _gauge("engine_waiting", "Requests in the queue.", stats.waiting)
    yield _gauge("engine_releases_retiring", "Older releases that only finish requests.", stats.retiring)
    yield _gauge("engine_pages", "Pages of the active release's cache.", stats.pages)
    yield _gauge("engine_pages_free", "Of these, pages that no request holds.", stats.free_pages)
    yield _gauge("engine_pages_kept", "Pages that another prompt may begin with.", stats.kept_pages)
    yield _counter("engine_requests", "Requests accepted.", stats.requests)
    ended = CounterMetricFamily(
        "autoglm_engine_requests_ended", "Requests that ended, by how.", labels=["how"]
    )
    for how in ("finished", "cancelled", "failed"):
        ended.add_metric([how], getattr(stats, how))
    yield ended
    yield _counter("engine_prompt_tokens", "Tokens of prompts.", stats.prompt_tokens)
    yield _counter("engine_reused_tokens", "Tokens of prompts found in the cache.", stats.reused_tokens)
    yield _counter("engine_generated_tokens", "Tokens written.", stats.generated_tokens)
    yield _counter("engine_preempted", "Requests put back for want of pages.", stats.preempted)
    yield _counter("engine_encoding_hits", "Media whose embedding was there.", stats.encoding_hits)
    yield _counter("engine_encoding_misses", "Media that were embedded.", stats.encoding_misses)
    yield _counter("engine_steps", "Steps taken.", stats.steps)
    yield _counter("engine_swaps", "Swaps and rollbacks committed.", stats.swaps)
    for name, about, histogram in (
        ("first_token", "From submission to the first token.", stats.first_token),
        ("next_token", "Between two tokens of a request.", stats.next_token),
    ):
        yield _histogram(f"engine_{name}_seconds", about, histogram)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"autoglm_{name}", about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"autoglm_{name}", about, value=value)


def _histogram(name: str, about: str, values: Any) -> Metric:
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip((*map(str, values.bounds), "+Inf"), values.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(f"autoglm_{name}", about, buckets=buckets, sum_value=values.total)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Show what is counted here, in Prometheus's text format."""
    state = state_of(request)
    if not state.settings.auth.open_metrics:
        state.access.metrics_route(request)
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    content = await anyio.to_thread.run_sync(lambda: encode(_Everything(state)))  # type: ignore[arg-type]
    return Response(content, media_type=kind)
