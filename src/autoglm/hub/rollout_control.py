"""Everything that operators do with roll-outs, each call one transaction or one read.

What it guarantees: every change is in the log of its roll-out, with who made it, in the same transaction;
what is refused changes nothing; asking for the same again changes nothing more.

    >>> hub.rollout_control.create("v1.3", Wanted(stages=DEFAULT_STAGES))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, NotFoundError
from autoglm.hub.audit import LOCAL, Actor
from autoglm.hub.database import Database
from autoglm.hub.devices import Devices
from autoglm.hub.explanation import Explanation, explain
from autoglm.hub.guard import describe, tend
from autoglm.hub.history import MAX_LISTED, LogEntry, Moment, entries, look_back
from autoglm.hub.population import first_open_stage, load_people
from autoglm.hub.preview import Preview, preview
from autoglm.hub.records import Audience, HubConfig, Rollout, RolloutState
from autoglm.hub.rollback import Rollback
from autoglm.hub.rollouts import (
    Draft,
    change_state,
    find,
    new_salt,
    of_hub,
    plan_of,
    promote,
    put_rollout,
    same_rollout,
)
from autoglm.hub.signing import Signing
from autoglm.hub.snapshot import SnapshotCache
from autoglm.hub.stages import DEFAULT_STAGES, Plan
from autoglm.hub.tables import ReleaseRow, RolloutRow


@dataclass(frozen=True)
class Wanted:
    """Whom a release is to be offered to, as an operator says it; None takes the default.

    Attributes:
        percent: share of the devices, at once.
        groups, regions: any of these; none named means every device.
        stages: group names and percentages in order, in place of ``percent``.
        soak_s: how long each stage lasts at least.
        threshold_percent: the failure rate that is allowed.
    """

    percent: float | None = None
    groups: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    soak_s: float | None = None
    threshold_percent: float | None = None

    def resolve(self) -> tuple[Audience, Plan | None]:
        """Return the audience, and the plan where one was asked for.

        Nothing named at all means the default stages.

        Raises:
            ConfigError: a value breaks a rule, or two contradict each other.
        """
        if self.percent is not None and self.stages:
            raise ConfigError("roll-out: give either percent or stages, not both")
        named = self.percent is not None or self.groups or self.regions
        stages = self.stages if self.stages is not None else () if named else DEFAULT_STAGES
        audience = Audience.of(self.percent, self.groups, self.regions)
        if not stages and self.soak_s is None and self.threshold_percent is None:
            return audience, None
        return audience, Plan.of(stages, self.soak_s, self.threshold_percent)


class RolloutControl:
    """The roll-outs of one hub; safe in any number of threads."""

    def __init__(
        self,
        config: HubConfig,
        database: Database,
        devices: Devices,
        snapshots: SnapshotCache,
        signing: Signing,
        rollback: Rollback,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._variant = config.model, config.variant
        self._database, self._devices, self._snapshots = database, devices, snapshots
        self._signing, self._rollback, self._clock = signing, rollback, clock

    def all(self) -> list[Rollout]:
        """Return all roll-outs with their counts, oldest first."""
        self._devices.flush()
        with self._database.read() as session:
            rows = of_hub(session, self._model, self._variant)
            return [describe(session, row, self._clock()) for row in rows]

    def get(self, name: str) -> tuple[Rollout, Sequence[LogEntry]]:
        """Return one roll-out and its log, newest entry first.

        Raises:
            NotFoundError: there is no such roll-out.
        """
        self._devices.flush()
        with self._database.read() as session:
            row = find(session, name)
            return describe(session, row, self._clock()), entries(session, row.id)

    def create(self, version: str, wanted: Wanted, actor: Actor = LOCAL) -> Rollout:
        """Offer a release; asking for the same devices again sets the percentage.

        Raises:
            ConfigError: an argument is out of its range.
            NotFoundError: there is no such release.
            ConflictError: the same roll-out is paused or halted, or goes by other stages.
            RevokedError: the release was called back.
        """
        audience, plan = wanted.resolve()
        draft = Draft(plan, actor=actor)
        if plan is not None and plan.stages:
            draft = self._first_stage(version, audience, plan, actor)
        now = self._clock()
        with self._database.write() as session:
            release = self._release(session, version)
            self._signing.require_standing(release.version, release.manifest_sha256)
            return describe(session, put_rollout(session, release, audience, now, draft), now)

    def _first_stage(self, version: str, audience: Audience, plan: Plan, actor: Actor) -> Draft:
        """Draw the salt, and pass the stages that no device can be in; outside of a write, being slow."""
        self._devices.flush()
        with self._database.read() as session:
            release = self._release(session, version)
            people = load_people(session, self._model, self._variant, self._clock())
            row = _unmade(audience, plan)
            stage = first_open_stage(people, row, release.counter, 0)
        return Draft(plan, stage, row.salt, actor=actor)

    def preview(self, version: str, wanted: Wanted) -> Preview:
        """Say what :meth:`create` would do, changing nothing.

        Raises:
            ConfigError: an argument is out of its range.
            NotFoundError: there is no such release.
            RevokedError: the release was called back.
        """
        audience, plan = wanted.resolve()
        self._devices.flush()
        with self._database.read() as session:
            release = self._release(session, version)
            self._signing.require_standing(release.version, release.manifest_sha256)
            row = _unmade(audience, plan or Plan())
            if (known := same_rollout(session, release.id, audience)) is not None:
                row.salt = known.salt
            people = load_people(session, self._model, self._variant, self._clock())
        return preview(people, row, self._snapshots.current(), version, self._clock())

    def set_state(self, name: str, state: RolloutState, actor: Actor = LOCAL) -> Rollout:
        """Pause, resume or abort a roll-out; aborting is final.

        Raises:
            ConfigError: ``state`` is none that can be asked for.
            NotFoundError: there is no such roll-out.
            ConflictError: its state does not allow this.
        """
        now = self._clock()
        with self._database.write(decides=False) as session:
            return describe(session, change_state(session, name, state, now, actor), now)

    def promote(self, name: str, actor: Actor = LOCAL) -> Rollout:
        """Go on to the next stage that some device can be in, without waiting for clock and evidence.

        Raises:
            NotFoundError: there is no such roll-out.
            ConflictError: it is not active, or in its last stage.
        """
        now = self._clock()
        self._devices.flush()
        with self._database.read() as session:
            row = find(session, name)
            stage = row.stage + 1
            if stage < plan_of(row).last:
                people = load_people(session, self._model, self._variant, now)
                counter = session.get_one(ReleaseRow, row.release_id).counter
                stage = first_open_stage(people, row, counter, stage)
        with self._database.write(decides=False) as session:
            return describe(session, promote(session, find(session, name), stage, now, actor), now)

    def roll_back(
        self, name: str, *, to: str | None = None, version: str | None = None, actor: Actor = LOCAL
    ) -> Rollout:
        """Take a roll-out's release back; see :meth:`autoglm.hub.rollback.Rollback.roll_back`."""
        self._devices.flush()
        remedy = self._rollback.roll_back(name, to=to, version=version, actor=actor)
        return self.get(remedy)[0]

    def tend(self) -> Sequence[str]:
        """Let the guard look at every roll-out; return the ids of those that it changed."""
        self._devices.flush()
        return tend(self._database, self._model, self._variant, self._clock())

    def look_back(self, at: float | None = None, *, version: str | None = None, limit: int = 1000) -> Moment:
        """Return the fleet as it was at a time.

        Args:
            at: seconds since 1970; None for now.
            version: list the devices that ran this one.
            limit: of the devices listed.
        """
        self._devices.flush()
        at = self._clock() if at is None else at
        with self._database.read() as session:
            return look_back(session, self._model, self._variant, at, version, min(limit, MAX_LISTED))

    def explain(self, device_id: str, version: str | None = None) -> Explanation:
        """Say why a device is offered what it is offered.

        Args:
            device_id: which.
            version: as if it ran this one; None for what it ran when last seen.

        Raises:
            NotFoundError: the hub has never seen it, and no version was given.
        """
        self._devices.flush()
        with self._database.read() as session:
            return explain(session, self._snapshots.current(), device_id, version, self._clock())

    def _release(self, session: Session, version: str) -> ReleaseRow:
        wanted = select(ReleaseRow).where(
            ReleaseRow.model == self._model,
            ReleaseRow.variant == self._variant,
            ReleaseRow.version == version,
        )
        row = session.scalars(wanted).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no release {version[:80]!r}; publish it first")
        return row


def _unmade(audience: Audience, plan: Plan) -> RolloutRow:
    """Return a roll-out that is in no database, to try things on."""
    return RolloutRow(
        basis_points=audience.basis_points,
        salt=new_salt(),
        groups=list(audience.groups),
        regions=list(audience.regions),
        from_versions=list(audience.from_versions),
        stages=list(plan.stages),
        stage=0,
    )
