"""What a device says of itself, to people and to programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoglm.device.control import Control
from autoglm.device.outbox import count_queued
from autoglm.device.slots import Current, Slot, read_current, read_json, read_quarantine, read_rotten
from autoglm.device.states import Machine, Saved, State
from autoglm.errors import ManifestError
from autoglm.releases import Manifest
from autoglm.trust.floor import read_floor


@dataclass(frozen=True)
class UpdateResult:
    """What came of one call of ``update``.

    Attributes:
        kind: ``none`` (nothing offered), ``staged``, ``updated``, ``failed`` or ``held`` (it goes on later).
        from_version, to_version: what was and what is (or was to be).
        wire_bytes: sent and received during the call.
        seconds: it took.
        code, message: why it failed or is held.
        pause_s: how long nothing was served during the swap.
        retry_after_s: when the hub wants to be asked again.
    """

    kind: Literal["none", "staged", "updated", "failed", "held"]
    from_version: str | None = None
    to_version: str | None = None
    wire_bytes: int = 0
    seconds: float = 0.0
    code: str | None = None
    message: str | None = None
    pause_s: float | None = None
    retry_after_s: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Status:
    """A device at a glance.

    Attributes:
        state: of the update's state machine.
        device_id: its name towards the hub; None before the first start.
        model, current, previous: what runs, and what it can go back to.
        current_directory: where the current release lies.
        target: the version that an update under way leads to.
        confirmed: whether the current release has proved itself.
        tries_left: starts left for it while it has not.
        quarantined: versions that failed here.
        revoked: which of the current and the previous one were called back by their publisher.
        progress: ``{"phase", "done", "total"}`` in bytes, of a download or a patch under way.
        last_error: ``{"code", "message", "at"}`` of what no later success has overtaken, with the ``version``
            of the release at fault if it was one.
        paused: whether scheduled updates wait for a resume.
        damaged: whether files of the current release changed on the disk and wait to be fetched again.
        staged: the version that waits, in this process, to be committed to.
        next_check: when the agent asks next, RFC 3339.
        queued_events: reports that wait for the hub.
        wire_bytes_total: sent and received, ever.
    """

    state: str
    device_id: str | None
    model: str | None
    current: str | None
    previous: str | None
    current_directory: str | None
    target: str | None
    confirmed: bool
    tries_left: int
    quarantined: tuple[str, ...]
    revoked: tuple[str, ...]
    progress: dict[str, Any] | None
    last_error: dict[str, str] | None
    next_check: str | None
    queued_events: int
    wire_bytes_total: int
    paused: bool = False
    damaged: bool = False
    staged: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def read_status(root: Path) -> Status:
    """Read the status of the data directory ``root`` without its lock, beside whatever uses it.

    A damaged file shows as its part of the status missing; nothing is repaired, nothing counted.
    """
    machine = Machine(root / "state.json")
    machine.load()
    identity = read_json(root / "device.json")
    device_id = identity.get("device_id") if isinstance(identity, dict) else None
    return make_status(root, read_current(root) or Current(), machine.saved, device_id)


def make_status(
    root: Path,
    now: Current,
    saved: Saved,
    device_id: str | None,
    *,
    progress: dict[str, Any] | None = None,
    next_check: str | None = None,
) -> Status:
    """Put a status together from what is known."""
    manifest, previous = (_manifest(root, slot) for slot in (now.current, now.previous))
    called_back = read_floor(root / "floor.json").revoked
    rotten = read_rotten(root)
    in_trial = saved.state is State.TRIAL
    return Status(
        state=saved.state,
        device_id=device_id,
        model=None if manifest is None else manifest.model,
        current=None if manifest is None else manifest.version,
        previous=None if previous is None else previous.version,
        current_directory=None if now.current is None else str(root / "releases" / now.current.folder),
        target=None if saved.attempt is None or in_trial else saved.attempt.version,
        confirmed=now.confirmed,
        tries_left=now.tries_left,
        quarantined=tuple(entry.version for entry in read_quarantine(root)),
        revoked=tuple(m.version for m in (manifest, previous) if m is not None and m.sha256 in called_back),
        progress=progress,
        last_error=saved.last_error,
        next_check=next_check,
        queued_events=count_queued(root / "outbox.db"),
        wire_bytes_total=saved.wire_bytes,
        paused=Control(root).is_paused,
        damaged=manifest is not None and any(f.sha256 in rotten for f in manifest.files),
    )


def _manifest(root: Path, slot: Slot | None) -> Manifest | None:
    try:
        return None if slot is None else Manifest.read(root / "releases" / slot.folder)
    except ManifestError:
        return None
