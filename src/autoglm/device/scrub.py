"""Looking after the releases that lie on the disk: storage forgets, also where nobody writes.

What it guarantees: every file of the current and the previous release is read and hashed once in the time
that is set, a slice at a time so that nothing waits for it; a file that has changed is remembered durably,
its release is not fallen back to, and the next update fetches it again. It repairs nothing itself.

What the kernel holds in memory it does not read from the disk again; a file in use is seen to be rotten
only after it has left there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autoglm.device.context import Device
from autoglm.device.settings import parse_every
from autoglm.device.slots import Current, read_json
from autoglm.errors import IntegrityError
from autoglm.files import write_durably
from autoglm.releases import canonical_json

_log = logging.getLogger(__name__)

SLICE_BYTES = 64 << 20


@dataclass
class _Reading:
    """One file on its way through the hash."""

    path: Path
    sha256: str
    size: int
    offset: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Scrub:
    """Re-verifies what is installed; for the thread that holds the updater."""

    def __init__(self, device: Device) -> None:
        self._device = device
        every = device.settings.scrub_every
        self._period = None if every is None else parse_every(every)
        self._path = device.root / "scrub.json"
        self._due: float | None = None
        self._files: Iterator[_Reading] | None = None
        self._file: _Reading | None = None
        self._of: Current | None = None

    def step(self, slice_bytes: int = SLICE_BYTES) -> None:
        """Read the next slice when a round is due.

        Raises:
            StorageError: the disk refused to keep what was found.
        """
        if self._period is None or self._device.slots.now.current is None:
            return
        if self._of != self._device.slots.now:
            self._files = self._file = None
        if self._files is None and not self._begin(self._period):
            return
        self._read(slice_bytes)

    def _begin(self, period: float) -> bool:
        """Start a round if it is time for one."""
        now = self._device.clock.monotonic()
        if self._due is None:
            self._due = now + self._seconds_left(period)
        if now < self._due:
            return False
        self._of, self._files = self._device.slots.now, self._installed()
        return True

    def _seconds_left(self, period: float) -> float:
        """Return the time to the next round by the date of the last one; a date that cannot be is no date."""
        value = read_json(self._path)
        try:
            since = (self._device.clock.now() - datetime.fromisoformat(value["done_at"])).total_seconds()
        except (TypeError, KeyError, ValueError):
            self._keep()  # installing has just read everything
            return period
        return period - since if 0 <= since < period else 0.0

    def _installed(self) -> Iterator[_Reading]:
        slots, seen = self._device.slots, set[int]()
        for slot in (slots.now.current, slots.now.previous):
            manifest = slots.manifest(slot)
            if slot is None or manifest is None:
                continue
            for file in manifest.files:
                path = slots.directory(slot) / file.path
                inode = path.stat().st_ino if path.exists() else -1
                if inode not in seen:
                    seen.add(inode)
                    yield _Reading(path, file.sha256, file.size)

    def _read(self, slice_bytes: int) -> None:
        if self._file is None:
            self._file = next(self._files or iter(()), None)
            if self._file is None:
                self._end()
                return
        file = self._file
        try:
            with file.path.open("rb") as source:
                source.seek(file.offset)
                content = source.read(slice_bytes)
        except OSError:  # what cannot be read is as good as lost
            content = b""
        file.digest.update(content)
        file.offset += len(content)
        if not content or file.offset > file.size:
            self._file = None
            self._judge(file)

    def _judge(self, file: _Reading) -> None:
        if file.offset == file.size and file.digest.hexdigest() == file.sha256:
            return
        message = f"{file.path} has changed on the disk: it is fetched again"
        _log.error("%s", message)
        device = self._device
        device.slots.mark_rotten(file.sha256)
        device.machine.remember_error(IntegrityError.code, message, device.timestamp())
        if device.slots.now.confirmed and device.slots.is_rotten(device.slots.now.previous):
            device.slots.forget_previous()
            device.slots.collect_garbage()

    def _end(self) -> None:
        self._files, self._due = None, self._device.clock.monotonic() + (self._period or 0.0)
        self._keep()

    def _keep(self) -> None:
        write_durably(self._path, canonical_json({"done_at": self._device.timestamp()}))
