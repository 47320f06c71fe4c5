"""What may be written a moment later: when a token was last used, and attempts that were refused.

A refusal is never made slower by writing it down, and nobody can fill the disk with refusals: equal ones are
counted together, and beyond a budget (100 entries at once, 60 an hour) only their number is kept. A crash
loses about a second of both.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Table, bindparam, or_, update
from sqlalchemy.orm import Session

from autoglm.hub.audit import Actor, audit
from autoglm.hub.database import Database
from autoglm.hub.flushing import Flusher
from autoglm.hub.tables import TokenRow

_log = logging.getLogger(__name__)

MAX_KINDS = 1000
BUDGET, BUDGET_PER_SECOND = 100.0, 60 / 3600
UNKNOWN = Actor("unknown", "none")
"""Whoever has no valid token."""


@dataclass(frozen=True)
class Refusal:
    """One kind of refused attempt.

    Attributes:
        name, role, address: of who tried.
        subject: the route.
        reason: the code of the answer.
        needs: the permission that was missing.
    """

    name: str
    role: str
    address: str | None
    subject: str
    reason: str
    needs: str | None


class WriteBehind:
    """Collects, and writes about once a second; one for each open hub, with a thread of its own."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._used: dict[int, float] = {}
        self._refused: dict[Refusal, int] = {}
        self._uncounted = 0
        self._budget, self._budget_at = BUDGET, clock()
        self._flusher = Flusher(self.flush, "hub-behind", "Last uses and refusals are lost")

    def used(self, token_id: int, at: float) -> None:
        """Remember that a token was used."""
        with self._lock:
            self._used[token_id] = at
        self._flusher.wake()

    def refused(self, actor: Actor, subject: str, reason: str, needs: str | None = None) -> None:
        """Remember a refused attempt.

        Args:
            actor: who tried; :data:`UNKNOWN` with an address for a caller without a valid token.
            subject: the route; its template, not what the caller wrote.
            reason: the code of the refusal.
            needs: the permission that was missing.
        """
        kind = Refusal(actor.name, actor.role, actor.address, subject, reason, needs)
        with self._lock:
            if kind in self._refused or len(self._refused) < MAX_KINDS:
                self._refused[kind] = self._refused.get(kind, 0) + 1
            else:
                self._uncounted += 1
        self._flusher.wake()

    def close(self) -> None:
        """Write what is remembered and end the thread.

        Raises:
            StorageError: the database refused.
        """
        self._flusher.close()

    def flush(self) -> None:
        """Write what is remembered.

        Raises:
            StorageError: the database refused; what was remembered is lost.
        """
        with self._writing:
            with self._lock:
                self._flusher.taken()
                used, self._used = self._used, {}
                refused, self._refused = self._refused, {}
                more, self._uncounted = self._uncounted, 0
            if not used and not refused and not more:
                return
            with self._database.write(decides=False) as session:
                _put_used(session, used)
                self._put_refused(session, refused, more)

    def _put_refused(self, session: Session, refused: Mapping[Refusal, int], more: int) -> None:
        now = self._clock()
        elapsed = max(0.0, now - self._budget_at)
        self._budget, self._budget_at = min(BUDGET, self._budget + elapsed * BUDGET_PER_SECOND), now
        for kind, times in refused.items():
            if self._budget < 2:  # the last entry tells how many more there were
                more += times
                continue
            self._budget -= 1
            details = {"reason": kind.reason, "needs": kind.needs, "times": times}
            actor = Actor(kind.name, kind.role, kind.address)
            audit(session, actor, "access.refused", kind.subject, details, at=now)
        if more and self._budget >= 1:
            self._budget -= 1
            audit(session, UNKNOWN, "access.refused", "various", {"times": more}, at=now)


def _put_used(session: Session, used: Mapping[int, float]) -> None:
    if not used:
        return
    tokens = cast("Table", TokenRow.__table__)
    at = bindparam("at")
    later = or_(tokens.c.last_used_at.is_(None), tokens.c.last_used_at < at)
    statement = update(tokens).where(tokens.c.id == bindparam("token"), later).values(last_used_at=at)
    session.connection().execute(statement, [{"token": key, "at": value} for key, value in used.items()])
