"""The patch ledger: which packages exist, which are wanted, and who builds them.

Each pair of releases has at most one row, ``pending``, ``running``, ``stored`` or ``skipped``. The row is
the truth about a build: a package without a ``stored`` row does not exist. Functions that take a session
work inside the caller's transaction; :class:`Ledger` holds the transactions of a worker.

    pending ──claim──> running ──store──> stored
       ^                  │ └──skip──> skipped (it would not pay, or failed too often)
       └──fail, reclaim───┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session, aliased

from autoglm.hub.database import Database
from autoglm.hub.decision import StoredPackage
from autoglm.hub.records import PackageRecord, PackageState
from autoglm.hub.tables import DeviceRow, PackageRow, ReleaseRow
from autoglm.releases import Manifest

MAX_ATTEMPTS = 3
RETRY_AFTER_S = 30.0
NUM_HEADS = 3
MAX_FIELD_VERSIONS = 16
_FULL_PRIORITY = 0
_PATCH_PRIORITY = 10


@dataclass(frozen=True)
class Job:
    """One package to build.

    Attributes:
        id: of the ledger row.
        base: the release to patch from, None for a full package.
        target: the release to make.
        full_size: bytes of the target's full package, None while that is not stored.
    """

    id: int
    base: Manifest | None
    target: Manifest
    full_size: int | None


@dataclass(frozen=True)
class Wanted:
    """A build that could begin.

    Attributes:
        id: of the ledger row.
        is_full: whether it is a full package, which every patch waits for.
        devices: how many devices run its base.
    """

    id: int
    is_full: bool
    devices: int


@dataclass(frozen=True)
class BuildCost:
    """What a build took."""

    seconds: float
    memory_bytes: int


def find_row(session: Session, base_id: int | None, target_id: int) -> PackageRow | None:
    """Return the ledger row of a pair."""
    return session.scalars(
        select(PackageRow).where(
            PackageRow.target_id == target_id,
            PackageRow.base_id.is_(None) if base_id is None else PackageRow.base_id == base_id,
        )
    ).one_or_none()


def queue_pair(session: Session, base_id: int | None, target_id: int, *, priority: int, now: float) -> None:
    """Want a package, unless the ledger knows the pair already."""
    if find_row(session, base_id, target_id) is None:
        row = PackageRow(
            base_id=base_id, target_id=target_id, state="pending", priority=priority, queued_at=now
        )
        session.add(row)
        session.flush()


def queue_packages(session: Session, target: ReleaseRow, now: float) -> None:
    """Want what a new release needs: its full package first, then patches from where the devices are."""
    queue_pair(session, None, target.id, priority=_FULL_PRIORITY, now=now)
    for place, base_id in enumerate(_bases(session, target)):
        queue_pair(session, base_id, target.id, priority=_PATCH_PRIORITY + place, now=now)


def _bases(session: Session, target: ReleaseRow) -> Iterable[int]:
    """Return the releases to patch from: what devices run, most used first, then the newest before it."""
    older = (
        ReleaseRow.model == target.model,
        ReleaseRow.variant == target.variant,
        ReleaseRow.counter < target.counter,
    )
    in_field = session.scalars(
        select(ReleaseRow.id)
        .join(
            DeviceRow,
            (DeviceRow.version == ReleaseRow.version)
            & (DeviceRow.model == ReleaseRow.model)
            & (DeviceRow.variant == ReleaseRow.variant),
        )
        .where(*older)
        .group_by(ReleaseRow.id)
        .order_by(func.count().desc(), ReleaseRow.id)
        .limit(MAX_FIELD_VERSIONS)
    )
    newest = select(ReleaseRow.id).where(*older).order_by(ReleaseRow.counter.desc()).limit(NUM_HEADS)
    return dict.fromkeys([*in_field, *session.scalars(newest)])


def store_package(
    session: Session,
    base_id: int | None,
    target_id: int,
    package: StoredPackage,
    now: float,
) -> None:
    """Record a package that came from outside; one that is stored already stays as it is."""
    row = find_row(session, base_id, target_id)
    if row is None:
        row = PackageRow(base_id=base_id, target_id=target_id, priority=_FULL_PRIORITY, queued_at=now)
        session.add(row)
    elif row.state == "stored":
        return
    _fill(row, package, now)
    session.flush()


def requeue_failed(session: Session, target_id: int, now: float) -> None:
    """Give builds that were given up another chance.

    Patches that were built and would not pay have a size; those stay skipped.
    """
    session.execute(
        update(PackageRow)
        .where(PackageRow.target_id == target_id, PackageRow.state == "skipped", PackageRow.size.is_(None))
        .values(state="pending", attempts=0, not_before=0.0, queued_at=now)
    )


def _fill(row: PackageRow, package: StoredPackage, now: float) -> None:
    row.state, row.reason, row.worker, row.finished_at = "stored", None, None, now
    row.sha256, row.size = package.sha256, package.size
    row.header_length, row.header_sha256 = package.header_length, package.header_sha256


def list_packages(session: Session, model: str, variant: str) -> list[PackageRecord]:
    """Return all rows of the ledger, oldest first."""
    base, target = aliased(ReleaseRow), aliased(ReleaseRow)
    rows = session.execute(
        select(PackageRow, base.version, target.version)
        .join(target, PackageRow.target_id == target.id)
        .outerjoin(base, PackageRow.base_id == base.id)
        .where(target.model == model, target.variant == variant)
        .order_by(PackageRow.id)
    )
    return [
        PackageRecord(
            from_version=source,
            to_version=version,
            state=cast("PackageState", row.state),
            reason=row.reason,
            size=row.size,
            sha256=row.sha256,
            seconds=row.seconds,
            memory_bytes=row.memory_bytes,
            attempts=row.attempts,
        )
        for row, source, version in rows
    ]


def _by_urgency(now: float) -> Select[int, bool, int]:
    """Select what could begin: full packages first, then patches for most devices, then as queued."""
    base = aliased(ReleaseRow)
    devices = (
        select(func.count())
        .select_from(DeviceRow)
        .where(
            DeviceRow.model == base.model,
            DeviceRow.variant == base.variant,
            DeviceRow.version == base.version,
        )
        .correlate(base)
        .scalar_subquery()
    )
    is_full = PackageRow.base_id.is_(None)
    return (
        select(PackageRow.id, is_full, devices)
        .outerjoin(base, PackageRow.base_id == base.id)
        .where(PackageRow.state == "pending", PackageRow.not_before <= now)
        .order_by(is_full.desc(), devices.desc(), PackageRow.priority, PackageRow.id)
    )


class Ledger:
    """A worker's side of the ledger: claim, then store, skip or fail; one for each worker's name."""

    def __init__(self, database: Database, worker: str, clock: Callable[[], float]) -> None:
        """Args:
        database: the hub's.
        worker: this worker's name, unique among the living.
        clock: seconds since 1970.
        """
        self._database, self._worker, self._clock = database, worker, clock

    def reclaim(self) -> int:
        """Put back what a killed worker had begun; only the one living worker may call this.

        A build that was begun :data:`MAX_ATTEMPTS` times is given up: it seems to kill its workers.

        Returns:
            How many rows were left by the dead.
        """
        return self.take_back(self.running())

    def take_back(self, rows: Iterable[tuple[int, str]]) -> int:
        """Put back builds whose workers are dead, unless they changed hands meanwhile.

        Args:
            rows: the key of each row, and the name of the dead worker.

        Returns:
            How many were put back.
        """
        taken = 0
        with self._database.write() as session:
            for key, worker in rows:
                row = session.get(PackageRow, key)
                if row is not None and (row.state, row.worker) == ("running", worker):
                    self._put_back(row, "the worker was killed while it built this", 0.0)
                    taken += 1
        return taken

    def running(self) -> list[tuple[int, str]]:
        """Return the key of each build that is under way, and its worker's name."""
        rows = select(PackageRow.id, PackageRow.worker).where(PackageRow.state == "running")
        with self._database.read() as session:
            return [(key, worker or "") for key, worker in session.execute(rows)]

    def wanted(self) -> list[Wanted]:
        """Return the builds that could begin now, most urgent first."""
        with self._database.read() as session:
            return [Wanted(*row) for row in session.execute(_by_urgency(self._clock()))]

    def next_job(self) -> Job | None:
        """Claim the most urgent pending build, None when there is nothing to do now."""
        with self._database.write() as session:
            first = session.execute(_by_urgency(self._clock()).limit(1)).first()
            return None if first is None else self._claim(session, session.get_one(PackageRow, first[0]))

    def claim(self, key: int) -> Job | None:
        """Claim one build, None when somebody else was faster or it is not to be done now."""
        with self._database.write() as session:
            row = session.get(PackageRow, key)
            if row is None or row.state != "pending" or row.not_before > self._clock():
                return None
            return self._claim(session, row)

    def _claim(self, session: Session, row: PackageRow) -> Job:
        row.state, row.worker, row.attempts = "running", self._worker, row.attempts + 1
        full = find_row(session, None, row.target_id)
        return Job(
            id=row.id,
            base=None if row.base_id is None else self._manifest(session, row.base_id),
            target=self._manifest(session, row.target_id),
            full_size=full.size if full is not None and full.state == "stored" else None,
        )

    @staticmethod
    def _manifest(session: Session, release_id: int) -> Manifest:
        return Manifest.from_bytes(session.get_one(ReleaseRow, release_id).manifest)

    def has_work(self) -> bool:
        """Tell whether something is pending now, without taking the database's write lock."""
        pending = (PackageRow.state == "pending", PackageRow.not_before <= self._clock())
        with self._database.read() as session:
            return session.scalars(select(PackageRow.id).where(*pending).limit(1)).first() is not None

    def store(self, job: Job, package: StoredPackage, cost: BuildCost) -> bool:
        """Record a finished build; False when the row was taken from this worker meanwhile."""
        with self._database.write() as session:
            if (row := self._own(session, job)) is None:
                return False
            _fill(row, package, self._clock())
            row.seconds, row.memory_bytes = cost.seconds, cost.memory_bytes
            return True

    def skip(self, job: Job, reason: str, *, size: int, cost: BuildCost) -> None:
        """Record that a patch was built and would not pay."""
        with self._database.write() as session:
            if (row := self._own(session, job)) is not None:
                row.state, row.reason, row.size, row.worker = "skipped", reason, size, None
                row.seconds, row.memory_bytes, row.finished_at = (
                    cost.seconds,
                    cost.memory_bytes,
                    self._clock(),
                )

    def fail(self, job: Job, reason: str, *, blameless: bool = False) -> None:
        """Record that a build failed: it is tried again later, and given up after :data:`MAX_ATTEMPTS`.

        Args:
            job: the build.
            reason: what went wrong, for the operator.
            blameless: the disk was at fault, not the build; such attempts do not count.
        """
        with self._database.write() as session:
            if (row := self._own(session, job)) is not None:
                row.attempts -= int(blameless)
                self._put_back(row, reason, self._clock() + RETRY_AFTER_S)

    def put_back(self, job: Job) -> None:
        """Leave a build to the next worker, as if it had never been begun."""
        with self._database.write() as session:
            if (row := self._own(session, job)) is not None:
                row.state, row.worker, row.attempts = "pending", None, row.attempts - 1

    def _own(self, session: Session, job: Job) -> PackageRow | None:
        row = session.get(PackageRow, job.id)
        return row if row is not None and row.state == "running" and row.worker == self._worker else None

    def _put_back(self, row: PackageRow, reason: str, not_before: float) -> None:
        row.worker, row.not_before = None, not_before
        row.state, row.reason = "pending", reason
        if row.attempts >= MAX_ATTEMPTS:
            row.state, row.finished_at = "skipped", self._clock()
            row.reason = f"given up after {row.attempts} attempts: {reason}"
