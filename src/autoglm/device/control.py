"""What a person asks of a device, kept in its data directory: a pause, and "update now".

What it guarantees: each is one small file, written or removed whole and durably, so any process may ask
without the lock, and what was asked survives a restart; a request to update is taken once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoglm import files
from autoglm.device.slots import read_json
from autoglm.releases import canonical_json


@dataclass(frozen=True)
class Request:
    """A request to update now.

    Attributes:
        force: also pass over the rules on network, power, storage and hours.
    """

    force: bool = False


class Control:
    """The requests in one data directory.

    Args:
        root: the data directory.

    Raises:
        StorageError: from every method that changes something, when the disk refuses.
    """

    def __init__(self, root: Path) -> None:
        self._directory = root / "control"
        self._pause, self._request = self._directory / "paused.json", self._directory / "now.json"

    @property
    def is_paused(self) -> bool:
        """Whether a pause was asked for, and not ended."""
        return self._pause.exists()

    def pause(self, reason: str = "") -> None:
        """Ask for a pause until :meth:`resume`."""
        files.make_directory(self._directory)
        files.write_durably(self._pause, canonical_json({"reason": reason[:200]}))

    def resume(self) -> None:
        """End the pause, if there is one."""
        files.remove(self._pause)

    @property
    def has_request(self) -> bool:
        """Whether a request to update now waits."""
        return self._request.exists()

    def ask(self, *, force: bool = False) -> None:
        """Ask for an update now."""
        files.make_directory(self._directory)
        files.write_durably(self._request, canonical_json({"force": force}))

    def take(self) -> Request | None:
        """Return the request to update now that waits, and remove it."""
        if not self.has_request:
            return None
        value = read_json(self._request)
        files.remove(self._request)
        return Request(force=isinstance(value, dict) and value.get("force") is True)
