"""The hub's database: opening, migrating, transactions, and noticing that another process changed it.

What it guarantees: a write transaction is whole or not there, whatever is killed; two writers wait for
each other instead of failing; after :meth:`Database.write` returns, the change survives a power cut.
SQLite in WAL mode, through SQLAlchemy; every error of the database becomes a
:class:`~autoglm.errors.StorageError` here.

    >>> database = Database(f"sqlite:///{path}")                     # doctest: +SKIP
    >>> with database.write() as session: session.add(row)           # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import alembic.command
import alembic.config
from sqlalchemy import Engine, create_engine, event, inspect, select, text, update
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, DiskFullError, StorageError
from autoglm.hub.tables import RevisionRow

HEAD = "0003"
_BUSY_MS = 30_000
# SQLAlchemy wraps what the driver raises, but not while a connection is being configured.
_ERRORS = (DBAPIError, sqlite3.Error)


def _storage_error(error: Exception) -> StorageError:
    cause = str(error.orig if isinstance(error, DBAPIError) else error)
    if "full" in cause:
        return DiskFullError("no space left for the hub's database: free some; nothing was lost")
    if "not a database" in cause or "malformed" in cause:
        return StorageError(f"the hub's database is damaged ({cause}): restore it from a backup")
    return StorageError(f"the hub's database refused: {cause}")


def _configure(connection: Any, _record: Any) -> None:
    # We say BEGIN ourselves: the driver would begin too late, and never for DDL.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


class Database:
    """One SQLite file, shared by any number of threads and processes of one machine."""

    def __init__(self, url: str) -> None:
        """Connect and bring the tables up to date. Two processes must not do this at the same moment.

        Raises:
            ConfigError: the URL is none of an SQLite file.
            StorageError: the database is damaged, or a newer version of this program made it.
        """
        self._reader = self._connect(url)
        self._writer = self._reader.execution_options(writing=True)
        self._watch_lock = threading.Lock()
        try:
            self._migrate()
            self._watch: Any = self._reader.raw_connection()
        except _ERRORS as error:
            self._reader.dispose()
            raise _storage_error(error) from error
        except StorageError:
            self._reader.dispose()
            raise

    @staticmethod
    def _connect(url: str) -> Engine:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ConfigError(f"hub: database_url {url!r} is not a database URL") from error
        if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
            raise ConfigError(
                "hub: database_url must name an SQLite file, such as sqlite:////var/lib/hub.sqlite"
            )
        engine = create_engine(parsed, pool_size=8, max_overflow=-1)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    def _migrate(self) -> None:
        with contextlib.closing(self._reader.raw_connection()) as raw:
            cast("Any", raw).execute("PRAGMA journal_mode = WAL")
        with self._writer.begin() as connection:
            found = self._schema_version(connection)
            if found is not None and found > HEAD:
                raise StorageError(
                    f"the hub's database has schema {found}, made by a newer version: update this one"
                )
            if found == HEAD:
                return
            config = alembic.config.Config()
            config.set_main_option(
                "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
            )
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, HEAD)

    @staticmethod
    def _schema_version(connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    def close(self) -> None:
        """Give all connections back."""
        self._watch.close()
        self._reader.dispose()

    @contextlib.contextmanager
    def read(self) -> Generator[Session]:
        """Hold one consistent view of the database for the length of the block.

        Raises:
            StorageError: the database refused.
        """
        try:
            with Session(self._reader) as session, session.begin():
                yield session
        except _ERRORS as error:
            raise _storage_error(error) from error

    @contextlib.contextmanager
    def write(self, *, decides: bool = True) -> Generator[Session]:
        """Change the database in one durable transaction; an exception in the block undoes all of it.

        Args:
            decides: whether the change can alter a decision, so that every process reads its snapshot again.

        Raises:
            DiskFullError: no room.
            StorageError: the database refused.
        """
        try:
            with Session(self._writer) as session, session.begin():
                yield session
                if decides:
                    session.execute(update(RevisionRow).values(number=RevisionRow.number + 1))
        except _ERRORS as error:
            raise _storage_error(error) from error

    def change_mark(self) -> int:
        """Return a number that differs from the last one if anyone has changed the database since.

        It costs a few microseconds and reads no table, so that every update check may ask.

        Raises:
            StorageError: the database refused.
        """
        try:
            with self._watch_lock:
                return self._watch.execute("PRAGMA data_version").fetchone()[0]
        except _ERRORS as error:
            raise _storage_error(error) from error

    @staticmethod
    def revision(session: Session) -> int:
        """Return the number of changes that could alter a decision."""
        return session.scalars(select(RevisionRow.number)).one()
