"""The guard of roll-outs: counts what devices reported, and halts, pauses, advances or ends accordingly.

What it guarantees: it acts on counts and the hub's clock alone; the same situation seen by several hubs, or
twice by one, leads to one change. Failures are looked at in the transaction that records them, everything
else at each :func:`tend`, which the service calls every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, cast

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from autoglm.hub.database import Database
from autoglm.hub.population import People, first_open_stage, load_people
from autoglm.hub.records import Rollout, RolloutState
from autoglm.hub.rollouts import GUARD, enter, move, of_hub, plan_of
from autoglm.hub.snapshot import audience_of, rollout_name
from autoglm.hub.tables import OfferRow, ReleaseRow, RolloutRow
from autoglm.hub.verdict import (
    CRASH_LOOP,
    Comparison,
    Counts,
    halt_reason,
    hold_reason,
    pause_reason,
    tally,
    wilson_lower,
)

_log = logging.getLogger(__name__)

WATCHED: tuple[RolloutState, ...] = ("active", "paused", "done")


@dataclass(frozen=True)
class Step:
    """What should become of a roll-out.

    Attributes:
        act: as in :data:`autoglm.hub.rollouts.MOVES`, or ``hold``.
        reason: why.
        stage: the stage to enter.
    """

    act: Literal["halt", "pause", "advance", "finish", "hold"]
    reason: str | None = None
    stage: int = 0


def watch(session: Session, keys: Collection[int], now: float) -> None:
    """Halt those roll-outs that have failed too often, in the transaction that recorded the failures."""
    for row in session.scalars(select(RolloutRow).where(RolloutRow.id.in_(keys))).all():
        reason = halt_reason(_judged(session, row), (), row.threshold)
        if reason is not None and move(session, row, "halt", GUARD, now, reason=reason):
            _log.warning("Roll-out %s is halted: %s", rollout_name(row.id), reason)


def tend(database: Database, model: str, variant: str, now: float) -> list[str]:
    """Look at every roll-out once and do what is due.

    Returns:
        The ids of those that were changed.

    Raises:
        StorageError: the database refused.
    """
    with database.read() as session:
        people = _Lazily(session, model, variant, now)
        rows = of_hub(session, model, variant, WATCHED)
        due = {row.id: step for row in rows if (step := next_step(session, row, now, people)).act != "hold"}
    changed: list[str] = []
    for key, step in due.items():
        with database.write(decides=False) as session:
            if _do(session, session.get_one(RolloutRow, key), step, now):
                changed.append(rollout_name(key))
                _log.warning("Roll-out %s: %s (%s)", changed[-1], step.act, step.reason or "as planned")
    return changed


def _do(session: Session, row: RolloutRow, step: Step, now: float) -> bool:
    if step.act == "advance":
        return row.stage < step.stage and enter(session, row, step.stage, "advance", GUARD, now)
    return step.act != "hold" and move(session, row, step.act, GUARD, now, reason=step.reason)


class _Lazily:
    """The hub's devices, read when they are first needed: most looks do not need them."""

    def __init__(self, session: Session, model: str, variant: str, now: float) -> None:
        self._session, self._model, self._variant, self._now = session, model, variant, now
        self._people: People | None = None

    def __call__(self) -> People:
        if self._people is None:
            self._people = load_people(self._session, self._model, self._variant, self._now)
        return self._people


def next_step(session: Session, row: RolloutRow, now: float, people: _Lazily) -> Step:
    """Return what should become of a roll-out now, changing nothing."""
    judged = _judged(session, row)
    if (reason := halt_reason(judged, compared(session, row), row.threshold)) is not None:
        return Step("halt", reason)
    if row.state != "active" or not row.stages:
        return Step("hold")
    counts = _with_waiting(session, row, judged, now)
    if (reason := pause_reason(counts)) is not None:
        return Step("pause", reason)
    if now < row.stage_at + row.soak_s:
        return Step("hold")
    return _after_soak(session, row, _with_stage(session, row, counts), people)


def _after_soak(session: Session, row: RolloutRow, counts: Counts, people: _Lazily) -> Step:
    if counts.offered == 0 and not people().devices:
        return Step("hold", NOBODY_ASKED)
    target = _target(session, row, people)
    if (reason := _missing(session, row, counts, target, people)) is not None:
        return Step("hold", reason)
    return Step("finish") if target is None else Step("advance", None, target)


def _target(session: Session, row: RolloutRow, people: _Lazily) -> int | None:
    """Return the stage that comes after the present one, None after the last."""
    if row.stage >= plan_of(row).last:
        return None
    counter = session.get_one(ReleaseRow, row.release_id).counter
    return first_open_stage(people(), row, counter, row.stage + 1)


def _missing(
    session: Session, row: RolloutRow, counts: Counts, target: int | None, people: _Lazily
) -> str | None:
    """Return what is still missing before ``target``: empty stages on the way there prove nothing."""
    if target is None:
        return hold_reason(counts, None)
    counter = session.get_one(ReleaseRow, row.release_id).counter
    if counts.offered == 0 and first_open_stage(people(), row, counter, 0) > row.stage:
        return None  # nobody can be in any stage so far: it begins where its first device is, as if made now
    return hold_reason(counts, plan_of(row).reach(target)[0])


