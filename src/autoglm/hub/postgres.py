"""The hub's tables on PostgreSQL: one database for any number of hubs and workers.

Writers take turns by an advisory lock, so that a transaction never fails because of another one; readers
see one moment and wait for nobody. A thread listens for announced changes and asks for the revision four
times a second, so that what one hub halts every other one knows at once. A hub that the database does not
answer stops deciding: an offer might have been halted meanwhile.

    >>> Postgres(make_url("postgresql+psycopg://hub@db.example.com/autoglm"))      # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from autoglm.errors import DiskFullError, StorageError
from autoglm.hub.dialects import WRITING

_log = logging.getLogger(__name__)

CHANNEL = "autoglm_hub"
POLL_S = 0.25
MAX_SILENCE_S = 5.0
"""A hub that has not heard from its database for this long makes no more offers."""
_RETRY_S = 0.5
_POOL_SIZE, _MAX_OVERFLOW = 8, 24
# A server that vanished is noticed within seconds, and a client that hangs holds no lock for ever.
_NETWORK = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "autoglm",
}
_SERVER = "-c lock_timeout=30000 -c idle_in_transaction_session_timeout=120000"
_NO_ROOM = ("53100", "53200")
_CUT_OFF = ("57P01", "57P02", "57P03", "08000", "08003", "08006", "25P03")


def lock_key(name: str) -> int:
    """Return the number of an advisory lock."""
    digest = hashlib.sha256(f"autoglm {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Postgres:
    """One PostgreSQL database, through psycopg."""

    def __init__(self, url: URL) -> None:
        own = url.query.get("options", "")
        options = f"{_SERVER} {own if isinstance(own, str) else ' '.join(own)}".strip()
        self._engine = create_engine(
            url,
            pool_size=_POOL_SIZE,
            max_overflow=_MAX_OVERFLOW,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={**_NETWORK, "options": options},
        )
        event.listen(self._engine, "begin", _begin)
        one_moment = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self.reader = self._engine.execution_options(**cast("Any", one_moment))
        self._watch = Watch(self._standing)

    def writer(self, lock: str) -> Engine:
        """Return the engine whose transactions write, one after the other among those of the same lock."""
        # READ COMMITTED: each statement sees all that was committed before the lock was given.
        return self._engine.execution_options(isolation_level="READ COMMITTED", **{WRITING: lock})

    def open(self) -> None:
        """Begin to listen."""
        self._watch.start()

    @contextmanager
    def _standing(self) -> Generator[psycopg.Connection[Any]]:
        """Give a connection that is not of the pool."""
        pooled = self._engine.raw_connection()
        connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
        pooled.detach()
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()

    def announce(self, session: Session) -> None:
        """Notify every listening process on commit."""
        session.execute(text(f"NOTIFY {CHANNEL}"))

    def announced(self) -> None:
        """Notice a change of this process at once, without the way through the server."""
        self._watch.bump()

    def change_mark(self) -> int:
        """Return the number of changes noticed so far; no round trip.

        Raises:
            StorageError: the database has not answered for :data:`MAX_SILENCE_S`.
        """
        return self._watch.mark()

    def explain(self, error: Exception) -> StorageError:
        """Translate what the driver raised."""
        origin = error.orig if isinstance(error, DBAPIError) else error
        state = getattr(origin, "sqlstate", None) or ""
        said = str(origin).strip().partition("\n")[0]
        if state in _NO_ROOM:
            return DiskFullError("no space left for the hub's database: free some; nothing was lost")
        if state in _CUT_OFF or (isinstance(origin, psycopg.OperationalError) and not state):
            return StorageError(f"the hub's database cannot be reached ({said}): it is tried again")
        return StorageError(f"the hub's database refused: {said}")

    def close(self) -> None:
        """Give all connections back."""
        self._watch.stop()
        self._engine.dispose()


def _begin(connection: Connection) -> None:
    name = connection.get_execution_options().get(WRITING)
    if name is not None:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (lock_key(name),))


class Watch:
    """A thread that notices what any process changes.

    Args:
        connect: gives a connection for the length of a block.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._mark = 0
        self._heard = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hub-watch", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._heard = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def bump(self) -> None:
        """Count a change."""
        with self._lock:
            self._mark += 1

    def mark(self) -> int:
        """Return the count; see :meth:`Postgres.change_mark`."""
        silent = time.monotonic() - self._heard
        if silent > MAX_SILENCE_S:
            raise StorageError(
                f"the hub's database has not answered for {silent:.0f} s: nothing is decided until it does"
            )
        return self._mark

    def _run(self) -> None:
        is_lost = False
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    if is_lost:
                        _log.warning("The hub's database answers again")
                    is_lost = False
                    self._listen(connection)
            except (psycopg.Error, DBAPIError, OSError) as error:
                if not is_lost:
                    _log.warning("The hub's database is not reached: %s", str(error).partition("\n")[0])
                is_lost = True
                self._stop.wait(_RETRY_S)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        known: Any = None
        while not self._stop.is_set():
            # Asked for as well: a notification is lost with its connection, the revision never is.
            revision = connection.execute("SELECT number FROM revision").fetchone()
            self._heard = time.monotonic()
            if revision != known:
                known = revision
                self.bump()
            for _ in connection.notifies(timeout=POLL_S, stop_after=1):
                self.bump()
