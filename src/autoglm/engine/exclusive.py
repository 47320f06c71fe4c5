"""Changing releases where memory holds only one: the live one goes before the new one comes.

What it guarantees: a request that was accepted before ends on its release; one that comes in the meantime
waits, in its caller's thread, and is answered by the release that is there afterwards; when the new one is
no good, the old one is loaded again and answers. Between two releases nothing is computed; that gap is
measured.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path

from autoglm.engine.aside import run_aside
from autoglm.engine.heap import give_back
from autoglm.engine.release import Placement, Resident, load_resident
from autoglm.engine.reports import Staged
from autoglm.engine.versions import Versions
from autoglm.errors import EngineError, OverloadedError

_log = logging.getLogger(__name__)


class Door:
    """Where requests come in; shut, they wait in front of it.

    Args:
        limit: how many may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._is_shut = self._is_empty = self._is_closed = False
        self._vacancy: Exception | None = None
        self._num_inside = self._num_in_threads = 0
        self._turns: list[Future[None]] = []

    @contextlib.contextmanager
    def entering(self) -> Generator[None]:
        """Come in with one request; the block puts it where it is counted by other means.

        Raises:
            OverloadedError: too many wait, or the engine was closed.
            EngineError: no release could be loaded to answer with.
        """
        with self._changed:
            self._wait()
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def turn(self) -> Future[None] | None:
        """Return None when it is open; else a future that is done when it opens or closes for good.

        It counts as one that waits until then, or until it is cancelled.

        Raises:
            OverloadedError: too many wait, or the engine was closed.
        """
        with self._changed:
            if self._is_closed:
                raise OverloadedError("the engine is shutting down", retry_after_s=5)
            if not self._is_shut:
                return None
            self._require_place()
            turn: Future[None] = Future()
            self._turns.append(turn)
            return turn

    @property
    def num_waiting(self) -> int:
        """How many wait in front of it."""
        return self._num_in_threads + sum(not turn.done() for turn in self._turns)

    def _require_place(self) -> None:
        self._turns = [turn for turn in self._turns if not turn.done()]
        if self._is_shut and self.num_waiting >= self._limit:
            raise OverloadedError(f"{self._limit} requests wait already: try again later", retry_after_s=5)

    def _wait(self) -> None:
        self._require_place()
        self._num_in_threads += 1
        try:
            self._changed.wait_for(lambda: not self._is_shut or self._is_closed)
        finally:
            self._num_in_threads -= 1
        if self._is_closed:
            raise OverloadedError("the engine is shutting down", retry_after_s=5)
        if self._vacancy is not None:
            raise EngineError(f"no release is in memory, start again: {self._vacancy}") from self._vacancy

    def shut(self) -> None:
        """Let nobody in any more; return when those inside are through.

        Raises:
            EngineError: it is shut already.
        """
        with self._changed:
            if self._is_shut:
                raise EngineError("another release is just changing places with the live one")
            self._is_shut, self._is_empty, self._vacancy = True, False, None
            self._changed.wait_for(lambda: self._num_inside == 0)

    def note_empty(self) -> None:
        """Take note that the release behind the shut door leaves memory."""
        self._is_empty = True

    def open(self, vacancy: Exception | None = None) -> None:
        """Let everybody in; or, with the reason why there is no release, tell them that."""
        with self._changed:
            self._is_shut, self._is_empty, self._vacancy = False, False, vacancy
            self._let_in()

    @property
    def is_vacant(self) -> bool:
        """Whether there is no release behind it."""
        return self._vacancy is not None

    @property
    def trouble(self) -> str | None:
        """Why requests are not taken just now; None when they are, if only to wait for those under way."""
        if self._is_closed:
            return "the engine is shutting down"
        if self._is_shut and self._is_empty:
            return "a release is being loaded in place of the live one"
        if self._is_shut and self.num_waiting >= self._limit:
            return f"{self._limit} requests wait already for those under way to end"
        return None if self._vacancy is None else f"no release is in memory: {self._vacancy}"

    def close(self) -> None:
        """Send everybody away for good."""
        with self._changed:
            self._is_closed = True
            self._let_in()

    def _let_in(self) -> None:
        self._changed.notify_all()
        turns, self._turns = self._turns, []
        for turn in turns:
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)


class Exchange:
    """Takes the live release out of memory, and puts another one or the same one back.

    Args:
        placement: where releases go.
        versions: the table of what is loaded.
        door: where requests come in.
        on_engine: runs a command on the engine's thread, between two steps.
    """

    def __init__(
        self,
        placement: Placement,
        versions: Versions,
        door: Door,
        on_engine: Callable[[Callable[[], None]], object],
    ) -> None:
        self._placement, self._versions, self._door, self._on_engine = placement, versions, door, on_engine
        self._since_s = 0.0

    def stage(self, directory: Path, instead_of: Path, drain_s: float) -> Staged:
        """Drain, unload the live release, load the one in ``directory``; the door stays shut.

        Args:
            directory: the new release.
            instead_of: the live release, to load again should this one not load or be discarded.
            drain_s: longest wait for the requests under way.

        Raises:
            OverloadedError: they took longer; the live release serves on.
            TrustError, FormatError, EngineError: it cannot be loaded; the old one was loaded again.
        """
        self._door.shut()
        try:
            if not self._versions.wait_unused(drain_s):
                raise OverloadedError(f"requests took longer than {drain_s:g} s to end", retry_after_s=60)
            # Counted from here: until now, requests were answered.
            self._since_s = time.perf_counter()
            self._door.note_empty()
            self._on_engine(self._unload)
        except BaseException:
            self._door.open()
            raise
        try:
            resident = run_aside(lambda: load_resident(directory, self._placement), "stage")
        except BaseException as error:
            _let_go(error)
            self.restore(None, instead_of)
            raise
        return Staged(resident.release.version, resident, instead_of=instead_of)

    @contextlib.contextmanager
    def drained(self, seconds: float) -> Generator[float]:
        """Let nobody in for a block, and those under way end before it, as they can in so many seconds.

        Yields:
            How long that took, in seconds.

        Raises:
            EngineError: another swap is under way.
        """
        started_s = time.perf_counter()
        self._door.shut()
        try:
            if not self._versions.wait_unused(seconds):
                _log.warning("requests outlast the %g s of draining: they finish beside", seconds)
            yield time.perf_counter() - started_s
        finally:
            self._door.open()

    def finish(self) -> float:
        """Let requests in on the new release; return how long none was there, in seconds."""
        self._door.open()
        return time.perf_counter() - self._since_s

    def restore(self, resident: Resident | None, instead_of: Path) -> float:
        """Drop the new release, load the old one again and let requests in; return the gap in seconds.

        Raises:
            TrustError, FormatError, EngineError: the old one does not load any more. Requests fail until
                the next :meth:`stage` brings a release.
        """
        if resident is not None:
            resident.unload()
        give_back()
        try:
            # Whatever the count of free memory says: there is nothing else to serve with.
            old = run_aside(lambda: load_resident(instead_of, self._placement, check_room=False), "reload")
            self._on_engine(lambda: self._versions.put_in(old))
        except Exception as error:
            self._door.open(vacancy=error)
            raise
        gap_s = self.finish()
        _log.warning("release %s was loaded again after %.1f s without one", old.release.version, gap_s)
        return gap_s

    def _unload(self) -> None:
        self._versions.drop_previous()
        self._versions.active.unload()
        give_back()


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of a failed load still hold: half a model, while the old one needs its place."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
