"""What a worker does between builds: renew signatures, remove what killed uploads left in the bucket."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.errors import AutoGLMError
from autoglm.hub.parts import Parts
from autoglm.hub.store import objects_of
from autoglm.hub.tables import PackageRow, ReleaseRow
from autoglm.releases import Manifest

_log = logging.getLogger(__name__)

SWEEP_EVERY_S = 24 * 3600.0


class Upkeep:
    """The chores of one worker.

    Args:
        parts: the hub's.
        clock: seconds since 1970.
    """

    def __init__(self, parts: Parts, clock: Callable[[], float]) -> None:
        self._store, self._database, self._trust = parts.store, parts.database, parts.trust
        self._clock, self._swept_at = clock, 0.0

    def run(self) -> None:
        """Do what is due; what goes wrong is logged and tried again."""
        self._keep_signed()
        if self._clock() - self._swept_at >= SWEEP_EVERY_S:
            self._swept_at = self._clock()
            try:
                self.sweep()
            except (AutoGLMError, OSError) as error:
                _log.warning("What killed uploads left could not be removed: %s", error)

    def _keep_signed(self) -> None:
        """Sign again what will expire soon, and say what only other keys can sign."""
        try:
            if not self._trust.refresh():
                return
            for role, expires in self._trust.expiring():
                _log.warning(
                    "%s expires on %s and is signed by keys that are not here: see docs/trust.md",
                    role,
                    f"{expires:%Y-%m-%d}",
                )
        except (AutoGLMError, OSError) as error:
            _log.warning("The signed metadata could not be renewed: %s", error)

    def sweep(self) -> int:
        """Remove from the bucket what no row names, and copies of this machine that nobody used for a week.

        Returns:
            How many objects were removed from the bucket.

        Raises:
            StorageError: the bucket, the disk or the database refused.
        """
        storage = self._store.storage
        with self._database.read() as session:
            strangers = storage.strangers(_known(session), now=self._clock())
        if strangers:
            # Publications write their rows under the same lock, after looking for their objects: nothing is
            # removed that one of them has found.
            with self._database.write(decides=False) as session:
                strangers = sorted(set(strangers) - _known(session))
                storage.delete(strangers)
        self._store.forget_unused(self._clock())
        return len(strangers)


def _known(session: Session) -> set[str]:
    """Return the hashes of all objects that a row names."""
    packages = session.scalars(select(PackageRow.sha256).where(PackageRow.state == "stored"))
    known = {sha256 for sha256 in packages if sha256 is not None}
    for content in session.scalars(select(ReleaseRow.manifest)):
        known |= objects_of(Manifest.from_bytes(content))
    return known
