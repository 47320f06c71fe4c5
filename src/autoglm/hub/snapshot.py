"""The decision's view of the database, read again only when someone changed it.

What it guarantees: :meth:`SnapshotCache.current` reflects every change committed before the call, by any
process on the database; without a change it costs microseconds and reads no table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from autoglm.hub.database import Database
from autoglm.hub.decision import LedgerEntry, Offerable, Rule, Snapshot, StoredPackage
from autoglm.hub.records import Audience, PackageState
from autoglm.hub.stages import Plan
from autoglm.hub.tables import PackageRow, ReleaseRow, RolloutRow

OFFERING = ("active", "done")
LedgerView = dict[tuple[str | None, str], LedgerEntry]


def rollout_name(key: int) -> str:
    """Return a roll-out's id as it is on the wire."""
    return f"r{key}"


def audience_of(row: RolloutRow) -> Audience:
    """Return whom a roll-out reaches."""
    return Audience(row.basis_points, tuple(row.groups), tuple(row.regions), tuple(row.from_versions))


def rule_of(row: RolloutRow, release: Offerable) -> Rule:
    """Return a roll-out as the decision sees it."""
    _, groups = Plan(tuple(row.stages)).reach(row.stage)
    return Rule(rollout_name(row.id), release, audience_of(row), row.salt, groups)


def load_snapshot(
    session: Session, model: str, variant: str, revoked: Collection[str] = frozenset()
) -> Snapshot:
    """Read everything that decisions need, in one consistent view.

    Args:
        session: the view.
        model, variant: what the hub serves.
        revoked: identities of releases that are offered to nobody, whatever the roll-outs say.
    """
    of_hub = (ReleaseRow.model == model, ReleaseRow.variant == variant)
    rows = session.scalars(select(ReleaseRow).where(*of_hub)).all()
    releases = {row.version: Offerable(row.version, row.counter, row.manifest_sha256) for row in rows}
    return Snapshot(
        revision=Database.revision(session),
        model=model,
        variant=variant,
        releases=releases,
        rules=_rules(
            session, {row.id: releases[row.version] for row in rows if row.manifest_sha256 not in revoked}
        ),
        ledger=_ledger(session, model, variant),
    )


def _rules(session: Session, releases: dict[int, Offerable]) -> tuple[Rule, ...]:
    offering = select(RolloutRow).where(RolloutRow.state.in_(OFFERING)).order_by(RolloutRow.id)
    rules = [
        rule_of(row, releases[row.release_id])
        for row in session.scalars(offering)
        if row.release_id in releases
    ]
    return tuple(sorted(rules, key=lambda rule: -rule.release.counter))


def _ledger(session: Session, model: str, variant: str) -> LedgerView:
    base, target = aliased(ReleaseRow), aliased(ReleaseRow)
    rows = session.execute(
        select(PackageRow, base.version, target.version)
        .join(target, PackageRow.target_id == target.id)
        .outerjoin(base, PackageRow.base_id == base.id)
        .where(target.model == model, target.variant == variant)
    )
    return {(source, version): _entry(row) for row, source, version in rows}


def package_of(row: PackageRow) -> StoredPackage:
    """Return the package that a ``stored`` row describes."""
    return StoredPackage(
        cast("str", row.sha256),
        cast("int", row.size),
        cast("int", row.header_length),
        cast("str", row.header_sha256),
    )


def _entry(row: PackageRow) -> LedgerEntry:
    package = package_of(row) if row.state == "stored" else None
    return LedgerEntry(cast("PackageState", row.state), row.queued_at, package)


class SnapshotCache:
    """Keeps the newest snapshot; one for each open hub."""

    def __init__(
        self, database: Database, model: str, variant: str, revoked: Callable[[], frozenset[str]]
    ) -> None:
        self._database, self._model, self._variant, self._revoked = database, model, variant, revoked
        self._lock = threading.Lock()
        self._mark = -1
        self._snapshot: Snapshot | None = None

    def current(self) -> Snapshot:
        """Return the snapshot of now.

        Raises:
            StorageError: the database refused.
        """
        with self._lock:
            # The mark is taken before reading, so a change in between is noticed by the next call.
            mark = self._database.change_mark()
            if self._snapshot is None or mark != self._mark:
                self._snapshot = self._reload(self._snapshot)
                self._mark = mark
            return self._snapshot

    def _reload(self, known: Snapshot | None) -> Snapshot:
        with self._database.read() as session:
            if known is not None and Database.revision(session) == known.revision:
                return known
            return load_snapshot(session, self._model, self._variant, self._revoked())
