"""One update attempt: download, verify, apply, try out, commit, swap.

What it guarantees: the old release serves until the new one has passed its self-test; before each step the
state that it leads to is on the disk, so that a crash anywhere is taken up by the next start; the commit of
``current.json`` is the only point of no return, and even that ends in a trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from autoglm import files
from autoglm.device import outcome
from autoglm.device.context import Device
from autoglm.device.install import find_installed
from autoglm.device.obtain import Obtaining
from autoglm.device.offer import Offer
from autoglm.device.room import Loaded, load, load_beside
from autoglm.device.runtime import Runtime, SelfTestReport
from autoglm.device.settings import Gate
from autoglm.device.slots import Slot
from autoglm.device.states import (
    E_CANCELLED,
    E_HELD,
    Attempt,
    GiveUpError,
    State,
)
from autoglm.device.status import UpdateResult
from autoglm.device.transport import BusyError, Transport
from autoglm.errors import (
    AutoGLMError,
    ConfigError,
    EngineError,
    HealthError,
    HubError,
    NetworkError,
    OutOfMemoryError,
    OverloadedError,
    RevokedError,
    StorageError,
)
from autoglm.releases import Manifest

_log = logging.getLogger(__name__)


class HeldError(AutoGLMError):
    """The attempt stops here for now and goes on later; caught inside the SDK.

    Attributes:
        reason: the code reported.
    """

    def __init__(self, message: str, *, reason: str = E_HELD) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Arrival:
    """A release that is now the current one.

    Attributes:
        manifest: what it is.
        pause_s: how long nothing was served during the swap; None without a swap.
    """

    manifest: Manifest
    pause_s: float | None


@dataclass
class Prepared:
    """A release that lies whole on the disk and, where memory holds two, is loaded and examined too.

    Attributes:
        cycle: what brought it here, and makes it the current one.
        slot, manifest: which release it is.
        loaded: the runtime's handle; None where memory holds one model: it is loaded when it is committed to.
        report: its self-test; None as long as it is not loaded.
    """

    cycle: Cycle
    slot: Slot
    manifest: Manifest
    loaded: Loaded | None = None
    report: SelfTestReport | None = None

    def discard(self) -> None:
        """Let the runtime drop it."""
        self.cycle.discard(self)


class Cycle:
    """Carries one offer from the hub's answer to the start of its trial.

    Args:
        runtime: what runs the model; None installs without a swap, for the app to load at its next start.
        gate: asked at every step whether to go on.
    """

    def __init__(self, device: Device, transport: Transport, runtime: Runtime | None, gate: Gate) -> None:
        self._device, self._transport, self._runtime, self._gate = device, transport, runtime, gate
        self._machine = device.machine
        self._obtaining = Obtaining(device, transport, self._go_on)

    def run(self, offer: Offer) -> Arrival:
        """Do all of it.

        Raises:
            GiveUpError: the release cannot be had or is not fit; the attempt is still to be ended.
            HeldError, NetworkError, HubError, StorageError, EngineError: not now; the attempt stays open.
        """
        prepared = self._obtain(offer)
        self._obey_the_hub()
        return self._try_out(prepared)

    def prepare(self, offer: Offer) -> Prepared:
        """Do all that changes nothing for anybody yet; :meth:`finish` does the rest.

        Raises:
            GiveUpError, HeldError, NetworkError, HubError, StorageError, EngineError: as :meth:`run`.
        """
        prepared = self._obtain(offer)
        self._obey_the_hub()
        if self._runtime is not None:
            self._stage(self._runtime, prepared, only_beside=True)
        return prepared

    def finish(self, prepared: Prepared) -> Arrival:
        """Make a prepared release the current one and swap it in.

        Raises:
            GiveUpError: it was called back meanwhile, is damaged, or is not fit.
            HeldError: the hub stops it; the release stays prepared.
            StorageError, EngineError: not now; what was loaded of it is discarded.
        """
        self._obey_the_hub()
        slots, version = self._device.slots, prepared.manifest.version
        if slots.is_forbidden(prepared.manifest) or not slots.looks_intact(prepared.slot):
            self.discard(prepared)
            message = f"{version} was called back or damaged while it was staged"
            raise GiveUpError(message, reason=RevokedError.code, quarantine=False)
        return self._try_out(prepared)

    def discard(self, prepared: Prepared) -> None:
        """Let the runtime drop what was loaded of a prepared release."""
        loaded, prepared.loaded = prepared.loaded, None
        if loaded is not None and self._runtime is not None:
            _discard(self._runtime, loaded.handle)

    def _obtain(self, offer: Offer) -> Prepared:
        self._begin(offer)
        slot, manifest = find_installed(self._device, offer) or self._obtaining.obtain(offer)
        if self._machine.state is State.DOWNLOADING:
            self._machine.move(State.APPLYING)
        return Prepared(self, slot, manifest)

    def mend(self, offer: Offer) -> None:
        """Fetch the installed release again, in full, and put its files in the place of the present ones.

        Raises:
            GiveUpError, HeldError, NetworkError, HubError, StorageError: as :meth:`run`.
        """
        self._begin(offer)
        if find_installed(self._device, offer) is None:
            self._obtaining.obtain(offer)
        if (attempt := self._machine.attempt) is not None:
            self._device.queue_event(attempt, State.CONFIRMED, "ok", name="mended")
        self._machine.move(State.IDLE)
        self._device.slots.collect_garbage()

    def _begin(self, offer: Offer) -> None:
        """Store the intent, or take up the attempt at this same release that was interrupted."""
        attempt = self._machine.attempt
        if attempt is not None and attempt.manifest_sha256 != offer.manifest_sha256:
            self._machine.move(State.IDLE)
            attempt = None
        if attempt is not None:
            self._machine.note(rollout_id=offer.rollout_id, attempt_id=offer.attempt_id)
            return
        attempt = Attempt(
            uid=outcome.new_uid(),
            version=offer.version,
            manifest_sha256=offer.manifest_sha256,
            from_version=self._device.request().current_version,
            rollout_id=offer.rollout_id,
            attempt_id=offer.attempt_id,
            started_at=self._device.timestamp(),
        )
        self._machine.move(State.DOWNLOADING, attempt)
        self._device.slots.collect_garbage(keep_staging=offer.manifest_sha256[:16])
        self._device.queue_event(attempt, State.DOWNLOADING, "progress", name="begun")
        self._obey_the_hub()

    def _obey_the_hub(self) -> None:
        """Report so far, and stop where the hub says so. A hub out of reach stops nothing."""
        self._go_on()
        try:
            control = self._device.outbox.flush(self._transport, self._device.device_id)
        except (NetworkError, HubError):
            return
        if control == "pause":
            raise HeldError("the hub has paused this roll-out")
        if control == "cancel":
            raise HeldError("the hub has called this update off", reason=E_CANCELLED)

    def _go_on(self) -> None:
        if (reason := self._gate()) is not None:
            raise HeldError(reason)

    # -- trying it out ------------------------------------------------------------------------------

    def _try_out(self, prepared: Prepared) -> Arrival:
        """Self-test, commit, swap."""
        device, runtime, slot = self._device, self._runtime, prepared.slot
        if runtime is None:
            # The app loads it at its next start: that start is the first of its tries.
            self._commit(slot, device.settings.tries + 1, None)
            return Arrival(prepared.manifest, None)
        loaded = prepared.loaded or self._stage(runtime, prepared)
        if loaded is None:
            raise EngineError(f"{prepared.manifest.version} could not be loaded now")
        try:
            self._go_on()
            self._commit(slot, device.settings.tries, prepared.report)
        except BaseException:
            self.discard(prepared)
            raise
        return Arrival(prepared.manifest, self._swap(runtime, loaded, prepared))

    def _stage(self, runtime: Runtime, prepared: Prepared, *, only_beside: bool = False) -> Loaded | None:
        """Load the release, beside the live one or in its place, and examine it.

        Args:
            only_beside: load nothing where memory holds only one model.

        Raises:
            GiveUpError: it cannot be loaded or fails its own self-test.
            EngineError: there was no room or no time for it now.
        """
        device, manifest = self._device, prepared.manifest
        live = None if device.live.slot is None else device.slots.active
        device.progress("load", 0, 0)
        try:
            way = load_beside if only_beside else load
            prepared.loaded = way(
                runtime, device.slots.directory(prepared.slot), live, device.settings.swap_mode
            )
        except (MemoryError, OutOfMemoryError, OverloadedError) as error:
            raise EngineError(f"{manifest.version} could not be loaded now: {error}") from error
        except Exception as error:  # the app's own code: whatever it raises, the old release goes on
            raise _unfit(manifest, error) from error
        if prepared.loaded is not None:
            self._examine(runtime, prepared, prepared.loaded)
        return prepared.loaded

    def _examine(self, runtime: Runtime, prepared: Prepared, loaded: Loaded) -> None:
        """Run the self-test of a loaded release; one that fails is discarded."""
        self._device.progress("self_test", 0, 0)
        try:
            report = prepared.report = runtime.self_test(loaded.handle)
        except Exception as error:
            self.discard(prepared)
            raise _unfit(prepared.manifest, error) from error
        except BaseException:
            self.discard(prepared)
            raise
        if not report.ok:
            self.discard(prepared)
            reasons = "; ".join(report.failures) or "no reason given"
            message = f"{prepared.manifest.version} failed its self-test: {reasons}"
            raise GiveUpError(message, reason=HealthError.code, quarantine=True)

    def _commit(self, slot: Slot, tries: int, report: SelfTestReport | None) -> None:
        """The point of no return: from here on the next start loads the new release.

        A disk that refuses after the new ``current.json`` is in its place undoes nothing: the next start
        would load the new release, so it is the one to serve.
        """
        device = self._device
        device.count_wire_bytes()
        try:
            device.slots.commit(slot, tries=tries)
        except StorageError as error:
            if device.slots.now.current != slot:
                raise
            _log.warning("committed, though the disk complains: %s", error)
        try:
            attempt = self._machine.move(State.TRIAL)
            if attempt is not None:
                device.queue_event(attempt, State.TRIAL, "progress", name="trial", stats=_stats(report))
        except StorageError as error:
            _log.warning("the trial begins, and is written down later: %s", error)  # by settle()

    def _swap(self, runtime: Runtime, loaded: Loaded, prepared: Prepared) -> float | None:
        device, prepared.loaded = self._device, None
        device.progress("swap", 0, 0)
        try:
            report = runtime.swap(loaded.handle)
        except OverloadedError as error:
            # The runtime is on its way out. It is no fault of the release, which the next start loads.
            _discard(runtime, loaded.handle)
            _log.warning("%s is committed and loads at the next start: %s", prepared.manifest.version, error)
            return None
        except Exception as error:
            _discard(runtime, loaded.handle)
            raise _unfit(prepared.manifest, error) from error
        has_previous = device.slots.now.previous is not None
        can_go_back = has_previous and loaded.mode == "side_by_side"
        device.live = replace(device.live, slot=prepared.slot, can_go_back=can_go_back)
        return float(getattr(report, "pause_s", 0.0))


def _discard(runtime: Runtime, staged: Any) -> None:
    try:
        runtime.discard(staged)
    except Exception:  # noqa: BLE001 - the app's own code; why the release is discarded matters more
        _log.exception("the runtime could not go on with the release before")


def _unfit(manifest: Manifest, error: Exception) -> GiveUpError:
    code = error.code if isinstance(error, AutoGLMError) else EngineError.code
    return GiveUpError(f"{manifest.version} cannot run here: {error}", reason=code, quarantine=True)


def _stats(report: SelfTestReport | None) -> dict[str, float]:
    if report is None:
        return {}
    return {
        "score": float(report.score),
        "first_token_ms": report.first_token_s * 1000,
        "tokens_per_s": float(report.tokens_per_s),
        "peak_memory_bytes": float(report.peak_memory_bytes),
    }


def to_result(device: Device, cycle: Callable[[], UpdateResult]) -> UpdateResult:
    """Run a cycle and turn what may go wrong into a result, ending the attempt where it cannot go on.

    Raises:
        ConfigError: the caller's mistake.
    """
    try:
        return _ended(device, cycle)
    except HeldError as error:
        _stopped_in_order(device)
        return UpdateResult("held", to_version=_target(device), code=error.reason, message=str(error))
    except ConfigError:
        raise
    except (AutoGLMError, OSError) as cause:
        error = files.storage_error(cause, "updating") if isinstance(cause, OSError) else cause
        _stopped_in_order(device)
        retry_after_s = error.retry_after_s if isinstance(error, BusyError) else None
        return replace(_failed(device, error.code, error), retry_after_s=retry_after_s)


def _ended(device: Device, cycle: Callable[[], UpdateResult]) -> UpdateResult:
    try:
        return cycle()
    except HeldError as error:
        if error.reason == E_CANCELLED:
            outcome.withdraw(device)
        raise
    except GiveUpError as error:
        result = _failed(device, error.reason, error)
        outcome.fail(device, error.reason, str(error), quarantine=error.quarantine)
        return result


def _failed(device: Device, code: str, error: Exception) -> UpdateResult:
    _log.warning("update failed: %s: %s", code, error)
    with suppress(AutoGLMError):
        device.machine.remember_error(code, str(error), device.timestamp())
    return UpdateResult("failed", to_version=_target(device), code=code, message=str(error))


def _stopped_in_order(device: Device) -> None:
    """Do not count a stop in order towards the changes of state that end an attempt."""
    attempt = device.machine.attempt
    if attempt is not None and device.machine.state is State.APPLYING:
        with suppress(StorageError):
            device.machine.note(changes=attempt.changes - 1)


def _target(device: Device) -> str | None:
    attempt = device.machine.attempt
    return None if attempt is None else attempt.version
