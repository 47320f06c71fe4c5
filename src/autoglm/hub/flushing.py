"""A thread that writes what was collected, about a second after something came."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from autoglm.errors import StorageError, UnstorableError

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0


class Flusher:
    """Calls ``flush`` after :meth:`wake`, from a thread of its own, until :meth:`close`.

    Args:
        flush: writes everything collected; it says :meth:`taken` at the moment it takes it.
        name: of the thread.
        delayed: what the log says when the database refuses.
    """

    def __init__(self, flush: Callable[[], None], name: str, delayed: str) -> None:
        self._flush, self._delayed = flush, delayed
        self._work, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to write."""
        self._work.set()

    def taken(self) -> None:
        """Say that everything collected so far was taken; call it under the lock of the collection."""
        self._work.clear()

    def close(self) -> None:
        """End the thread, then write what is left.

        Raises:
            StorageError: the database refused.
        """
        self._stop.set()
        self._work.set()
        self._thread.join()
        self._flush()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._work.wait()
            self._stop.wait(FLUSH_SECONDS)
            try:
                self._flush()
            except StorageError as error:
                _log.warning("%s: %s", self._delayed, error)
                self._stop.wait(FLUSH_SECONDS)
            except (UnstorableError, ValueError, OverflowError):
                # One batch is lost; without this thread all that follow would be.
                _log.exception("What was collected could not be written and is dropped")
