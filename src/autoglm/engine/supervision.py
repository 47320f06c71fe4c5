"""A worker under watch: when a step hangs, the next worker goes on where it stopped.

What it guarantees: commands that wait for the hanging step are obeyed by the next worker, in their order;
requests that wait are computed; those under way end with an error; the release keeps its weights and begins
with an empty cache, since the thread left behind may still write to the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from autoglm.engine.figures import Counters
from autoglm.engine.release import Resident
from autoglm.engine.scheduler import Limits, OnEnd, Scheduler
from autoglm.engine.sequence import WaitingQueue
from autoglm.engine.versions import Versions
from autoglm.engine.watch import Watch
from autoglm.engine.worker import Worker
from autoglm.errors import EngineError

_log = logging.getLogger(__name__)


class SupervisedWorker:
    """Used like the :class:`~autoglm.engine.worker.Worker` of the moment, which it replaces when need be.

    Args:
        waiting: where sequences come from.
        versions: the table of what is loaded.
        limits: bounds of a step.
        on_end: called once a sequence, before its caller hears that it ended.
        threads: CPU threads of the worker; None leaves them as they are.
        step_s: longest computing of one step, in seconds.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        versions: Versions,
        limits: Limits,
        on_end: OnEnd,
        *,
        threads: int | None,
        step_s: float,
    ) -> None:
        self._waiting, self._versions = waiting, versions
        self._limits, self._on_end, self._threads = limits, on_end, threads
        self._is_closed = False
        self._scheduler = Scheduler(waiting, limits, on_end)
        self._worker = Worker(self._scheduler, threads=threads)
        self._watch = Watch(step_s, self._look)

    @property
    def num_running(self) -> int:
        """Requests being generated."""
        return len(self._scheduler.running)

    @property
    def counters(self) -> Counters:
        """What was done since the start, by all workers."""
        return self._scheduler.counters

    def wake(self) -> None:
        """Look at the queue again: a sequence was put there."""
        self._worker.wake()

    def call(self, command: Callable[[], Any]) -> Any:
        """Run ``command`` on the worker's thread between two steps and return its result.

        Raises:
            OverloadedError: the worker is closed.
            Exception: whatever ``command`` raises.
        """
        return self._worker.call(command)

    def post(self, command: Callable[[], None]) -> None:
        """Run ``command`` on the worker's thread between two steps, without waiting; not once closed."""
        self._worker.post(command)

    def close(self, grace_s: float) -> None:
        """Go on for at most ``grace_s`` seconds while there is work, then end the rest with an error."""
        self._is_closed = True
        self._worker.close(grace_s)
        self._watch.close()

    def _look(self, limit_s: float) -> None:
        """Go on without a step that hangs: with a new thread, and an empty cache for its release."""
        stuck, worker = self._scheduler, self._worker
        if not stuck.timer.give_up_after(limit_s):
            return
        resident, commands = stuck.computing, worker.leave()
        version = "" if resident is None else resident.release.version
        _log.critical("a step of release %s takes longer than %g s and was given up", version, limit_s)
        self._scheduler = Scheduler(self._waiting, self._limits, self._on_end)
        self._scheduler.counters = stuck.counters
        if resident is not None:
            self._begin_anew(resident)
        self._worker = Worker(self._scheduler, threads=self._threads)
        self._worker.take_over(commands)
        error = EngineError(f"a step of release {version} took longer than {limit_s:g} s and was given up")
        self._worker.call(lambda: self._scheduler.settle(stuck, resident, error))
        if self._is_closed:
            self._worker.close(0.0)

    def _begin_anew(self, resident: Resident) -> None:
        fresh = resident.anew()
        self._versions.exchange(resident, fresh)
        self._versions.move(resident, fresh, self._waiting.move(resident, fresh))
