"""What the hub's database does differently on SQLite and on PostgreSQL; all else is the same SQL.

Both give the same promises: a reader sees one moment, writers take turns, what was committed survives a
power cut, and every process notices what another one changed. :class:`Sqlite` is here,
:class:`~autoglm.hub.postgres.Postgres` beside it, because only that one needs a driver of its own.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import Any, Protocol, cast

from sqlalchemy import URL, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, DiskFullError, StorageError

WRITING = "writing"
"""The execution option that says which lock a writing transaction takes first."""
WRITERS = "writers"
_BUSY_MS = 30_000
# SQLAlchemy wraps what the driver raises, but not while a connection is being configured.
ERRORS = (DBAPIError, TimeoutError, sqlite3.Error)


class Dialect(Protocol):
    """One kind of database."""

    @property
    def reader(self) -> Engine:
        """The engine whose transactions read, each one moment."""
        ...

    def writer(self, lock: str) -> Engine:
        """Return the engine whose transactions write, one after the other among those of the same lock."""
        ...

    def open(self) -> None:
        """Begin to notice what others change; the tables are there."""
        ...

    def announce(self, session: Session) -> None:
        """Let every process notice the caller's change, from the moment that it is committed."""
        ...

    def announced(self) -> None:
        """Be told that an announced change of this process was committed."""
        ...

    def change_mark(self) -> int:
        """Return a number that differs from the last one if anyone has changed the database since."""
        ...

    def explain(self, error: Exception) -> StorageError:
        """Translate what the driver raised."""
        ...

    def close(self) -> None:
        """Give all connections back."""
        ...


def dialect_of(url: str) -> Dialect:
    """Return the dialect that a database URL asks for.

    Raises:
        ConfigError: it is no URL, or of a database that the hub does not know.
        StorageError: the database cannot be opened.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("hub: database_url is not a database URL") from error
    kind = parsed.get_backend_name()
    if kind == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return Sqlite(parsed)
    if kind == "postgresql" and parsed.drivername in ("postgresql", "postgresql+psycopg"):
        from autoglm.hub.postgres import Postgres

        return Postgres(parsed.set(drivername="postgresql+psycopg"))
    raise ConfigError(
        "hub: database_url must name an SQLite file, such as sqlite:////var/lib/hub.sqlite, or a PostgreSQL "
        "database, such as postgresql+psycopg://hub@db.example.com/autoglm"
    )


def is_shared(url: str | None) -> bool:
    """Tell whether a database URL is of a server that several machines share."""
    return url is not None and url.startswith("postgresql")


def insert_into(session: Session, table: type[Any]) -> sqlite.Insert:
    """Return an ``INSERT`` that may say what to do on a conflict, for the session's database."""
    target = cast("Table", table.__table__)
    if session.get_bind().dialect.name == "postgresql":
        return cast("sqlite.Insert", postgresql.insert(target))  # the same methods, by another class
    return sqlite.insert(target)


class Sqlite:
    """One SQLite file in WAL mode, shared by any number of threads and processes of one machine."""

    def __init__(self, url: URL) -> None:
        self.reader = create_engine(url, pool_size=8, max_overflow=-1)
        event.listen(self.reader, "connect", _configure)
        event.listen(self.reader, "begin", _begin)
        self._watch_lock = threading.Lock()
        self._watch: Any = None
        try:
            with contextlib.closing(self.reader.raw_connection()) as raw:
                cast("Any", raw).execute("PRAGMA journal_mode = WAL")
        except ERRORS as error:
            self.reader.dispose()
            raise self.explain(error) from error

    def writer(self, lock: str) -> Engine:
        """Return the engine whose transactions write; one file has one writer, whatever the lock."""
        return self.reader.execution_options(**{WRITING: lock})

    def open(self) -> None:
        """Hold the connection that is asked whether others wrote."""
        self._watch = self.reader.raw_connection()

    def announce(self, session: Session) -> None:
        """Do nothing: SQLite tells every connection of what another one wrote."""

    def announced(self) -> None:
        """Do nothing: see :meth:`announce`."""

    def change_mark(self) -> int:
        """Return SQLite's own mark: it costs a few microseconds and reads no table."""
        with self._watch_lock:
            return self._watch.execute("PRAGMA data_version").fetchone()[0]

    def explain(self, error: Exception) -> StorageError:
        """Translate what the driver raised."""
        cause = str(error.orig if isinstance(error, DBAPIError) else error)
        if "full" in cause:
            return DiskFullError("no space left for the hub's database: free some; nothing was lost")
        if "not a database" in cause or "malformed" in cause:
            return StorageError(f"the hub's database is damaged ({cause}): restore it from a backup")
        return StorageError(f"the hub's database refused: {cause}")

    def close(self) -> None:
        """Give all connections back."""
        if self._watch is not None:
            self._watch.close()
        self.reader.dispose()


def _configure(connection: Any, _record: Any) -> None:
    # We say BEGIN ourselves: the driver would begin too late, and never for DDL.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get(WRITING)
    connection.exec_driver_sql("BEGIN" if writing is None else "BEGIN IMMEDIATE")