NOBODY_ASKED = "no device has asked yet"


def _judged(session: Session, row: RolloutRow) -> Counts:
    """Count what bears on a halt; each of the counts is a range of an index."""
    since = (OfferRow.rollout_id == row.id, OfferRow.result_at > row.judged_from)

    def devices(result: str, *more: ColumnElement[bool]) -> int:
        wanted = select(func.count()).select_from(OfferRow).where(*since, OfferRow.result == result, *more)
        return session.scalars(wanted).one()

    loops = devices("fail", OfferRow.code == CRASH_LOOP)
    return Counts(succeeded=devices("ok"), failed=devices("fail"), crash_loops=loops)


def _with_waiting(session: Session, row: RolloutRow, counts: Counts, now: float) -> Counts:
    since = now - row.soak_s
    is_silent = (
        OfferRow.began_at.is_not(None) & (OfferRow.heard_at <= since) & (OfferRow.heard_at > row.silent_from)
    )
    waiting = select(
        func.count(case((is_silent, 1))), func.count(case((OfferRow.first_offered_at > since, 1)))
    ).where(OfferRow.rollout_id == row.id, OfferRow.result.is_(None))
    silent, expected = session.execute(waiting).one()
    return replace(counts, silent=silent, expected=expected)


def _with_stage(session: Session, row: RolloutRow, counts: Counts) -> Counts:
    in_stage = select(
        func.count(),
        func.count(OfferRow.began_at),
        func.count(case((OfferRow.first_offered_at >= row.stage_at, 1))),
        func.count(case((OfferRow.result_at >= row.stage_at, 1))),
    ).where(OfferRow.rollout_id == row.id)
    offered, began, newly_offered, new_results = session.execute(in_stage).one()
    return replace(counts, offered=offered, began=began, newly_offered=newly_offered, new_results=new_results)


def count(session: Session, row: RolloutRow, now: float) -> Counts:
    """Count the devices of a roll-out: results since ``judged_from``, and who has not reported."""
    return _with_stage(session, row, _with_waiting(session, row, _judged(session, row), now))


def compared(session: Session, row: RolloutRow) -> tuple[Comparison, ...]:
    """Compare the release with those that the same devices had before, metric by metric."""
    groups = (
        select(OfferRow.compared, OfferRow.worse, func.count())
        .where(OfferRow.rollout_id == row.id, OfferRow.compared > 0, OfferRow.began_at > row.judged_from)
        .group_by(OfferRow.compared, OfferRow.worse)
    )
    return tally(session.execute(groups).all())


def describe(session: Session, row: RolloutRow, now: float) -> Rollout:
    """Return a roll-out with what its devices reported, and what it waits for."""
    counts, plan = count(session, row, now), plan_of(row)
    ever = _ever(session, row)
    regressions = tuple(
        (each.metric.name, each.pairs, each.worse) for each in compared(session, row) if each.pairs
    )
    left = max(0.0, row.stage_at + row.soak_s - now) if row.stages and row.state == "active" else None
    return Rollout(
        id=rollout_name(row.id),
        version=session.get_one(ReleaseRow, row.release_id).version,
        audience=audience_of(row),
        state=cast("RolloutState", row.state),
        created_at=row.created_at,
        offered=counts.offered,
        succeeded=ever.succeeded,
        failed=ever.failed,
        began=counts.began,
        crash_loops=ever.crash_loops,
        silent=counts.silent,
        expected=counts.expected,
        stages=plan.stages,
        stage=row.stage,
        soak_s=plan.soak_s,
        soak_left_s=left,
        threshold=plan.threshold,
        judged=(counts.results, counts.failed),
        lower_bound=wilson_lower(counts.failed, counts.results) if counts.results else None,
        regressions=regressions,
        holding=None if left is None else _holding(session, row, counts, now),
        reason=row.reason,
        rollback_of=None if row.rollback_of is None else rollout_name(row.rollback_of),
    )


def _holding(session: Session, row: RolloutRow, counts: Counts, now: float) -> str | None:
    if counts.offered == 0:
        return NOBODY_ASKED
    if now < row.stage_at + row.soak_s:  # the stage is not over: reading the whole fleet would be for nothing
        return hold_reason(counts, plan_of(row).next_points(row.stage))
    release = session.get_one(ReleaseRow, row.release_id)
    people = _Lazily(session, release.model, release.variant, now)
    return _missing(session, row, counts, _target(session, row, people), people)


def _ever(session: Session, row: RolloutRow) -> Counts:
    crashed = case((OfferRow.code == CRASH_LOOP, 1))
    results = select(OfferRow.result, func.count(), func.count(crashed)).where(
        OfferRow.rollout_id == row.id, OfferRow.result.is_not(None)
    )
    found = {
        result: (devices, loops)
        for result, devices, loops in session.execute(results.group_by(OfferRow.result))
    }
    failed, loops = found.get("fail", (0, 0))
    return Counts(succeeded=found.get("ok", (0, 0))[0], failed=failed, crash_loops=loops)
