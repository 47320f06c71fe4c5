"""The scheduled, silent update: a thread beside the app that keeps its model up to date.

What it guarantees: it never raises into the app; it asks at the interval set, spread by chance so that a
fleet does not ask as one; it asks again when the hub says so, and soon but ever more rarely when the hub
cannot be reached; it holds back as the settings say; it obeys a pause and "update now" from this process
and, through the data directory, from any other. It reckons in uptime: a clock that is wrong by years changes
nothing about when it asks.

    >>> agent = Agent(updater, engine, every="6h")       # doctest: +SKIP
    >>> agent.start()                                    # doctest: +SKIP
"""

from __future__ import annotations

import functools
import logging
import random
import threading
from datetime import timedelta
from typing import Any

from autoglm.device.control import Request
from autoglm.device.environment import Environment
from autoglm.device.runtime import Runtime
from autoglm.device.settings import Gate, parse_every
from autoglm.device.states import E_HELD
from autoglm.device.status import UpdateResult
from autoglm.device.surroundings import Surroundings
from autoglm.device.updater import Updater
from autoglm.errors import AutoGLMError, ConfigError

_log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 30.0
_SOONEST_RETRY_SECONDS = 1.0
_TICK_SECONDS = 60.0
_HELD_SECONDS = 300.0


class Schedule:
    """When to ask next; a pure rule over what came of the last time.

    Args:
        every: seconds between two checks.
        jitter: share by which each interval is stretched or shortened by chance.
    """

    def __init__(self, every: float, jitter: float, random_source: random.Random) -> None:
        if not 0 <= jitter < 1:
            raise ConfigError(f"jitter is {jitter}; it must lie between 0 and 1")
        self._every, self._jitter, self._random = every, jitter, random_source
        self._num_failures = 0

    def seconds_after(self, result: UpdateResult | None) -> float:
        """Return how long to wait after ``result``; None stands for an unforeseen error."""
        failed = result is None or result.kind == "failed"
        self._num_failures = self._num_failures + 1 if failed else 0
        if result is not None and result.retry_after_s is not None and result.kind != "updated":
            # Never before the hub said, so the spread goes one way only.
            return result.retry_after_s * (1 + self._jitter * self._random.random())
        if failed:
            # Full jitter: after an outage, the whole span is used, so that a fleet does not come back as one.
            span = min(self._every, _FIRST_RETRY_SECONDS * 2.0 ** min(20, self._num_failures - 1))
            return min(span, max(_SOONEST_RETRY_SECONDS, span * self._random.random()))
        if result is not None and result.code == E_HELD:
            return self._spread(min(self._every, _HELD_SECONDS))
        return self._spread(self._every)

    def _spread(self, seconds: float) -> float:
        return seconds * self._random.uniform(1 - self._jitter, 1 + self._jitter)


