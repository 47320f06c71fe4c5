"""The audit log: who did what, on what, when and from where; written in the same transaction as the act.

What it guarantees: an act and its entry are both there or neither; the database refuses to change or remove
an entry; entries are numbered without a gap, and each holds the hash of the one before, so whoever changes
the tables behind the database's back is found out by :meth:`AuditLog.verify`, as long as the last hash is
known (a newer one written down elsewhere proves that nothing up to it was changed).

    >>> with database.write() as session:                                         # doctest: +SKIP
    ...     audit(session, actor, "rollout.pause", "r2", {"before": "active"})
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import Session

from autoglm.hub.access_tables import AuditHeadRow, AuditRow
from autoglm.hub.database import Database
from autoglm.hub.records import Claims
from autoglm.releases import canonical_json

START_HASH = "0" * 64
MAX_DETAILS_BYTES = 8192
MAX_PAGE = 1000
_MAX_SUBJECT = 200


@dataclass(frozen=True)
class Actor:
    """Whoever does something.

    Attributes:
        name: the token's name, or ``local`` and ``hub`` for acts without a token.
        role: the token's role.
        address: where the request came from.
        claims: what the token proves; None for code that runs on the hub's machine, which may do anything.
    """

    name: str
    role: str
    address: str | None = None
    claims: Claims | None = None

    @classmethod
    def of(cls, claims: Claims, address: str | None = None) -> Actor:
        """Return the bearer of a token."""
        return cls(claims.name or claims.role, claims.role, address, claims)


LOCAL = Actor("local", "admin")
"""Whoever runs code on the hub's own machine."""
HUB = Actor("hub", "hub")
"""The hub itself, for what it does by its own rules."""


def audit(
    session: Session,
    actor: Actor,
    act: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
    *,
    at: float | None = None,
) -> int:
    """Write down an act in the caller's transaction; call it last, since it makes other writers wait.

    Args:
        session: of :meth:`~autoglm.hub.database.Database.write`.
        actor: who did it.
        act: such as ``rollout.pause``; the part before the dot is the kind of subject.
        subject: what it was done to.
        details: what changed, as JSON; never a secret. More than 8 KiB are cut short.
        at: seconds since 1970; now without it.

    Returns:
        The entry's number.
    """
    head = session.scalars(select(AuditHeadRow).with_for_update()).one()
    row = AuditRow(
        id=head.number + 1,
        at=time.time() if at is None else at,
        actor=actor.name,
        role=actor.role,
        act=act,
        subject=subject[:_MAX_SUBJECT],
        details=_details(details or {}),
        address=actor.address,
        previous=head.hash,
    )
    row.hash = head.hash = _hash(row)
    head.number = row.id
    session.add(row)
    session.flush()
    return row.id


