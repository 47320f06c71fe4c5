"""The hub's database: opening, migrating, transactions, and noticing that another process changed it.

What it guarantees: a write transaction is whole or not there, whatever is killed; two writers wait for
each other instead of failing; after :meth:`Database.write` returns, the change survives a power cut.
SQLite in WAL mode or PostgreSQL, through SQLAlchemy; every error of the database becomes a
:class:`~autoglm.errors.StorageError` here, or an :class:`~autoglm.errors.UnstorableError` where the value is
at fault. A transaction whose connection broke is not there, but for one
that broke while it was committed: that one may be there, whole. Everything that the hub writes can be
written again, so the caller repeats it.

    >>> database = Database(f"sqlite:///{path}")                     # doctest: +SKIP
    >>> with database.write() as session: session.add(row)           # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import inspect, select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from autoglm.errors import StorageError, UnstorableError
from autoglm.hub.dialects import ERRORS, WRITERS, dialect_of
from autoglm.hub.tables import RevisionRow

HEAD = "0005"
DECIDED = "decided"
"""Key of ``Session.info``: the transaction alters a decision, whatever :meth:`Database.write` was told."""


class Database:
    """The tables of one hub or of several, shared by any number of threads and processes."""

    def __init__(self, url: str) -> None:
        """Connect and bring the tables up to date. On SQLite two processes must not do this at once.

        Raises:
            ConfigError: the URL is none of a database that the hub knows.
            StorageError: the database is damaged or not reached, or a newer version of this program made it.
        """
        self._dialect = dialect_of(url)
        try:
            self._migrate()
            self._dialect.open()
        except ERRORS as error:
            self._dialect.close()
            raise self._dialect.explain(error) from error
        except StorageError:
            self._dialect.close()
            raise

    def _migrate(self) -> None:
        with self._dialect.writer(WRITERS).begin() as connection:
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
        self._dialect.close()

    @contextlib.contextmanager
    def read(self) -> Generator[Session]:
        """Hold one consistent view of the database for the length of the block.

        Raises:
            StorageError: the database refused.
            UnstorableError: a value was asked for that this database cannot hold.
        """
        with self._translated(), Session(self._dialect.reader) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self, *, decides: bool = True) -> Generator[Session]:
        """Change the database in one durable transaction; an exception in the block undoes all of it.

        Args:
            decides: whether the change can alter a decision, so that every process reads its snapshot again;
                the block may still say so by :data:`DECIDED`.

        Raises:
            DiskFullError: no room.
            StorageError: the database refused.
            UnstorableError: this database cannot hold a value.
        """
        writer = self._dialect.writer(WRITERS)
        with self._translated(), Session(writer) as session, session.begin():
            yield session
            if decides := decides or DECIDED in session.info:
                session.execute(update(RevisionRow).values(number=RevisionRow.number + 1))
                self._dialect.announce(session)
        if decides:
            self._dialect.announced()

    @contextlib.contextmanager
    def exclusively(self, lock: str) -> Generator[Session]:
        """Hold a lock of all processes, and one durable transaction, for the length of the block.

        Only those who name the same lock wait for each other; on SQLite every writer does.

        Raises:
            StorageError: the database refused.
        """
        with self._translated(), Session(self._dialect.writer(lock)) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except DataError as error:  # a value that this database cannot hold: trying again would not help
            why = str(error.orig).partition("\n")[0]  # further lines would show the statement
            raise UnstorableError(f"a value cannot be stored: {why}") from error
        except ERRORS as error:
            raise self._dialect.explain(error) from error

    def change_mark(self) -> int:
        """Return a number that differs from the last one if anyone has changed a decision since.

        It costs a few microseconds and reads no table, so that every update check may ask. A change of
        another process is noticed at once on SQLite, within about a second on PostgreSQL.

        Raises:
            StorageError: the database refused, or does not answer.
        """
        with self._translated():
            return self._dialect.change_mark()

    @staticmethod
    def revision(session: Session) -> int:
        """Return the number of changes that could alter a decision."""
        return session.scalars(select(RevisionRow.number)).one()
