"""What a start does before anything is loaded, whatever the crash before it was.

What it guarantees: afterwards ``current.json`` names a release whose files are there (or none), the state
machine stands where the next update can go on, and a release on trial has one try less, durably, so that
one which kills its process is left behind after its tries.
"""

from __future__ import annotations

import logging

from autoglm import files
from autoglm.device import outcome
from autoglm.device.context import Device
from autoglm.device.slots import is_damaged
from autoglm.device.states import E_CRASH_LOOP, E_STATE, TABLE, Attempt, Recovery, State
from autoglm.errors import IntegrityError

_log = logging.getLogger(__name__)


def recover(device: Device, *, boot: bool) -> None:
    """Bring the data directory into order.

    Args:
        boot: this process is going to load the current release, which costs one on trial a try.

    Raises:
        StorageError: the disk refused.
    """
    if is_damaged(device.root):
        _log.error("current.json is damaged: going back to the oldest whole release")
        device.slots.choose_again()
    if device.machine.load():
        settle(device)
    else:
        _log.error("state.json is not understood: rolling back")
        _roll_back_the_unknown(device)
    _drop_temporaries(device)
    _leave_missing(device)
    if boot and not device.slots.now.confirmed:
        _count_down(device)
    attempt = device.machine.attempt
    device.slots.collect_garbage(
        keep_staging=None if attempt is None else attempt.manifest_sha256[:16],
        keep_package=None if attempt is None else attempt.package_sha256,
    )


def settle(device: Device) -> None:
    """Act by the table on the state that was saved, after squaring it with ``current.json``.

    Does nothing where nothing was interrupted, by a crash or by a disk that refused.

    Raises:
        StorageError: the disk refused.
    """
    machine, now = device.machine, device.slots.now
    attempt = machine.attempt
    if attempt is None:
        return
    is_current = now.current is not None and now.current.manifest_sha256 == attempt.manifest_sha256
    if machine.state is State.APPLYING and is_current:
        begun = machine.move(State.TRIAL)  # the crash, or the disk's refusal, came right after the commit
        if begun is not None:
            device.queue_event(begun, State.TRIAL, "progress", name="trial")
    match TABLE[machine.state].after_crash:
        case Recovery.FINISH if machine.state is State.CONFIRMED:
            outcome.finish_confirmed(device)
        case Recovery.FINISH:
            outcome.finish_failed(device)
        case Recovery.COUNT_DOWN if not is_current:
            outcome.fail(
                device, E_STATE, "the release on trial is no longer the current one", quarantine=False
            )
        case Recovery.COUNT_DOWN if now.confirmed:
            outcome.finish_confirmed(device)
        case _:
            pass  # COUNT_DOWN below, on a boot; RESUME and REDO when the next update comes


def _roll_back_the_unknown(device: Device) -> None:
    machine, now = device.machine, device.slots.now
    machine.reset()
    manifest = device.slots.manifest(now.current)
    if not now.confirmed and now.previous is not None and manifest is not None:
        attempt = outcome.attempt_about(manifest, device)
        outcome.fail(device, E_STATE, "the saved state was not understood", quarantine=True, attempt=attempt)


def _drop_temporaries(device: Device) -> None:
    """Remove half-applied output; a package that was being downloaded stays."""
    for staging in device.slots.staging.iterdir():
        files.remove_temporaries(staging)
        files.remove(staging / "release")


def _leave_missing(device: Device) -> None:
    """Fall back from a current release whose files are not all there, or were found changed."""
    slots = device.slots
    if slots.now.current is None:
        return
    if slots.looks_intact(slots.now.current) and not slots.is_rotten(slots.now.current):
        return
    message = f"files of {slots.now.current.folder} are missing or changed: going back to the previous one"
    _log.error(message)
    if device.machine.state is State.TRIAL:
        outcome.fail(device, IntegrityError.code, message, quarantine=False)
    else:
        slots.fall_back()
        device.machine.remember_error(IntegrityError.code, message, device.timestamp())


def _count_down(device: Device) -> None:
    """Take one try from the release on trial; with none left, leave it."""
    slots = device.slots
    tries = slots.now.tries_left - 1
    if tries > 0:
        slots.set_tries(tries)
    elif slots.now.previous is None:
        _log.warning("the release on trial did not prove itself, and stays for want of another")
        slots.set_tries(device.settings.tries)
    else:
        slots.set_tries(0)
        message = f"it did not prove itself in {device.settings.tries} starts"
        outcome.fail(device, E_CRASH_LOOP, message, quarantine=True, attempt=_attempt_on_trial(device))


def _attempt_on_trial(device: Device) -> Attempt | None:
    """Return the attempt that led to the current release, or a new one should ``state.json`` be lost."""
    manifest = device.slots.manifest(device.slots.now.current)
    if device.machine.state is State.TRIAL or manifest is None:
        return device.machine.attempt
    return outcome.attempt_about(manifest, device)
