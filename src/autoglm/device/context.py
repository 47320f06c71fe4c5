"""What the parts of the SDK share: the pieces of one device, opened together under its lock."""

from __future__ import annotations

import random
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from autoglm import files
from autoglm.device.clock import Clock
from autoglm.device.outbox import Outbox
from autoglm.device.settings import Progress, UpdateSettings
from autoglm.device.slots import Slot, Slots, read_json
from autoglm.device.states import Attempt, Machine
from autoglm.device.transport import Transport
from autoglm.device.trust import Trust
from autoglm.errors import ConfigError, MessageError
from autoglm.releases import DeviceEnvironment, Event, UpdateRequest, canonical_json


def silent(_phase: str, _done: int, _total: int) -> None:
    """Report no progress."""


@dataclass
class Live:
    """What this process serves, which after a commit without a swap is not what ``current.json`` names.

    Attributes:
        slot: the release that answers in this process.
        can_go_back: the runtime still holds the release that served before.
    """

    slot: Slot | None = None
    can_go_back: bool = False


@dataclass
class Device:
    """The pieces of one device.

    Attributes:
        root: its data directory.
        device_id: its name towards the hub.
        model, variant: what it follows; variant None takes whatever comes first and stays with it.
        progress: told how far downloads and patches are.
    """

    root: Path
    device_id: str
    model: str
    variant: str | None
    settings: UpdateSettings
    clock: Clock
    random_source: random.Random
    slots: Slots
    machine: Machine
    outbox: Outbox
    transport: Transport | None
    trust: Trust
    progress: Progress = silent
    live: Live = field(default_factory=Live)
    counted_wire_bytes: int = 0

    def count_wire_bytes(self) -> None:
        """Store what went over the wire since the last call."""
        so_far = 0 if self.transport is None else self.transport.wire_bytes
        self.machine.count_wire_bytes(so_far - self.counted_wire_bytes)
        self.counted_wire_bytes = so_far

    def timestamp(self) -> str:
        """Return the time as RFC 3339."""
        return self.clock.now().isoformat(timespec="seconds")

    def is_current(self, manifest_sha256: str) -> bool:
        """Tell whether this release is the one to load."""
        current = self.slots.now.current
        return current is not None and current.manifest_sha256 == manifest_sha256

    def request(self, environment: DeviceEnvironment | None = None, *, as_new: bool = False) -> UpdateRequest:
        """Describe what is installed, and the device's state, as the hub is asked.

        Args:
            as_new: ask for a whole release, as a device without one.
        """
        env = environment or DeviceEnvironment()
        with suppress(OSError):
            env = replace(env, free_bytes=shutil.disk_usage(self.root).free)
        manifest = self.slots.manifest(self.slots.now.current)
        variant = manifest.variant if self.variant is None and manifest is not None else self.variant
        return UpdateRequest(
            device_id=self.device_id,
            current_version=None if manifest is None or as_new else manifest.version,
            current_sha256=None if manifest is None or as_new else manifest.sha256,
            model=self.model,
            variant=variant,
            env=env,
            failed=tuple(dict.fromkeys(entry.version for entry in self.slots.quarantined)),
        )

    def queue_event(
        self, attempt: Attempt, state: str, result: str, *, name: str, stats: dict[str, float] | None = None
    ) -> None:
        """Queue one event about an attempt. Its id derives from ``name``, so that queueing it again after a
        crash does not count twice."""
        event = Event(
            event_id=f"{attempt.uid}-{name}",
            seq=0,
            state=state,
            result=result,
            attempt_id=attempt.attempt_id,
            rollout_id=attempt.rollout_id,
            from_version=attempt.from_version,
            to_version=attempt.version,
            code=attempt.code,
            bytes=attempt.wire_bytes,
            ms=self._milliseconds(attempt),
            ts=self.timestamp(),
            stats=stats or {},
        )
        self.outbox.add(event)

    def _milliseconds(self, attempt: Attempt) -> int | None:
        try:
            started = datetime.fromisoformat(attempt.started_at or "")
            return max(0, int((self.clock.now() - started).total_seconds() * 1000))
        except (ValueError, TypeError, OverflowError):
            return None  # not known, or not what this version writes: no reason to lose the report


def keep_device_id(root: Path, given: str | None) -> str:
    """Return the device's name: the one given, else the one kept, else a new one, which is kept.

    Raises:
        ConfigError: the name given breaks the protocol's rules.
    """
    path = root / "device.json"
    value = read_json(path)
    kept = value.get("device_id") if isinstance(value, dict) else None
    if given is not None and not _is_device_id(given):
        raise ConfigError(f"device_id: {given!r} is no name of 1 to 128 letters, digits and '._:@-'")
    name = given or (kept if isinstance(kept, str) and _is_device_id(kept) else f"dev_{secrets.token_hex(8)}")
    if name != kept:
        files.write_durably(path, canonical_json({"device_id": name}))
    return name


def _is_device_id(name: str) -> bool:
    try:
        UpdateRequest.from_json({"device_id": name})
    except MessageError:
        return False
    return True
