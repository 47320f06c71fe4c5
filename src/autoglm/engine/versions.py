"""Which releases are in memory, which one answers new requests, and who still uses an old one.

What it guarantees: a request gets one release and keeps it; a release is dropped when nobody holds it (not
active, not the previous one kept for rollback, no request in flight), and never before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from autoglm.engine.release import Resident
from autoglm.errors import EngineError, RequestError


class Versions:
    """The table of resident releases; safe to use from every thread."""

    def __init__(self, active: Resident, bury: Callable[[Resident], object] = lambda resident: None) -> None:
        """Begin with one release; ``bury`` is called with each that was dropped, and must not block."""
        self._lock = threading.Condition()
        self._active = active
        self._previous: Resident | None = None
        self._retiring: list[Resident] = []
        self._bury = bury

    @property
    def active(self) -> Resident:
        """The release that answers new requests."""
        return self._active

    @property
    def previous(self) -> Resident | None:
        """The release that a rollback returns to, while it is kept."""
        return self._previous

    @property
    def loaded(self) -> tuple[str, ...]:
        """The versions that a request may name, the active one first."""
        with self._lock:
            return tuple(resident.release.version for resident in self._named())

    @property
    def num_retiring(self) -> int:
        """Releases that only finish requests which began on them."""
        return len(self._retiring)

    def acquire(self, version: str | None = None) -> Resident:
        """Take a hold on a release for one request; give it back with :meth:`let_go`.

        Raises:
            RequestError: this version is not loaded.
        """
        with self._lock:
            resident = self._find(version)
            resident.num_users += 1
            return resident

    def hold(self, resident: Resident) -> None:
        """Take one more hold on a release that the caller holds already."""
        with self._lock:
            resident.num_users += 1

    def let_go(self, resident: Resident) -> None:
        """End one request's hold; the last one of a retiring release drops it."""
        with self._lock:
            resident.num_users -= 1
            self._collect()
            self._lock.notify_all()

    def wait_unused(self, seconds: float) -> bool:
        """Wait until no request holds any release; return False when that took longer than ``seconds``."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._retiring and not self._num_users(), seconds)

    def put_in(self, resident: Resident) -> None:
        """Make ``resident`` active and keep nothing to go back to."""
        with self._lock:
            self._retire(self._previous)
            self._previous, self._active = None, resident

    def promote(self, resident: Resident) -> None:
        """Make ``resident`` active and keep the present one as the previous."""
        with self._lock:
            self._retire(self._previous)
            self._previous, self._active = self._active, resident

    def revert(self) -> None:
        """Make the previous release active again and retire the present one.

        Raises:
            EngineError: no previous release is kept.
        """
        with self._lock:
            if self._previous is None:
                raise EngineError("there is no previous release in memory to roll back to")
            self._retire(self._active)
            self._active, self._previous = self._previous, None

    def exchange(self, old: Resident, new: Resident) -> None:
        """Let ``new`` stand wherever ``old`` does; requests that hold ``old`` still give it back."""
        with self._lock:
            self._active = new if self._active is old else self._active
            self._previous = new if self._previous is old else self._previous
            old.is_lost = True
            self._retiring.append(old)
            self._collect()

    def move(self, old: Resident, new: Resident, num_users: int) -> None:
        """Note that so many requests went from ``old`` to ``new``."""
        with self._lock:
            old.num_users -= num_users
            new.num_users += num_users
            self._collect()

    def drop_previous(self) -> None:
        """Stop keeping the previous release."""
        with self._lock:
            self._retire(self._previous)
            self._previous = None

    def _num_users(self) -> int:
        return sum(resident.num_users for resident in self._named())

    def _named(self) -> list[Resident]:
        return [self._active] if self._previous is None else [self._active, self._previous]

    def _find(self, version: str | None) -> Resident:
        if version is None:
            return self._active
        for resident in self._named():
            if resident.release.version == version:
                return resident
        known = ", ".join(resident.release.version for resident in self._named())
        raise RequestError(f"release {version!r} is not loaded; loaded: {known}", param="model")

    def _retire(self, resident: Resident | None) -> None:
        if resident is not None:
            self._retiring.append(resident)
            self._collect()

    def _collect(self) -> None:
        unused = [resident for resident in self._retiring if resident.num_users == 0]
        self._retiring = [resident for resident in self._retiring if resident.num_users > 0]
        for resident in unused:
            self._bury(resident)
