"""The gateway: answers requests through vLLM servers, and changes their release while they are used.

What it guarantees: a request is computed by one release from its first token to its last; a release that has
not passed its self-test answers nobody; whatever fails, the release before it answers again, checked.

With one server, a change makes new requests wait at the door, lets those under way end, and opens the door
when the server holds the new release, or the old one again. With two, the other one gets the new release and
is tested while the first one answers; then new requests go to it, and those under way end where they began.

    >>> with open_gateway(release_dir, settings) as gateway:                              # doctest: +SKIP
    ...     gateway.submit(GenerationRequest([Message("user", "你是谁?")])).result().answer
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from autoglm.device.runtime import FileRoom
from autoglm.engine import EngineStats, Generation, GenerationRequest, SelfTestReport, SwapReport
from autoglm.engine.figures import Histogram
from autoglm.engine.selftest import examine, require_passed
from autoglm.errors import EngineError, RequestError
from autoglm.service.backend_settings import BackendSettings
from autoglm.service.gateway.answers import AnswerListener, Answers
from autoglm.service.gateway.loading import Loader
from autoglm.service.gateway.pool import Pool
from autoglm.service.gateway.release import Checkpoints, ServedRelease
from autoglm.service.gateway.server import Server
from autoglm.service.gateway.staged import StagedRelease
from autoglm.service.gateway.staging import StagingArea
from autoglm.service.gateway.traffic import Traffic
from autoglm.service.gateway.watch import Watch

TEST_S = 120.0
_END_S = 30.0

_log = logging.getLogger(__name__)


class Gateway:
    """In the shape of :class:`~autoglm.engine.Engine`; every method may be called from every thread.

    Args:
        servers: one, or two of which the first is the active one.
        settings: of the backend.
        served_name: under which the servers serve their model.
        key: what they ask for.
        checkpoints: from which they load.
        queue: how many requests may wait at the door.

    Attributes:
        last_swap: what the last swap or rollback did; None before the first.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        settings: BackendSettings,
        *,
        served_name: str,
        key: str | None,
        checkpoints: Checkpoints,
        queue: int,
    ) -> None:
        self._pool = Pool(servers)
        self._settings, self._served_name = settings, served_name
        self._stopped = threading.Event()
        self._changing = threading.RLock()
        self._num_swaps = 0
        self.last_swap: SwapReport | None = None
        self._watches: list[threading.Thread] = []
        self._traffic = Traffic(queue, settings.wait_seconds)
        self._answers = Answers(settings, served_name, key, self._traffic)
        self._loader = Loader(settings, checkpoints, self._traffic, self._stopped.wait)
        self._staging = StagingArea(
            self._pool, settings, checkpoints, self._loader, self._traffic, self._changing
        )

    # What runs

    @property
    def active(self) -> ServedRelease:
        """The release that answers new requests, or will when its server is back.

        Raises:
            EngineError: there is none.
        """
        return self._pool.release

    @property
    def active_version(self) -> str:
        """Its version."""
        return self.active.version

    @property
    def previous_version(self) -> str | None:
        """The version that a rollback returns to, while its server is kept."""
        return self._pool.previous_version

    @property
    def loaded_versions(self) -> tuple[str, ...]:
        """The versions that a request may name, the active one first."""
        return self._pool.loaded_versions

    @property
    def devices(self) -> tuple[str, ...]:
        """The servers, the active one first."""
        return tuple(f"vllm {server.url}" for server in self._pool.in_order)

    @property
    def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can, or will when a change is over."""
        server = self._pool.active
        if not server.is_up:
            return f"{server} is down"
        if server.release is None and not server.is_changing:
            return f"it is not certain what {server} holds"
        return None

    # Requests

    def submit(self, request: GenerationRequest) -> Generation:
        """Send a request to the server of the active release, or of the loaded one that it names.

        While that server changes its release, the request waits here.

        Raises:
            RequestError: the release is not loaded, or it asks for what vLLM does not do.
            OverloadedError: the server is down, too many wait, or it waited too long.
        """
        return self._answers.ask(request, lambda: self._pool.find(request.release))

    def turn(self) -> Future[None] | None:
        """Return None when requests come in at once; else what is done when they may again.

        Raises:
            OverloadedError: the server is down, too many wait, or the gateway closes.
        """
        return self._traffic.turn(lambda: self._pool.active)

    def embed(self, _contents: Sequence[Any], *, release: str | None = None) -> NoReturn:
        """Refuse: a vLLM server that serves a chat model computes no embeddings.

        Raises:
            RequestError: always.
        """
        raise RequestError("embeddings are not available with the vLLM backend")

    def on_answer(self, listener: AnswerListener) -> None:
        """Call ``listener(version, ok, finished)`` after every live answer, on a thread of its own."""
        self._answers.listeners.append(listener)

    # Hot update

    def room(self, _directory: Path | str) -> FileRoom:
        """Tell whether a release can be loaded beside the live one: with two servers it can."""
        return FileRoom(0, 1) if len(self._pool.servers) > 1 else FileRoom(1, 0)

    def stage(self, release_dir: Path | str, *, instead_of: Path | str | None = None) -> StagedRelease:
        """Give a release to the server that answers nobody, or, where there is one only, to that.

        Args:
            release_dir: the release.
            instead_of: the live release; it is known here, so this changes nothing.

        Raises:
            TrustError: a file differs from the manifest.
            FormatError: a file does not parse.
            OverloadedError: not now: answers did not end in time, or the server is down.
            EngineError: it cannot be loaded; the release before it answers.
        """
        del instead_of
        return self._staging.stage(Path(release_dir))

    def self_test(self, staged: StagedRelease, *, budget_s: float = TEST_S) -> SelfTestReport:
        """Ask the staged release its health prompts, through the server that holds it.

        Raises:
            EngineError: it is no longer staged.
        """
        staged.require_staged()
        staged.report = self._examine(staged.server, staged.release, budget_s)
        return staged.report

    def swap(self, staged: StagedRelease) -> SwapReport:
        """Let the staged release answer new requests.

        Raises:
            HealthError: it has not passed its self-test.
            EngineError: it is no longer staged, or its server does not hold it any more.
        """
        staged.require_staged()
        require_passed(staged.version, staged.report)
        self._loader.require_held(staged.server, staged.release)
        started = time.monotonic()
        before, left = staged.instead_of, self._pool.active
        from_version = self.active_version if before is None else before.version
        self._traffic.change(lambda: self._put_in(staged))
        if before is None:
            return self._swapped(from_version, time.monotonic() - started, left.in_flight)
        self._traffic.open()
        return self._swapped(from_version, time.monotonic() - staged.since, 0)

    def discard(self, staged: StagedRelease) -> None:
        """Forget a staged release; where it took the only server, give that the one before again.

        Raises:
            EngineError: the server cannot be given it now; that is tried again until it succeeds.
        """
        self._staging.discard(staged)

    def rollback(self) -> SwapReport:
        """Let the server of the previous release answer new requests again.

        Raises:
            EngineError: it is not kept, or does not hold it any more.
        """
        with self._changing:
            previous, left, started = self._pool.previous, self._pool.active, time.monotonic()
            if previous is None or previous.release is None:
                raise EngineError("no server holds the previous release")
            from_version = self.active_version
            self._traffic.change(lambda: self._pool.turn_to(previous, None))
            report = self._swapped(from_version, time.monotonic() - started, left.in_flight)
        threading.Thread(target=self._staging.retire, args=(left,), daemon=True).start()
        return report

    def release_previous(self) -> None:
        """Stop keeping the server of the previous release: the trial is over."""
        previous, self._pool.previous = self._pool.previous, None
        if previous is not None:
            threading.Thread(target=self._staging.retire, args=(previous,), daemon=True).start()
        else:
            self._staging.keep_wanted()

    def live_self_test(self, *, budget_s: float = TEST_S) -> SelfTestReport:
        """Ask the active release's health prompts through the live path, as any caller would."""
        return examine(
            self.active.health,
            lambda request, seconds: self.submit(request).result(seconds),
            budget_s=budget_s,
        )

    # Operation

    def begin(self, release: ServedRelease) -> None:
        """See that the active server holds a release, giving it that and testing it, and watch from now on.

        Raises:
            EngineError: it cannot be loaded, or fails its self-test.
            BackendError: the server is not reached.
            ConfigError: the server cannot be used in this way.
        """
        if self._pool.active.process is None:
            self._pool.active = self._loader.meet(self._pool.servers, release)
        server = self._pool.active
        if server.process is None and self._loader.holds(server, release):
            self._loader.take_over(server, release)
        else:
            self._loader.bring(server, release)
        self._loader.require_name(server, self._served_name)
        report = self._examine(server, release, TEST_S)
        require_passed(release.version, report)
        self._staging.keep_wanted()
        for each in self._pool.servers:
            watch = Watch(
                each, self._settings, self._loader, self._traffic, self._changing, self._stopped.wait
            )
            self._watches.append(threading.Thread(target=watch.run, name=f"watch-{each.name}", daemon=True))
            self._watches[-1].start()

    def stats(self) -> EngineStats:
        """Return the counters; what only an engine of this process could count is 0."""
        known: dict[str, Any] = self._answers.counts() | {
            "active": self.active_version,
            "previous": self.previous_version,
            "running": sum(server.in_flight for server in self._pool.servers),
            "waiting": self._traffic.num_waiting,
            "swaps": self._num_swaps,
        }
        values: dict[str, Any] = dict.fromkeys((entry.name for entry in fields(EngineStats)), 0)
        values["next_token"] = Histogram()
        return EngineStats(**{**values, **known})

    def close(self, grace_s: float = 0.0) -> None:
        """Refuse new requests, let those accepted go on for ``grace_s`` seconds, end the rest and all servers
        that were started here.

        Harmless when repeated.
        """
        self._traffic.close()
        deadline = time.monotonic() + grace_s
        for server in self._pool.servers:
            self._traffic.drain(server, max(0.0, deadline - time.monotonic()))
        self._stopped.set()
        for server in self._pool.servers:
            server.wake.set()
        self._answers.close()
        # Whoever brings a release gives up first, so that nothing is started any more.
        is_mine = self._changing.acquire(timeout=_END_S)
        for server in self._pool.servers:
            if server.process is not None:
                server.process.stop()
            server.admin.close()
        if is_mine:
            self._changing.release()
        for watch in self._watches:
            watch.join(_END_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _examine(self, server: Server, release: ServedRelease, budget_s: float) -> SelfTestReport:
        return examine(
            release.health,
            lambda request, seconds: self._answers.examine(request, server, release).result(seconds),
            budget_s=budget_s,
        )

    def _put_in(self, staged: StagedRelease) -> None:
        staged.is_over, staged.server.is_changing = True, False
        if staged.instead_of is None:
            self._pool.turn_to(staged.server, self._pool.active)

    def _swapped(self, from_version: str, pause_s: float, in_flight: int) -> SwapReport:
        self._num_swaps += 1
        report = self.last_swap = SwapReport(from_version, self.active_version, pause_s, in_flight)
        _log.info("release %s -> %s in %.1f ms", from_version, report.to_version, pause_s * 1e3)
        return report
