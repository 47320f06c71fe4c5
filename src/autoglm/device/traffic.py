"""What went over metered networks today, kept across restarts.

What it guarantees: the count survives a crash but for the last :data:`_STEP_BYTES`; a new local date begins
at zero. A clock that jumps to another date begins anew too: this is about cost, not about trust.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from autoglm.device.slots import read_json
from autoglm.files import write_durably
from autoglm.releases import canonical_json

_STEP_BYTES = 1 << 20


class Traffic:
    """The count in one small file.

    Args:
        path: the file; made when something is counted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        value: Any = read_json(path)
        known: dict[str, Any] = value if isinstance(value, dict) else {}
        day, num_bytes = known.get("day"), known.get("bytes")
        self._day = day if isinstance(day, str) else ""
        self._num_bytes = num_bytes if isinstance(num_bytes, int) and num_bytes > 0 else 0
        self._kept = self._num_bytes

    def today(self, now: datetime) -> int:
        """Return the bytes counted on the local date of ``now``."""
        return self._num_bytes if now.date().isoformat() == self._day else 0

    def add(self, num_bytes: int, now: datetime, *, keep: bool) -> None:
        """Count bytes.

        Args:
            keep: write the count to the disk, however small the change.

        Raises:
            StorageError: the disk refused.
        """
        day = now.date().isoformat()
        if day != self._day:
            if not num_bytes:
                return
            self._day, self._num_bytes, self._kept = day, 0, 0
        self._num_bytes += num_bytes
        unkept = self._num_bytes - self._kept
        if unkept >= _STEP_BYTES or (keep and unkept):
            write_durably(self._path, canonical_json({"day": day, "bytes": self._num_bytes}))
            self._kept = self._num_bytes
