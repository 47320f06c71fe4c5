"""A release that was staged by hand and waits to be committed to.

It waits in memory only: after a crash nothing is staged, and the next update goes on from the files, which
are on the disk and whole. A scheduled update leaves it alone as long as the hub still offers it; when the
hub offers another release, or none, it is dropped.
"""

from __future__ import annotations

from autoglm.device.cycle import Arrival, HeldError, Prepared
from autoglm.device.offer import Offer
from autoglm.device.states import E_CANCELLED
from autoglm.errors import ConflictError


class Staging:
    """Holds at most one prepared release; for the thread that holds the updater."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None

    @property
    def version(self) -> str | None:
        """The version that waits, if one does."""
        prepared = self._prepared
        return None if prepared is None else prepared.manifest.version

    def holds(self, offer: Offer) -> bool:
        """Tell whether it is this offer's release that waits."""
        prepared = self._prepared
        return prepared is not None and prepared.slot.manifest_sha256 == offer.manifest_sha256

    def keep(self, prepared: Prepared) -> None:
        """Let a release wait."""
        self.drop()
        self._prepared = prepared

    def keep_only(self, offer: Offer | None) -> None:
        """Drop what waits unless it is this offer's release."""
        if offer is None or not self.holds(offer):
            self.drop()

    def drop(self) -> bool:
        """Let the runtime forget what waits; return whether something did."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.discard()
        return prepared is not None

    def require(self) -> None:
        """See that something waits.

        Raises:
            ConflictError: nothing does.
        """
        if self._prepared is None:
            raise _nothing_staged()

    def commit(self) -> Arrival:
        """Make the release that waits the current one.

        Raises:
            ConflictError: none waits.
            GiveUpError, HeldError, StorageError, EngineError: as :meth:`~autoglm.device.cycle.Cycle.finish`.
        """
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            raise _nothing_staged()
        try:
            return prepared.cycle.finish(prepared)
        except HeldError as error:
            if error.reason == E_CANCELLED:
                prepared.discard()
            else:
                self._prepared = prepared
            raise


def _nothing_staged() -> ConflictError:
    return ConflictError("nothing is staged: stage a release first")
