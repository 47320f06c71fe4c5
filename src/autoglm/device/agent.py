"""The scheduled, silent update: a thread beside the app that keeps its model up to date.

What it guarantees: it never raises into the app; it asks at the interval set, spread by chance so that a
fleet does not ask as one; it asks again when the hub says so, and soon but ever more rarely when the hub
cannot be reached; it holds back as the settings say.

    >>> agent = Agent(updater, engine, every="6h")       # doctest: +SKIP
    >>> agent.start()                                    # doctest: +SKIP
"""

from __future__ import annotations

import logging
import random
import threading
from datetime import timedelta
from typing import Any

from autoglm.device.runtime import Runtime
from autoglm.device.settings import Conditions, parse_every, reason_to_wait
from autoglm.device.states import E_HELD
from autoglm.device.status import UpdateResult
from autoglm.device.updater import Updater
from autoglm.errors import AutoGLMError, ConfigError
from autoglm.releases import DeviceEnvironment

_log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 30.0
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
            return self._spread(
                min(self._every, _FIRST_RETRY_SECONDS * 2.0 ** min(20, self._num_failures - 1))
            )
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
        conditions: returns the device's state; needed by the rules ``wifi_only``, ``charging_only`` and
            ``min_battery``.

    Raises:
        ConfigError: the interval is none, or a rule needs ``conditions`` and there are none.
    """

    def __init__(
        self,
        updater: Updater,
        runtime: Runtime | None = None,
        every: str | float | None = None,
        *,
        jitter: float = 0.1,
        conditions: Conditions | None = None,
        random_source: random.Random | None = None,
    ) -> None:
        if conditions is None and updater.settings.needs_conditions:
            raise ConfigError("wifi_only, charging_only and min_battery need conditions=")
        self._updater, self._runtime, self._conditions = updater, runtime, conditions
        seconds = parse_every(updater.settings.every if every is None else every)
        self._schedule = Schedule(seconds, jitter, random_source or random.Random())
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._paused = False
        self._forced = False
        self._due = updater.clock.monotonic()
        self._thread: threading.Thread | None = None
        self.last_result: UpdateResult | None = None
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

    def update_now(self) -> None:
        """Check now, whatever the schedule, the conditions and a pause say."""
        self._forced = True
        self._wake.set()

    def pause(self) -> None:
        """Update nothing until :meth:`resume`; what is under way stops at its next step."""
        self._paused = True

    def resume(self) -> None:
        """End a pause."""
        self._paused = False
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
        try:
            self._updater.tick()
        except AutoGLMError as error:
            _log.warning("update agent: %s", error)
        forced, self._forced = self._forced, False
        if forced or (not self._paused and self._updater.clock.monotonic() >= self._due):
            self._update(forced)
        return self._seconds_to_next()

    def _update(self, forced: bool) -> None:
        result: UpdateResult | None = None
        try:
            result = self._held() if not forced else None
            if result is None:
                gate = self._stopped if forced else self._reason_to_stop
                result = self._updater.update(self._runtime, environment=self._environment(), gate=gate)
        except Exception:  # noqa: BLE001 - whatever it was, the app must not suffer for it
            _log.exception("update agent: the update broke")
        self.last_result = result
        wait = self._schedule.seconds_after(result)
        self._due = self._updater.clock.monotonic() + wait
        next_check = self._updater.clock.now() + timedelta(seconds=wait)
        self._updater.next_check = next_check.isoformat(timespec="seconds")

    def _seconds_to_next(self) -> float:
        seconds = max(0.0, self._due - self._updater.clock.monotonic())
        if self._paused:
            seconds = _TICK_SECONDS
        trial = self._updater.seconds_to_verdict
        return min(seconds, _TICK_SECONDS, trial or _TICK_SECONDS)

    def _held(self) -> UpdateResult | None:
        reason = self._reason_to_stop()
        return None if reason is None else UpdateResult("held", code=E_HELD, message=reason)

    def _stopped(self) -> str | None:
        return "the app is closing" if self._stopping.is_set() else None

    def _reason_to_stop(self) -> str | None:
        if self._stopping.is_set() or self._paused:
            return "paused" if self._paused else "the app is closing"
        environment = self._environment() or DeviceEnvironment()
        return reason_to_wait(self._updater.settings, environment, self._updater.clock.now())

    def _environment(self) -> DeviceEnvironment | None:
        return None if self._conditions is None else self._conditions()
