"""Signed metadata in the hub's database, where several hubs and workers share one.

What it guarantees: a change is one transaction, so devices meet the old state or the new one; whoever
changes it holds a lock of the whole database first, and no version is ever written twice with different
content, so two hubs never sign the same version of anything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Generator, Iterable

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session
from tuf.api.metadata import Timestamp

from autoglm.errors import ConflictError, NotFoundError
from autoglm.hub.database import Database
from autoglm.hub.dialects import insert_into
from autoglm.hub.tables import MetadataRow
from autoglm.trust import documents
from autoglm.trust.roles import TIMESTAMP_NAME, parse_name

LOCK = "metadata"
_MAX_CACHED_BYTES = 64 << 20


class MetadataTable:
    """The table; see :class:`autoglm.trust.shelf.MetadataPlace`. Safe for threads.

    Args:
        database: the hub's.
        clock: seconds since 1970.
    """

    name = "the hub's database"

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._held = threading.local()
        self._cache_lock = threading.Lock()
        self._cache: dict[str, bytes] = {}
        self._cached_bytes = 0

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the right to change the metadata; all changes of the block become visible at its end.

        Raises:
            StorageError: the database refused; nothing of the block is kept.
        """
        with self._database.exclusively(LOCK) as session:
            self._held.session = session
            try:
                yield
            finally:
                self._held.session = None

    @contextlib.contextmanager
    def _session(self) -> Generator[Session]:
        """Give the session of the lock that this thread holds, else one for reading."""
        held: Session | None = getattr(self._held, "session", None)
        if held is not None:
            yield held
        else:
            with self._database.read() as session:
                yield session

    def versions(self) -> dict[str, list[int]]:
        """Return the versions of every role, lowest first."""
        found: dict[str, list[int]] = {}
        with self._session() as session:
            for name in session.scalars(select(MetadataRow.name)):
                if (parsed := parse_name(name)) is not None:
                    found.setdefault(parsed[0], []).append(parsed[1])
        return {role: sorted(versions) for role, versions in found.items()}

    def read(self, name: str) -> bytes:
        """Return one file.

        Raises:
            NotFoundError: ``name`` is no name of metadata, or there is no such file.
            StorageError: the database refused.
        """
        if name != TIMESTAMP_NAME and parse_name(name) is None:
            raise NotFoundError(f"{name[:80]!r} is no name of metadata")
        if (known := self._cache.get(name)) is not None:
            return known
        with self._session() as session:
            content = session.scalars(select(MetadataRow.content).where(MetadataRow.name == name)).first()
        if content is None:
            raise NotFoundError(f"there is no metadata {name}")
        if name != TIMESTAMP_NAME and getattr(self._held, "session", None) is None:
            self._remember(name, content)  # committed, and never changed under this name
        return content

    def _remember(self, name: str, content: bytes) -> None:
        with self._cache_lock:
            if self._cached_bytes + len(content) > _MAX_CACHED_BYTES:
                self._cache, self._cached_bytes = {}, 0
            if name not in self._cache:
                self._cache[name] = content
                self._cached_bytes += len(content)

    def write(self, contents: dict[str, bytes]) -> None:
        """Keep these files; under :meth:`lock`.

        Raises:
            ConflictError: a version is here already with other content.
            StorageError: the database refused.
        """
        with self._session() as session:
            for name, content in contents.items():
                if name == TIMESTAMP_NAME:
                    self._replace_timestamp(session, content)
                else:
                    self._add(session, name, content)

    def _add(self, session: Session, name: str, content: bytes) -> None:
        version = (parse_name(name) or ("", 0))[1]
        row = {"name": name, "version": version, "content": content, "written_at": self._clock()}
        session.execute(insert_into(session, MetadataRow).values(row).on_conflict_do_nothing())
        kept = session.scalars(select(MetadataRow.content).where(MetadataRow.name == name)).one()
        if kept != content:
            raise ConflictError(f"{name} is here already with other content: read the newest and sign again")

    def _replace_timestamp(self, session: Session, content: bytes) -> None:
        """Replace the timestamp by one of a higher version, and by no other."""
        version = documents.read(Timestamp, content).signed.version
        new = {"version": version, "content": content, "written_at": self._clock()}
        higher = (MetadataRow.name == TIMESTAMP_NAME, MetadataRow.version < version)
        if session.scalars(update(MetadataRow).where(*higher).values(new).returning(MetadataRow.name)).all():
            return
        first = insert_into(session, MetadataRow).values({"name": TIMESTAMP_NAME} | new)
        if not session.scalars(first.on_conflict_do_nothing().returning(MetadataRow.name)).all():
            raise ConflictError(f"another hub has signed timestamp {version} or a later one: read it first")

    def remove(self, names: Iterable[str]) -> None:
        """Remove these files; under :meth:`lock`."""
        with self._session() as session:
            session.execute(delete(MetadataRow).where(MetadataRow.name.in_(list(names))))

    def written_at(self, names: Collection[str]) -> dict[str, float]:
        """Return when these files came, seconds since 1970."""
        wanted = select(MetadataRow.name, MetadataRow.written_at).where(MetadataRow.name.in_(names))
        with self._session() as session:
            return dict(session.execute(wanted).all())

    def mark(self) -> object | None:
        """Return the timestamp's version, None without one."""
        with self._session() as session:
            found = select(MetadataRow.version).where(MetadataRow.name == TIMESTAMP_NAME)
            return session.scalars(found).first()

    def tidy(self) -> None:
        """Do nothing: an interrupted transaction leaves nothing."""
