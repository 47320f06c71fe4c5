"""Events on their way to the hub, kept until it has said that it has them.

What it guarantees: an event that was queued survives any crash; it is sent until the hub accepts it, and
because its id never changes, the hub counts it once. The box is bounded: when it is full, the oldest
reports of mere progress go first, outcomes last.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from autoglm import files
from autoglm.device.transport import RefusedError, Transport
from autoglm.errors import MessageError, StorageError
from autoglm.releases import Control, Event, EventBatch

MAX_QUEUED = 1000
_BATCH = 100
_TABLE = """CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE,
    outcome INTEGER NOT NULL, body TEXT NOT NULL)"""


class Outbox:
    """The queue of events in one SQLite file; safe to use from several threads.

    Args:
        path: the file; made when missing, made anew when it is damaged.
        max_queued: how many events it holds.

    Raises:
        StorageError: from every method, when the disk refuses.
    """

    def __init__(self, path: Path, *, max_queued: int = MAX_QUEUED) -> None:
        self._path, self._max_queued = path, max_queued
        self._lock = threading.Lock()
        try:
            self._database = self._open()
        except sqlite3.DatabaseError:  # not a database any more: better to lose reports than to never start
            for leftover in (path, path.with_name(f"{path.name}-journal")):
                files.remove(leftover)
            with _translated(path):
                self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous=FULL")
            database.execute(_TABLE)
            database.execute("SELECT COUNT(*), MAX(seq) FROM events").fetchone()
        except BaseException:
            database.close()
            raise
        return database

    def add(self, event: Event) -> None:
        """Queue an event durably; one with an id that is queued already changes nothing."""
        body = json.dumps(event.to_json(), ensure_ascii=False)
        outcome = int(event.result != "progress")
        with self._lock, _translated(self._path), self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO events (event_id, outcome, body) VALUES (?, ?, ?)",
                (event.event_id, outcome, body),
            )
            self._database.execute(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY outcome, seq LIMIT "
                "MAX(0, (SELECT COUNT(*) FROM events) - ?))",
                (self._max_queued,),
            )

    def __len__(self) -> int:
        """Return how many events wait."""
        with self._lock, _translated(self._path):
            return int(self._database.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def flush(self, transport: Transport, device_id: str) -> Control:
        """Send everything; return what the hub says about going on.

        Raises:
            NetworkError: the hub was not reached; what it did not take stays queued.
        """
        control: Control = "continue"
        while events := self._oldest(_BATCH):
            accepted, control = self._send(transport, device_id, events)
            # A hub that names events which it was not sent must not keep this going for ever.
            done = {event.event_id for event in events} & set(accepted)
            self._drop(tuple(done))
            if not done:
                break
        return control

    def _send(
        self, transport: Transport, device_id: str, events: list[Event]
    ) -> tuple[tuple[str, ...], Control]:
        """Send a batch; one that the hub refuses goes event by event, and the bad ones are let go."""
        try:
            answer = transport.report(EventBatch(device_id, tuple(events)))
        except RefusedError:
            if len(events) == 1:
                return (events[0].event_id,), "continue"
            answers = [self._send(transport, device_id, [event]) for event in events]
            return tuple(name for accepted, _ in answers for name in accepted), answers[-1][1]
        return answer.accepted, answer.control

    def _oldest(self, limit: int) -> list[Event]:
        with self._lock, _translated(self._path):
            rows = self._database.execute(
                "SELECT seq, event_id, body FROM events ORDER BY seq LIMIT ?", (limit,)
            ).fetchall()
        return list(self._readable(rows))

    def _readable(self, rows: list[tuple[int, str, str]]) -> Iterator[Event]:
        for seq, event_id, body in rows:
            try:
                yield replace(Event.from_json(json.loads(body)), seq=seq)
            except (ValueError, MessageError):
                self._drop((event_id,))  # written by another version, or damaged: nobody could read it

    def _drop(self, event_ids: tuple[str, ...]) -> None:
        with self._lock, _translated(self._path), self._transaction():
            rows = [(event_id,) for event_id in event_ids]
            self._database.executemany("DELETE FROM events WHERE event_id = ?", rows)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{path.name}: {error}") from error


def count_queued(path: Path) -> int:
    """Return how many events wait in an outbox that another process may be using; 0 when it is missing."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    except sqlite3.Error:
        return 0
