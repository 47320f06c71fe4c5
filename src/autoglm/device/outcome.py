"""How an attempt ends, well or badly. Each ending can be repeated after a crash in its middle.

The decision is stored first (state CONFIRMED or FAILED), then carried out, then the machine stands at IDLE.
"""

from __future__ import annotations

import secrets

from autoglm.device.context import Device
from autoglm.device.states import E_SUPERSEDED, Attempt, State
from autoglm.releases import Manifest


def new_uid() -> str:
    """Return a fresh name for an attempt."""
    return secrets.token_hex(8)


def confirm(device: Device) -> None:
    """Keep the release on trial: it has proved itself.

    Raises:
        StorageError: the disk refused; the next start goes on from there.
    """
    device.slots.confirm()
    finish_confirmed(device)


def finish_confirmed(device: Device) -> None:
    """Report a confirmed release and collect garbage."""
    if device.machine.state is State.TRIAL:
        device.machine.move(State.CONFIRMED)
    device.trust.proved(device.slots.manifest(device.slots.now.current))
    if (attempt := device.machine.attempt) is not None:
        device.queue_event(attempt, State.CONFIRMED, "ok", name="confirmed")
    device.slots.collect_garbage()
    if device.machine.state is State.CONFIRMED:
        device.machine.move(State.IDLE)


def fail(
    device: Device, code: str, message: str, *, quarantine: bool, attempt: Attempt | None = None
) -> None:
    """End an attempt as failed; when its release is the current one, fall back.

    Args:
        code: the reason's stable word.
        message: what happened, for people.
        quarantine: never try this release again on this device.
        attempt: which; the one under way when not given.
    """
    device.machine.move(State.FAILED, attempt, code=code, message=message[:500], quarantine=quarantine)
    finish_failed(device)


def finish_failed(device: Device) -> None:
    """Quarantine, fall back, report and clean up after the attempt that is marked as failed."""
    attempt = device.machine.attempt
    if attempt is None:
        return
    code = attempt.code or "E_UNKNOWN"
    if attempt.quarantine:
        device.slots.quarantine(attempt.version, attempt.manifest_sha256, code, device.clock.now())
    current = device.slots.now.current
    if current is not None and current.manifest_sha256 == attempt.manifest_sha256:
        device.slots.fall_back()
    device.queue_event(attempt, State.FAILED, "fail", name="failed")
    device.machine.remember_error(code, attempt.message or "", device.timestamp(), version=attempt.version)
    device.slots.collect_garbage()
    device.machine.move(State.IDLE)


def withdraw(device: Device) -> None:
    """Drop an attempt that is no longer wanted, and what was fetched for it."""
    if device.machine.state in (State.DOWNLOADING, State.APPLYING):
        device.machine.move(State.IDLE)
        device.slots.collect_garbage()


def make_way(device: Device) -> None:
    """End the trial of a first release, which has no previous one, because a newer release is here.

    Nothing could replace it anyway, so it becomes the release to fall back to; the hub is not told that
    it proved itself.
    """
    device.slots.confirm()
    if (attempt := device.machine.attempt) is not None:
        device.machine.note(code=E_SUPERSEDED)
        device.queue_event(device.machine.attempt or attempt, State.TRIAL, "progress", name="superseded")
    device.machine.move(State.IDLE)


def attempt_about(manifest: Manifest, device: Device) -> Attempt:
    """Return an attempt about a release that is installed already, to report its rollback with."""
    return Attempt(
        new_uid(), manifest.version, manifest.sha256, manifest.version, started_at=device.timestamp()
    )