def _details(details: Mapping[str, Any]) -> str:
    text = canonical_json(dict(details)).decode().strip()
    if len(text.encode()) > MAX_DETAILS_BYTES:
        text = canonical_json({"cut_short": text[: MAX_DETAILS_BYTES // 8]}).decode().strip()
    return text


def _hash(row: AuditRow) -> str:
    said = [row.id, row.at, row.actor, row.role, row.act, row.subject, row.details, row.address, row.previous]
    return hashlib.sha256(canonical_json(said)).hexdigest()


@dataclass(frozen=True)
class AuditEntry:
    """One entry, as it is shown.

    Attributes:
        number: 1 for the first.
        at: seconds since 1970.
        who, role, address: the actor.
        what: the act.
        subject: what it was done to.
        details: what changed.
        hash: of this entry and all before it.
    """

    number: int
    at: float
    who: str
    role: str
    address: str | None
    what: str
    subject: str
    details: dict[str, Any]
    hash: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the admin API shows it."""
        return dict(vars(self))


@dataclass(frozen=True)
class AuditVerdict:
    """Whether the log is whole.

    Attributes:
        entries: how many were read.
        hash: of the last one.
        problem: what is wrong with it; None when nothing is.
    """

    entries: int
    hash: str
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as the admin API shows it."""
        return {"whole": self.problem is None} | dict(vars(self))


@dataclass(frozen=True)
class AuditQuery:
    """Which entries are wanted.

    Attributes:
        since, until: seconds since 1970, both included.
        who: exactly this actor.
        what: exactly this act, or all of a kind, such as ``token``.
        subject: exactly this subject.
        before: only entries with a lower number, for the next page.
        limit: at most this many, 1 to 1,000.
    """

    since: float | None = None
    until: float | None = None
    who: str | None = None
    what: str | None = None
    subject: str | None = None
    before: int | None = None
    limit: int = 100


@dataclass
class AuditLog:
    """The log of one hub."""

    _database: Database
    _clock: Callable[[], float] = field(default=time.time)

    def note(self, actor: Actor, act: str, subject: str, details: Mapping[str, Any] | None = None) -> int:
        """Write down an act that changes nothing in the database, in a transaction of its own.

        Raises:
            StorageError: the database refused.
        """
        with self._database.write(decides=False) as session:
            return audit(session, actor, act, subject, details, at=self._clock())

    def list(self, query: AuditQuery | None = None) -> list[AuditEntry]:
        """Return entries, newest first.

        Raises:
            StorageError: the database refused.
        """
        asked = query or AuditQuery()
        newest = select(AuditRow).where(*_rules(asked)).order_by(AuditRow.id.desc())
        wanted = newest.limit(max(1, min(asked.limit, MAX_PAGE)))
        with self._database.read() as session:
            return [_entry(row) for row in session.scalars(wanted)]

    def verify(self, anchor: tuple[int, str] | None = None) -> AuditVerdict:
        """Read the whole log and follow its chain.

        Args:
            anchor: number and hash of an entry as they were written down before: it must still be there.

        Raises:
            StorageError: the database refused.
        """
        with self._database.read() as session:
            head = session.scalars(select(AuditHeadRow)).one()
            number, previous, problem = 0, START_HASH, None
            anchored = anchor is None or anchor == (0, START_HASH)
            for row in _rows(session, head.number):
                problem = _fault(row, number + 1, previous)
                if problem is not None:
                    break
                number, previous = row.id, row.hash
                anchored = anchored or anchor == (number, previous)
            if problem is None and (number, previous) != (head.number, head.hash):
                problem = f"the log ends with entry {number}, but {head.number} were written"
            if problem is None and _newest(session) > _head(session):
                problem = f"entries after {head.number} were put in without the hub"
        if problem is None and not anchored and anchor is not None:
            problem = f"entry {anchor[0]} with the hash given is not in the log: it was written anew"
        return AuditVerdict(number, previous, problem)


def _rules(asked: AuditQuery) -> list[ColumnElement[bool]]:
    rules: list[ColumnElement[bool]] = [true()]
    if asked.since is not None:
        rules.append(AuditRow.at >= asked.since)
    if asked.until is not None:
        rules.append(AuditRow.at <= asked.until)
    if asked.who is not None:
        rules.append(AuditRow.actor == asked.who)
    if asked.what is not None:
        kind = AuditRow.act.startswith(f"{asked.what}.", autoescape=True)
        rules.append((AuditRow.act == asked.what) | kind)
    if asked.subject is not None:
        rules.append(AuditRow.subject == asked.subject)
    if asked.before is not None:
        rules.append(AuditRow.id < asked.before)
    return rules


def _rows(session: Session, last: int) -> Iterator[AuditRow]:
    """Yield the entries up to ``last`` in order, a page at a time."""
    reached = 0
    while True:
        page = select(AuditRow).where(AuditRow.id > reached, AuditRow.id <= last)
        rows = session.scalars(page.order_by(AuditRow.id).limit(MAX_PAGE)).all()
        if not rows:
            return
        yield from rows
        reached = rows[-1].id
        session.expunge_all()


def _fault(row: AuditRow, number: int, previous: str) -> str | None:
    if row.id != number:
        return f"entry {number} is missing"
    if row.previous != previous:
        return f"entry {number} does not follow the one before: it, or that one, was changed"
    if row.hash != _hash(row):
        return f"entry {number} was changed"
    return None


def _newest(session: Session) -> int:
    return session.scalars(select(func.max(AuditRow.id))).one() or 0


def _head(session: Session) -> int:
    return session.scalars(select(AuditHeadRow.number)).one()


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        number=row.id,
        at=row.at,
        who=row.actor,
        role=row.role,
        address=row.address,
        what=row.act,
        subject=row.subject,
        details=json.loads(row.details),
        hash=row.hash,
    )
