"""Requests on their way to servers: sent, tried again, counted, and told to listeners.

All of them live in one asyncio loop on a thread of its own; whoever submits or reads may be on any thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from autoglm.engine import Finished, GenerationRequest, Usage
from autoglm.engine.figures import Histogram
from autoglm.errors import BackendError, EngineError, OverloadedError, RequestError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway.asking import MAX_TRIES, Asked, NotReachedError, Upstream
from autoglm.service.gateway.release import ServedRelease
from autoglm.service.gateway.server import Server
from autoglm.service.gateway.traffic import Traffic
from autoglm.service.gateway.wire import body_of

_STEP_S = 0.05
_NOTHING = Usage(0, 0)
_COUNTED = (
    "requests",
    "finished",
    "cancelled",
    "failed",
    "prompt_tokens",
    "reused_tokens",
    "generated_tokens",
)

_log = logging.getLogger(__name__)

# Called after each live answer with: version, whether it came out well, how it ended (None when it failed).
AnswerListener = Callable[[str, bool, Finished | None], None]


@dataclass(frozen=True)
class Errand:
    """What is sent where.

    Attributes:
        request: what to generate.
        body: the same for vLLM.
        server: which computes it.
        release: what that server holds.
        is_live: whether a client asked, not a self-test.
    """

    request: GenerationRequest
    body: dict[str, Any]
    server: Server
    release: ServedRelease
    is_live: bool = True


class Answers:
    """Sends requests and keeps count of what became of them.

    Args:
        settings: of the backend.
        served_name: under which the servers serve their model.
        key: what they ask for.
        traffic: which counts requests in and out.
    """

    def __init__(
        self, settings: BackendSettings, served_name: str, key: str | None, traffic: Traffic
    ) -> None:
        self._settings, self._served_name, self._traffic = settings, served_name, traffic
        self._upstream = Upstream(settings, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="autoglm-vllm", daemon=True)
        self._announcer = ThreadPoolExecutor(1, thread_name_prefix="autoglm-answers")
        self._closed = False
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._first_token = Histogram()
        self.listeners: list[AnswerListener] = []
        self._thread.start()

    def ask(self, request: GenerationRequest, pick: Callable[[], Server]) -> Asked:
        """Send a client's request to the server that ``pick`` chooses, once it may answer.

        Raises:
            RequestError: it asks for what vLLM does not do, or for a release that is not loaded.
            OverloadedError: the server is down, too many wait, or it waited too long.
        """
        body = body_of(request, self._served_name)
        server, release = self._traffic.enter(pick)
        self._add(requests=1)
        return self._send(Errand(request, body, server, release))

    def examine(self, request: GenerationRequest, server: Server, release: ServedRelease) -> Asked:
        """Send a question of a self-test to a server, past the door.

        Raises:
            BackendError: the server does not hold the release any more.
        """
        if server.release is not release:
            raise BackendError(f"{server} does not hold {release.version} any more")
        return self._send(
            Errand(request, body_of(request, self._served_name), server, release, is_live=False)
        )

    def counts(self) -> dict[str, Any]:
        """Return the counters, by their names in :class:`~autoglm.engine.EngineStats`."""
        with self._lock:
            return {**self._counts, "first_token": self._first_token.copy()}

    def close(self) -> None:
        """End what is under way, cancelled, and the loop; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._announcer.shutdown(wait=False, cancel_futures=True)

    def _send(self, errand: Errand) -> Asked:
        asked = Asked(errand.release.version, errand.release.fingerprint, self._loop)
        self._loop.call_soon_threadsafe(lambda: asked.run(self._answer(asked, errand)))
        return asked

    async def _answer(self, asked: Asked, errand: Errand) -> None:
        started = time.monotonic()
        ending: Finished | EngineError
        try:
            ending = await self._tried(asked, errand)
        except asyncio.CancelledError:
            ending = Finished("cancelled", _NOTHING, asked.release, 0.0, time.monotonic() - started)
        except EngineError as error:
            ending = error
        except Exception as error:  # noqa: BLE001 - logged; every request ends with something
            _log.exception("asking %s", errand.server)
            ending = BackendError(f"the gateway broke: {type(error).__name__}")
        if errand.is_live:
            self._traffic.leave(errand.server)
            self._settle(errand, ending)
        asked.end(ending)

    async def _tried(self, asked: Asked, errand: Errand) -> Finished:
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self._upstream.answer(asked, errand.request, errand.server.url, errand.body)
            except NotReachedError:
                self._suspect(errand.server)
                if attempt == MAX_TRIES or not errand.is_live or not await self._back(errand):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _suspect(self, server: Server) -> None:
        """What the server holds is not certain any more: it may have been started again."""
        if not server.is_changing:
            self._traffic.change(lambda: setattr(server, "release", None))
            server.wake.set()

    async def _back(self, errand: Errand) -> bool:
        """Wait until the server is certain to hold the release again; return whether it does in time."""
        server, deadline = errand.server, time.monotonic() + self._settings.wait_seconds
        await asyncio.sleep(_STEP_S)
        while not (server.can_answer and server.release is errand.release):
            is_lost = not server.is_up or server.wanted is not errand.release
            if is_lost or time.monotonic() > deadline:
                return False
            await asyncio.sleep(_STEP_S)
        return True

    def _settle(self, errand: Errand, ending: Finished | EngineError) -> None:
        finished = ending if isinstance(ending, Finished) else None
        if finished is None:
            self._add(failed=1)
        elif finished.reason == "cancelled":
            self._add(cancelled=1)
        else:
            self._add_answer(finished)
        is_answer = not isinstance(ending, RequestError | OverloadedError)
        is_answer = is_answer and (finished is None or finished.reason != "cancelled")
        if is_answer and self.listeners and not self._closed:
            self._announcer.submit(self._announce, errand.release.version, finished)

    def _announce(self, version: str, finished: Finished | None) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(version, finished is not None, finished)
            except Exception:  # noqa: BLE001 - logged; a listener is not the gateway's business
                _log.exception("an answer listener broke")

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count

    def _add_answer(self, finished: Finished) -> None:
        usage = finished.usage
        self._add(
            finished=1,
            prompt_tokens=usage.prompt_tokens,
            reused_tokens=usage.cached_tokens,
            generated_tokens=usage.completion_tokens,
        )
        with self._lock:
            self._first_token.add(finished.first_token_s)

    async def _end_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._upstream.close()
