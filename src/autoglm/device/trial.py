"""Whether a release on trial has proved itself, and what follows from it.

Good answers and time are counted in memory, so a restart begins the count again; the tries that a restart
costs are on the disk (:class:`~autoglm.device.slots.Current`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto

from autoglm.device import outcome
from autoglm.device.context import Device
from autoglm.device.room import load
from autoglm.device.runtime import Runtime
from autoglm.device.settings import UpdateSettings
from autoglm.errors import EngineError, HealthError, OverloadedError, StorageError

_log = logging.getLogger(__name__)


class Verdict(Enum):
    """What a trial has come to."""

    WAIT = auto()
    CONFIRM = auto()
    FAIL = auto()
    ASK_ITSELF = auto()
    """The time is over and too few asked: let the release answer its own prompts."""


class Trial:
    """Counts the answers of one release on trial; safe to use from the thread that answers.

    Args:
        started: the monotonic time at which it began to serve.
    """

    def __init__(self, settings: UpdateSettings, started: float) -> None:
        self._settings, self.started = settings, started
        self._lock = threading.Lock()
        self._num_good = 0
        self._num_bad = 0

    def answered(self, ok: bool) -> bool:
        """Count a live answer; return whether a verdict may be due."""
        with self._lock:
            self._num_good += ok
            self._num_bad += not ok
            return not ok or self._num_good >= self._settings.trial_answers

    def seconds_left(self, now: float) -> float:
        """Return how long the trial lasts at least from ``now``."""
        return max(0.0, self.started + self._settings.trial_minutes * 60 - now)

    def verdict(self, now: float) -> Verdict:
        """Return what the counts say at the monotonic time ``now``."""
        with self._lock:
            if self._num_bad >= self._settings.trial_failures:
                return Verdict.FAIL
            if self.seconds_left(now) > 0:
                return Verdict.WAIT
            enough = self._num_good >= self._settings.trial_answers
            return Verdict.CONFIRM if enough else Verdict.ASK_ITSELF

    @property
    def num_bad(self) -> int:
        """Failed answers so far."""
        return self._num_bad

    @property
    def has_answered(self) -> bool:
        """Whether it has answered well."""
        return self._num_good > 0


class Proving:
    """Watches over the release on trial, if there is one, and carries out the verdict.

    All methods but :meth:`answered` are for the thread that holds the updater.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._trial: Trial | None = None
        self._version: str | None = None
        self.begin()

    def begin(self) -> None:
        """Start counting when the current release is unproven and is the one served here; else stop."""
        now, live = self._device.slots.now, self._device.live.slot
        on_trial = not now.confirmed and now.current is not None and now.current == live
        manifest = self._device.slots.manifest(now.current) if on_trial else None
        self._version = None if manifest is None else manifest.version
        self._trial = Trial(self._device.settings, self._device.clock.monotonic()) if on_trial else None

    def answered(self, ok: bool, version: str | None) -> bool:
        """Count a live answer of ``version``; return whether a verdict may be due."""
        trial = self._trial
        if trial is None or (version is not None and version != self._version):
            return False
        return trial.answered(ok)

    def seconds_left(self, now: float) -> float | None:
        """Return how long the trial lasts at least; None outside of one."""
        trial = self._trial
        return None if trial is None else trial.seconds_left(now)

    def judge(self, runtime: Runtime | None, now: float) -> None:
        """Confirm or leave the release on trial when its time has come.

        Raises:
            StorageError: the disk refused.
        """
        trial = self._trial
        if trial is None:
            return
        verdict, message = trial.verdict(now), f"{trial.num_bad} live answers failed"
        if verdict is Verdict.ASK_ITSELF:
            verdict, message = _ask_itself(runtime)
        if verdict is Verdict.CONFIRM:
            self._confirm(runtime)
        elif verdict is Verdict.FAIL:
            self._leave(runtime, message)
        elif trial.seconds_left(now) == 0:
            # Up and well for the whole time, though too few asked: at least it does not crash-loop.
            self._device.slots.set_tries(self._device.settings.tries)

    def go_back(self, runtime: Runtime | None) -> None:
        """Make the runtime serve what ``current.json`` names, after a fall-back."""
        self._trial = None
        live, slot = self._device.live, self._device.slots.now.current
        if runtime is None or slot is None or live.slot == slot:
            return
        done = live.can_go_back and _call("swap back", runtime.rollback)
        if done or _call("load the previous release", lambda: self._reload(runtime)):
            live.slot, live.can_go_back = slot, False

    def spare_the_try(self, *, is_loaded: bool) -> None:
        """Give this start's try back, durably: the process ends in order, and no answer failed.

        Args:
            is_loaded: whether a runtime serves the release; else only a good answer shows that it loads.
        """
        trial, self._trial = self._trial, None
        if trial is not None and trial.num_bad == 0 and (is_loaded or trial.has_answered):
            with suppress(StorageError):  # then it costs a try
                slots, tries = self._device.slots, self._device.settings.tries
                slots.set_tries(min(tries, slots.now.tries_left + 1))

    def _confirm(self, runtime: Runtime | None) -> None:
        outcome.confirm(self._device)
        self._trial = None
        self._device.live.can_go_back = False
        if runtime is not None:
            _call("let go of the previous release", runtime.release_previous)

    def _leave(self, runtime: Runtime | None, message: str) -> None:
        if self._device.slots.now.previous is None:
            _log.error("%s, and there is no other release to go back to", message)
            self.begin()
        else:
            outcome.fail(self._device, HealthError.code, message, quarantine=True)
            self.go_back(runtime)

    def _reload(self, runtime: Runtime) -> None:
        directory = self._device.slots.active
        if directory is None:
            raise EngineError("no release is installed")
        # Should it not load, there is none but itself to try again: what served was left for good reason.
        live = None if self._device.live.slot is None else directory
        staged = load(runtime, directory, live, self._device.settings.swap_mode).handle
        try:
            runtime.self_test(staged)  # a runtime may refuse to swap in what it has not examined
            runtime.swap(staged)
        except BaseException:
            runtime.discard(staged)
            raise
        runtime.release_previous()


def _ask_itself(runtime: Runtime | None) -> tuple[Verdict, str]:
    """Let a release that nobody asks anything answer its own prompts through the live path."""
    if runtime is None:
        return Verdict.WAIT, ""
    try:
        report = runtime.live_self_test()
    except OverloadedError:
        return Verdict.WAIT, ""  # people are asking after all
    except Exception as error:  # noqa: BLE001 - the app's own code: whatever it raises is a failed test
        return Verdict.FAIL, f"the live self-test broke: {error}"
    return (Verdict.CONFIRM, "") if report.ok else (Verdict.FAIL, "; ".join(report.failures))


def _call(what: str, action: Callable[[], object]) -> bool:
    """Call into the app's runtime where nothing more can be done about a failure than to report it."""
    try:
        action()
    except Exception:  # noqa: BLE001 - the app's own code; the state on the disk is right already
        _log.exception("the runtime could not %s", what)
        return False
    return True
