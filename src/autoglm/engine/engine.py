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

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from autoglm.engine import sequence as sequences
from autoglm.engine.aside import run_aside
from autoglm.engine.devices import MemoryPlan, pick_devices, pick_threads
from autoglm.engine.exclusive import Door, Exchange
from autoglm.engine.generation import Finished, Generation, GenerationRequest
from autoglm.engine.release import Placement, Release, Resident, load_resident, plan_release
from autoglm.engine.reports import EngineStats, Staged, SwapReport
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.selftest import SelfTestReport, examine, examine_resident
from autoglm.engine.versions import Versions
from autoglm.engine.worker import Worker
from autoglm.errors import EngineError, RequestError

_log = logging.getLogger(__name__)

# Called after each live answer with: version, whether it came out well, how it ended (None when it failed).
AnswerListener = Callable[[str, bool, Finished | None], None]


class Engine:
    """Serves one active release, and whichever others still have requests in flight.

    Every method may be called from every thread, also from an answer listener.
    """

    def __init__(
        self, resident: Resident, placement: Placement, *, queue: int = 64, threads: int | None = None
    ) -> None:
        """Start the engine's thread on a loaded release; see :meth:`load` for the usual way."""
        self._placement = placement
        self._versions = Versions(resident)
        self._waiting = sequences.WaitingQueue(queue)
        self._scheduler = Scheduler(self._waiting, Limits.of(placement), self._on_end)
        self._num_requests = 0
        self._num_swaps = 0
        self._counting = threading.Lock()
        self._listeners: list[AnswerListener] = []
        self._announcer = ThreadPoolExecutor(1, thread_name_prefix="autoglm-answers")
        self._worker = Worker(self._scheduler, threads=threads)
        self._door = Door(queue)
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
            _log.warning("no room for two releases: an update makes requests wait while it loads; %s", plan)
        threads = threads or pick_threads(resident.release.model.config)
        return cls(resident, placement, queue=queue, threads=threads)

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
        with self._door.entering():
            sequence = self._accept(request)
        with self._counting:
            self._num_requests += 1
        self._worker.wake()
        return sequence.generation

    def on_answer(self, listener: AnswerListener) -> None:
        """Call ``listener(version, ok, finished)`` after every live answer, on a thread of its own.

        Cancelled requests are no answers. A listener may be slow, and may swap or roll back.
        """
        self._listeners.append(listener)

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
        return plan_release(Path(release_dir), self._placement)

    def stage(
        self, release_dir: Path | str, *, instead_of: Path | str | None = None, drain_s: float = 120.0
    ) -> Staged:
        """Load a release and check all its bytes and values.

        Args:
            release_dir: the release.
            instead_of: None loads it beside the live one. The live release's directory makes the swap
                exclusive: requests under way end, new ones wait, and the live release leaves memory before
                this one comes. Then :meth:`swap` lets requests go on, or :meth:`discard` loads
                ``instead_of`` again and lets them go on with that.
            drain_s: exclusive: longest wait for the requests under way, in seconds.

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
            return self._exchange.stage(directory, Path(instead_of), drain_s)
        beside = self.active
        resident = run_aside(lambda: load_resident(directory, self._placement, beside=beside), "stage")
        return Staged(resident.release.version, resident)

    def self_test(self, staged: Staged, *, budget_s: float = 60.0) -> SelfTestReport:
        """Run the staged release's health prompts beside the live one, resting while that one is busy.

        A release that hangs is abandoned and fails; nothing that it does raises.

        Raises:
            EngineError: it is no longer staged.
        """
        resident = staged.held()
        try:
            # The prompts stop themselves at the budget; only a step that never returns outlasts the double.
            report = run_aside(
                lambda: examine_resident(
                    resident, budget_s=budget_s, is_live_busy=lambda: bool(self._scheduler.running)
                ),
                "self-test",
                timeout_s=2 * budget_s,
            )
        except Exception as error:  # noqa: BLE001 - whatever a release does in its test is its failure
            report = SelfTestReport(False, 0.0, 0.0, 0.0, 0, (f"the self-test broke off: {error}",))
        staged.report = report
        return report

    def swap(self, staged: Staged) -> SwapReport:
        """Let the staged release answer new requests; keep the present one as the previous.

        Raises:
            HealthError: it has not passed its self-test.
            EngineError: it is no longer staged, or the engine is closed.
        """
        resident = staged.held()
        staged.require_health()
        is_exclusive = staged.instead_of is not None
        place = self._versions.put_in if is_exclusive else self._versions.promote
        report = self._commit(lambda: place(resident))
        staged.resident = None
        return replace(report, pause_s=self._exchange.finish()) if is_exclusive else report

    def rollback(self) -> SwapReport:
        """Let the previous release answer new requests again; the present one goes when it is unused.

        Raises:
            EngineError: no previous release is kept, or the engine is closed.
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

    def stats(self) -> EngineStats:
        """Return the counters."""
        counters, active = self._scheduler.counters, self._versions.active
        return EngineStats(
            active=self.active_version,
            previous=self.previous_version,
            retiring=self._versions.num_retiring,
            running=len(self._scheduler.running),
            waiting=len(self._waiting),
            requests=self._num_requests,
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
        self._door.close()
        self._waiting.close()
        self._worker.close(grace_s)
        self._announcer.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _accept(self, request: GenerationRequest) -> sequences.Sequence:
        resident = self._versions.acquire(request.release)
        try:
            with torch.inference_mode():
                sequence = sequences.Sequence(request, resident)
            self._waiting.put(sequence)
        except BaseException:
            self._versions.let_go(resident)
            raise
        return sequence

    def _commit(self, change: Callable[[], None]) -> SwapReport:
        def commit() -> SwapReport:
            started_s = time.perf_counter()
            before = self.active_version
            change()
            self._num_swaps += 1
            pause_s = time.perf_counter() - started_s
            return SwapReport(before, self.active_version, pause_s, len(self._scheduler.running))

        report: SwapReport = self._worker.call(commit)
        _log.info("release %s -> %s in %.3f ms", report.from_version, report.to_version, report.pause_s * 1e3)
        return report

    def _on_end(self, sequence: sequences.Sequence, ending: Finished | EngineError) -> None:
        """Settle a sequence that ended, and tell the listeners when it was an answer."""
        self._versions.let_go(sequence.resident)
        if isinstance(ending, Finished):
            is_answer, ok, finished = ending.reason != "cancelled", True, ending
        else:
            is_answer, ok, finished = not isinstance(ending, RequestError), False, None
        if is_answer and self._listeners and not self._worker.is_closing:
            self._announcer.submit(self._announce, sequence.generation.release, ok, finished)

    def _announce(self, version: str, ok: bool, finished: Finished | None) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(version, ok, finished)
            except Exception:  # noqa: BLE001 - logged; a listener is not the engine's business
                _log.exception("an answer listener broke")