class Agent:
    """Runs an updater's checks on a thread of its own.

    Args:
        updater: whose release is kept current.
        runtime: what serves it; None where the app loads ``updater.active`` at its next start. A runtime
            with ``on_answer(listener)`` is listened to: its answers count towards a trial.
        every: the interval, such as ``30s``, ``10m`` or ``6h``; the updater's setting when None.
        jitter: share by which it varies.
        environment: tells what surrounds the device; needed by the rules on network, power and storage.
        control_seconds: longest time until a request of another process is seen.
        automatic: False never updates by itself: it only watches over what an operator stages and commits.

    Raises:
        ConfigError: the interval is none, or a rule needs ``environment`` and there is none.
    """

    def __init__(
        self,
        updater: Updater,
        runtime: Runtime | None = None,
        every: str | float | None = None,
        *,
        jitter: float = 0.1,
        environment: Environment | None = None,
        control_seconds: float = _TICK_SECONDS,
        automatic: bool = True,
        random_source: random.Random | None = None,
    ) -> None:
        if environment is None and updater.settings.needs_environment:
            raise ConfigError("a rule on network, power or storage needs environment=")
        self._updater, self._runtime = updater, runtime
        self._surroundings = Surroundings(updater, environment)
        self._automatic = automatic
        self._tick = min(_TICK_SECONDS, control_seconds)
        seconds = parse_every(updater.settings.every if every is None else every)
        self._schedule = Schedule(seconds, jitter, random_source or random.Random())
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._due = updater.clock.monotonic()
        self._thread: threading.Thread | None = None
        self.last_result: UpdateResult | None = None
        self._asked_for_damage = False
        self._hears = self._listen(runtime)
        if runtime is not None:
            updater.attach(runtime)

    # -- control ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the first check runs at once."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._loop, name="autoglm-update", daemon=True)
            self._thread.start()

    def stop(self, timeout: float | None = 30.0) -> None:
        """End; a download under way stops after its chunk and goes on at the next start.

        Args:
            timeout: longest wait for the thread, in seconds.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def update_now(self, *, force: bool = False) -> None:
        """Check now, whatever the schedule and a pause say; the request outlives this process.

        Args:
            force: also pass over the rules on network, power, storage and hours.

        Raises:
            StorageError: the disk refused.
        """
        self._updater.control.ask(force=force)
        self._wake.set()

    def pause(self) -> None:
        """Update nothing until :meth:`resume`, also after a restart; what is under way stops soon.

        Raises:
            StorageError: the disk refused.
        """
        self._updater.control.pause()

    def resume(self) -> None:
        """End a pause.

        Raises:
            StorageError: the disk refused.
        """
        self._updater.control.resume()
        self._wake.set()

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def answered(self, ok: bool, version: str | None = None) -> None:
        """Pass a finished live answer on to the updater, and wake for the verdict when it is due.

        For runtimes that do not tell of their answers; with one that does, this changes nothing.
        """
        if not self._hears:
            self._count(ok, version)

    def _listen(self, runtime: Any) -> bool:
        """Hear of every live answer, where the runtime tells of them: ``on_answer(listener)``."""
        register = getattr(runtime, "on_answer", None)
        if not callable(register):
            return False
        register(self._hear)
        return True

    def _hear(self, version: str, ok: bool, *_: object) -> None:
        self._count(ok, version)

    def _count(self, ok: bool, version: str | None) -> None:
        if self._updater.answered(ok, version):
            self._wake.set()

    # -- the thread ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self._wake.wait(self.step())

    def step(self) -> float:
        """Do what is due now; return the seconds until something may be due again.

        The thread calls this; an app that has its own scheduler may call it instead of :meth:`start`.
        """
        control = self._updater.control
        request = None
        try:
            self._updater.tick()
            request = control.take()
        except AutoGLMError as error:
            _log.warning("update agent: %s", error)
        if request is not None or (not control.is_paused and self._is_due()):
            self._update(request)
        return self._seconds_to_next()

    def _is_due(self) -> bool:
        # A damaged release is fetched again at once, and if that does not succeed, by the schedule.
        if not self._automatic:
            return False
        is_new_damage = self._updater.is_damaged and not self._asked_for_damage
        return is_new_damage or self._updater.clock.monotonic() >= self._due

    def _update(self, request: Request | None) -> None:
        result: UpdateResult | None = None
        gate = functools.partial(self._reason_to_stop, request)
        try:
            result = self._held(gate)
            if result is None:
                self._asked_for_damage = self._updater.is_damaged
                environment = self._surroundings.read().to_wire()
                result = self._updater.update(self._runtime, environment=environment, gate=gate)
                self._surroundings.count(keep=True)
        except Exception:  # noqa: BLE001 - whatever it was, the app must not suffer for it
            _log.exception("update agent: the update broke")
        self.last_result = result
        wait = self._schedule.seconds_after(result)
        self._due = self._updater.clock.monotonic() + wait
        next_check = self._updater.clock.now() + timedelta(seconds=wait)
        self._updater.next_check = next_check.isoformat(timespec="seconds")

    def _seconds_to_next(self) -> float:
        seconds = max(0.0, self._due - self._updater.clock.monotonic())
        if self._updater.control.is_paused or not self._automatic:
            seconds = _TICK_SECONDS
        trial = self._updater.seconds_to_verdict
        return min(seconds, self._tick, trial or self._tick)

    def _held(self, gate: Gate) -> UpdateResult | None:
        reason = gate()
        return None if reason is None else UpdateResult("held", code=E_HELD, message=reason)

    def _reason_to_stop(self, request: Request | None) -> str | None:
        """Return why to stop now; a person's request passes over a pause, and a forced one over the rules."""
        if self._stopping.is_set():
            return "the app is closing"
        if request is None and self._updater.control.is_paused:
            return "paused"
        is_forced = request is not None and request.force
        reason = self._surroundings.reason_to_wait()
        return None if is_forced else reason
