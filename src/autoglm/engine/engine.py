"""The inference engine: many requests at once on one model, which can be replaced while they run.

One thread owns the model. It takes a step (one token for every running request) and between two steps it
obeys commands, so a swap is never seen halfway. What it guarantees: a request is computed by one release
from its first token to its last; a release that has not passed its self-test never answers anybody;
:meth:`Engine.rollback` brings back the very same weights; nothing a request or a release does stops the
engine.

    >>> with Engine.load(Path("releases/autoglm-phone-nano-v1.2")) as engine:            # doctest: +SKIP
    ...     engine.submit(GenerationRequest([Message("user", "你是谁?")])).result().answer
    ...     staged = engine.stage(Path("releases/autoglm-phone-nano-v1.3"))
    ...     if engine.self_test(staged).ok: engine.swap(staged)
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch

from autoglm.engine.aside import changing_hands_often, run_aside
from autoglm.engine.devices import MemoryPlan, pick_devices, pick_threads
from autoglm.engine.embedding import Content, EmbeddingBatch
from autoglm.engine.exclusive import Door, Exchange
from autoglm.engine.generation import Generation, GenerationRequest
from autoglm.engine.reception import AnswerListener, Reception
from autoglm.engine.release import Placement, Release, Resident, load_resident, plan_release
from autoglm.engine.reports import EngineStats, Staged, SwapReport
from autoglm.engine.scheduler import Limits
from autoglm.engine.selftest import SelfTestReport, examine, require_passed
from autoglm.engine.sequence import WaitingQueue
from autoglm.engine.staging import StagingArea
from autoglm.engine.supervision import SupervisedWorker
from autoglm.engine.versions import Versions

_log = logging.getLogger(__name__)

InFlight = Literal["pin", "drain"]
"""What a swap does with the requests under way."""
DRAIN_S = 120.0
STEP_S = 300.0


class Engine:
    """Serves one active release, and whichever others still have requests in flight.

    Every method may be called from every thread, also from an answer listener.

    Attributes:
        last_swap: what the last swap or rollback did; None before the first.
    """

    def __init__(
        self,
        resident: Resident,
        placement: Placement,
        *,
        queue: int = 64,
        threads: int | None = None,
        in_flight: InFlight = "pin",
        drain_s: float = DRAIN_S,
        step_s: float = STEP_S,
    ) -> None:
        """Start the engine's thread on a loaded release; see :meth:`load` for the usual way."""
        self.last_swap: SwapReport | None = None
        self._num_swaps = 0
        self._placement = placement
        self._in_flight, self._drain_s = in_flight, drain_s
        self._announcer = ThreadPoolExecutor(1, thread_name_prefix="autoglm-answers")
        self._versions = Versions(resident, self._bury)
        self._waiting = WaitingQueue(queue)
        self._door = Door(queue)
        self._reception = Reception(
            self._door, self._versions, self._waiting, lambda: self._worker.wake(), self._announcer
        )
        self._worker = SupervisedWorker(
            self._waiting,
            self._versions,
            Limits.of(placement),
            self._reception.see_out,
            threads=threads,
            step_s=step_s,
        )
        self._staging = StagingArea(placement, self._worker)
        self._exchange = Exchange(placement, self._versions, self._door, self._worker.call)

    @classmethod
    def load(
        cls,
        release_dir: Path | str,
        *,
        devices: str | Sequence[str] = "auto",
        threads: int | None = None,
        max_batch: int = 8,
        max_context: int | None = None,
        cache_tokens: int | None = None,
        queue: int = 64,
        in_flight: InFlight = "pin",
        drain_s: float = DRAIN_S,
        step_s: float = STEP_S,
    ) -> Engine:
        """Verify and load a release directory and start serving it.

        Args:
            release_dir: holds ``manifest.json`` and the files that it lists.
            devices: ``auto`` takes every visible CUDA device, else the CPU.
            threads: CPU threads of the engine; None chooses by the size of the model.
            max_batch: requests generated at the same time.
            max_context: tokens of prompt and answer together; None: what the model was made for.
            cache_tokens: tokens held for all requests together; None: ``max_batch`` whole contexts.
            queue: requests that may wait for their turn.
            in_flight: what a swap does with requests under way: ``pin`` lets them finish on their release
                while new ones begin on the next; ``drain`` lets new ones wait until they have ended.
            drain_s: longest wait for that, in seconds; those still under way then finish as with ``pin``.
                Where memory holds one release, a swap always drains, and is put off when this is over.
            step_s: longest computing of one step, in seconds; one that takes longer counts as hanging.

        Raises:
            ConfigError: a device is not there.
            TrustError: a file differs from the manifest.
            FormatError: a file does not parse.
            EngineError: it does not fit into memory, or its weights are not finite.
        """
        placement = Placement(pick_devices(devices), max_batch, max_context, cache_tokens)
        resident = run_aside(lambda: load_resident(Path(release_dir), placement), "load")
        plan = plan_release(Path(release_dir), placement)
        if plan.needed_bytes > plan.free:
            _log.warning(
                "no room for two releases that differ in every weight: an update may make requests wait "
                "while it loads; %s",
                plan,
            )
        threads = threads or pick_threads(resident.release.model.config)
        options: dict[str, Any] = {"queue": queue, "threads": threads}
        return cls(resident, placement, in_flight=in_flight, drain_s=drain_s, step_s=step_s, **options)

    # Requests

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request on the active release, or on the loaded one that it names.

        The conversation is turned into a prompt in the calling thread. During an exclusive swap it waits
        there for the release to come.

        Raises:
            RequestError: the prompt is too long, its media are unusable, or the release is not loaded.
            OverloadedError: the queue is full, or the engine is shutting down.
            EngineError: an exclusive swap left no release to answer.
        """
        return self._reception.submit(request)

    def embed(self, contents: Sequence[Content], *, release: str | None = None) -> EmbeddingBatch:
        """Prepare embeddings of contents, all by one release; nothing is computed until they are taken.

        Args:
            contents: at least one, each of one or more parts.
            release: a loaded version; None takes the active one.

        Raises:
            RequestError: a content is empty, too long or unusable (``param`` is ``input[i]``), or the release
                is not loaded.
            OverloadedError: the engine is shutting down.
        """
        return self._reception.embed(contents, release)

    def turn(self) -> Future[None] | None:
        """Return None when requests come in at once; else what is done when they may again.

        For callers that must not block a thread in :meth:`submit`, such as a server's event loop. Cancelling
        it gives the place in the queue up.

        Raises:
            OverloadedError: too many wait, or the engine is shutting down.
        """
        return self._door.turn()

    def on_answer(self, listener: AnswerListener) -> None:
        """Call ``listener(version, ok, finished)`` after every live answer, on a thread of its own.

        Cancelled requests are no answers. A listener may be slow, and may swap or roll back.
        """
        self._reception.listeners.append(listener)

    # Hot swap

    @property
    def active(self) -> Release:
        """The release that answers new requests."""
        return self._versions.active.release

    @property
    def active_version(self) -> str:
        """Its version."""
        return self.active.version

    @property
    def previous_version(self) -> str | None:
        """The version that a rollback returns to, while it is kept."""
        previous = self._versions.previous
        return None if previous is None else previous.release.version

    @property
    def loaded_versions(self) -> tuple[str, ...]:
        """The versions that a request may name, the active one first."""
        return self._versions.loaded

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that the layers are split over."""
        return self._placement.devices

    def room(self, release_dir: Path | str) -> MemoryPlan:
        """Return what a release needs beside the live one (``needed_bytes``), and ``free_bytes``.

        Raises:
            FormatError: its configuration does not parse.
        """
        beside = None if self._door.is_vacant else self.active
        return plan_release(Path(release_dir), self._placement, beside=beside)

    def stage(
        self, release_dir: Path | str, *, instead_of: Path | str | None = None, drain_s: float | None = None
    ) -> Staged:
        """Load a release and check all its bytes and values.

        Beside the live one, only the tensors that it changes take memory, and the reading rests while
        requests run.

        Args:
            release_dir: the release.
            instead_of: None loads it beside the live one. The live release's directory makes the swap
                exclusive: requests under way end, new ones wait, and the live release leaves memory before
                this one comes. Then :meth:`swap` lets requests go on, or :meth:`discard` loads
                ``instead_of`` again and lets them go on with that.
            drain_s: exclusive: longest wait for the requests under way, in seconds; the engine's when None.

        Raises:
            TrustError: a file differs from the manifest.
            FormatError: a file does not parse.
            OverloadedError: exclusive: requests did not end in time.
            EngineError: there is no room, or the weights are not finite.
        """
        directory = Path(release_dir)
        if instead_of is None and self._door.is_vacant:
            instead_of = directory
        if instead_of is not None:
            wait_s = self._drain_s if drain_s is None else drain_s
            return self._exchange.stage(directory, Path(instead_of), wait_s)
        return self._staging.load(directory, beside=self.active)

    def self_test(self, staged: Staged, *, budget_s: float = 60.0) -> SelfTestReport:
        """Run the staged release's health prompts beside the live one, resting while that one is busy.

        A release that hangs is abandoned and fails; nothing that it does raises.

        Raises:
            EngineError: it is no longer staged.
        """
        staged.report = self._staging.examine(staged.held(), budget_s)
        return staged.report

    def swap(self, staged: Staged) -> SwapReport:
        """Let the staged release answer new requests; keep the present one as the previous.

        Raises:
            HealthError: it has not passed its self-test.
            OverloadedError: the engine is closed.
            EngineError: it is no longer staged, or another swap is under way.
        """
        staged.held()
        require_passed(staged.version, staged.report)
        if staged.instead_of is not None:
            report = self._commit(lambda: self._versions.put_in(staged.take()))
            return replace(report, pause_s=self._exchange.finish())
        with self._drained() as drained_s:
            report = self._commit(lambda: self._versions.promote(staged.take()))
        self.last_swap = replace(report, drained_s=drained_s)
        return self.last_swap

    def rollback(self) -> SwapReport:
        """Let the previous release answer new requests again; the present one goes when it is unused.

        It never drains: what is left is thought to be bad.

        Raises:
            OverloadedError: the engine is closed.
            EngineError: no previous release is kept.
        """
        return self._commit(self._versions.revert)

    def release_previous(self) -> None:
        """Stop keeping the previous release: the trial of the active one is over."""
        self._worker.call(self._versions.drop_previous)

    def discard(self, staged: Staged) -> None:
        """Forget a staged release; harmless when it was swapped in or discarded already.

        Raises:
            TrustError, FormatError, EngineError: after an exclusive stage, the live release does not load
                any more.
        """
        resident, staged.resident = staged.resident, None
        if resident is not None and staged.instead_of is not None:
            self._exchange.restore(resident, staged.instead_of)

    def live_self_test(self, *, budget_s: float = 60.0) -> SelfTestReport:
        """Ask the active release's health prompts through the live path, as any caller would."""
        return examine(
            self.active.health,
            lambda request, seconds: self.submit(request).result(seconds),
            budget_s=budget_s,
        )

    # Operation

    @property
    def trouble(self) -> str | None:
        """Why a new request would not be answered just now; None when it would."""
        return self._door.trouble

    def stats(self) -> EngineStats:
        """Return the counters."""
        counters, active = self._worker.counters, self._versions.active
        return EngineStats(
            active=self.active_version,
            previous=self.previous_version,
            retiring=self._versions.num_retiring,
            running=self._worker.num_running,
            waiting=len(self._waiting),
            requests=self._reception.num_requests,
            finished=counters.finished,
            cancelled=counters.cancelled,
            failed=counters.failed,
            prompt_tokens=counters.prompt_tokens,
            reused_tokens=counters.reused_tokens,
            generated_tokens=counters.generated_tokens,
            preempted=counters.preempted,
            pages=active.pages.num_pages,
            free_pages=active.pages.num_free,
            kept_pages=active.pages.num_kept,
            encoding_hits=active.encodings.hits,
            encoding_misses=active.encodings.misses,
            steps=counters.steps,
            swaps=self._num_swaps,
            first_token=counters.first_token.copy(),
            next_token=counters.next_token.copy(),
        )

    def close(self, grace_s: float = 0.0) -> None:
        """Refuse new requests, let those accepted go on for ``grace_s`` seconds, end the rest with an error.

        Harmless when repeated.
        """
        self._reception.close()
        self._worker.close(grace_s)
        self._announcer.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _drained(self) -> contextlib.AbstractContextManager[float]:
        """Return a block before which requests end, where the engine drains; it yields how long that took."""
        if self._in_flight == "pin":
            return contextlib.nullcontext(0.0)
        return self._exchange.drained(self._drain_s)

    def _commit(self, change: Callable[[], None]) -> SwapReport:
        def commit() -> SwapReport:
            started_s = time.perf_counter()
            before = self.active_version
            change()
            self._num_swaps += 1
            pause_s = time.perf_counter() - started_s
            return SwapReport(before, self.active_version, pause_s, self._worker.num_running)

        with changing_hands_often():  # a commit that loses the lock half way has it back soon
            report: SwapReport = self._worker.call(commit)
        self.last_swap = report
        _log.info("release %s -> %s in %.3f ms", report.from_version, report.to_version, report.pause_s * 1e3)
        return report

    def _bury(self, resident: Resident) -> None:
        """Give the memory of a dropped release back on another thread: for a large one, that takes a while.

        One whose step was given up shares its weights with the one that took its place.
        """
        if not resident.is_lost:
            with contextlib.suppress(RuntimeError):  # closed: the memory goes with the engine
                self._announcer.submit(resident.unload)
