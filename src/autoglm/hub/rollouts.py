"""Roll-outs in the database: making and changing them.

A roll-out is the same one when release, groups and regions are the same: making it again sets its
percentage and keeps its salt, so that a raise adds devices and loses none. One that goes by stages is
changed by its stages only.

::

    active ──guard: last stage passed──> done
      │ ^ <──────── resume ────────┐      │
      │ └─ resume ─ paused <───────┼──────┤  pause, or the guard: too many devices fell silent
      └────────> halted <──────────┴──────┘  the guard: the release is bad
    aborted <── from every other, for good

``active`` and ``done`` offer the release; ``paused`` lets devices in flight wait, ``halted`` and ``aborted``
cancel them. Each change is a conditional one, so that of several hubs that see the same reason one acts.
Functions work inside the caller's transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, ConflictError, NotFoundError
from autoglm.hub.audit import LOCAL, Actor
from autoglm.hub.database import DECIDED
from autoglm.hub.history import log_act
from autoglm.hub.records import Audience, RolloutState
from autoglm.hub.results import rollout_key
from autoglm.hub.snapshot import audience_of, rollout_name
from autoglm.hub.stages import Plan
from autoglm.hub.tables import ReleaseRow, RolloutRow

GUARD = Actor("guard", "hub")
NUM_RETRIES = 3

Wish = Literal["active", "paused", "aborted"]
WISHES: tuple[Wish, ...] = ("active", "paused", "aborted")

# What each act may begin from, and where it leads.
MOVES: dict[str, tuple[frozenset[RolloutState], RolloutState]] = {
    "pause": (frozenset({"active", "done"}), "paused"),
    "resume": (frozenset({"paused", "halted"}), "active"),
    "abort": (frozenset({"active", "paused", "halted", "done"}), "aborted"),
    "halt": (frozenset({"active", "paused", "done"}), "halted"),
    "advance": (frozenset({"active"}), "active"),
    "promote": (frozenset({"active"}), "active"),
    "finish": (frozenset({"active"}), "done"),
}
_ACTS: dict[str, str] = {"active": "resume", "paused": "pause", "aborted": "abort"}


@dataclass(frozen=True)
class Draft:
    """A roll-out to be made.

    Attributes:
        plan: its stages; None leaves those of the same roll-out, or makes one without stages.
        stage: where it begins.
        salt: of its buckets; None draws one.
        rollback_of: the roll-out whose devices it takes back.
        actor: who makes it.
    """

    plan: Plan | None = None
    stage: int = 0
    salt: str | None = None
    rollback_of: int | None = None
    actor: Actor = LOCAL


def new_salt() -> str:
    """Return a salt that no other roll-out has."""
    return secrets.token_hex(8)


def plan_of(row: RolloutRow) -> Plan:
    """Return how a roll-out goes on by itself."""
    return Plan(tuple(row.stages), row.soak_s, row.threshold)


def find(session: Session, name: str) -> RolloutRow:
    """Return a roll-out.

    Raises:
        NotFoundError: there is none of that name.
    """
    key = rollout_key(name)
    row = None if key is None else session.get(RolloutRow, key)
    if row is None:
        raise NotFoundError(f"there is no roll-out {name[:80]!r}")
    return row


def same_rollout(session: Session, release_id: int, audience: Audience) -> RolloutRow | None:
    """Return the roll-out of a release to the same devices that is not over, None without one."""
    for row in session.scalars(select(RolloutRow).where(RolloutRow.release_id == release_id)):
        known = audience_of(row)
        same = (known.groups, known.regions, known.from_versions) == (
            audience.groups,
            audience.regions,
            audience.from_versions,
        )
        if row.state != "aborted" and same:
            return row
    return None


def put_rollout(
    session: Session, release: ReleaseRow, audience: Audience, now: float, draft: Draft | None = None
) -> RolloutRow:
    """Make a roll-out, or set the percentage of the same one.

    Raises:
        ConflictError: the same one is paused or halted, or goes by stages of its own.
    """
    draft = draft or Draft()
    row = same_rollout(session, release.id, audience)
    return (
        _make(session, release, audience, now, draft)
        if row is None
        else _change(session, row, audience, now, draft)
    )


def _make(session: Session, release: ReleaseRow, audience: Audience, now: float, draft: Draft) -> RolloutRow:
    plan = draft.plan or Plan()
    points = plan.reach(draft.stage)[0] if plan.stages else audience.basis_points
    row = RolloutRow(
        release_id=release.id,
        basis_points=points,
        salt=draft.salt or new_salt(),
        groups=list(audience.groups),
        regions=list(audience.regions),
        from_versions=list(audience.from_versions),
        stages=list(plan.stages),
        stage=draft.stage,
        stage_at=now,
        soak_s=plan.soak_s,
        threshold=plan.threshold,
        rollback_of=draft.rollback_of,
        state="active",
        created_at=now,
        changed_at=now,
    )
    session.add(row)
    session.flush()
    log_act(session, row, "create", draft.actor, now)
    return row


def _change(session: Session, row: RolloutRow, audience: Audience, now: float, draft: Draft) -> RolloutRow:
    name = rollout_name(row.id)
    plan = draft.plan or Plan()
    if plan.stages and plan == plan_of(row):
        return row  # asked for twice: the first answer may have been lost
    if plan.stages or row.stages:
        raise ConflictError(
            f"roll-out {name} offers this release to the same devices already: promote it to its next stage "
            f"(autoglm rollout promote {name}), or abort it first"
        )
    if row.state in ("paused", "halted"):
        raise ConflictError(f"roll-out {name} is {row.state}: resume it first")
    if draft.plan is not None:
        row.soak_s, row.threshold = plan.soak_s, plan.threshold
    if row.basis_points != audience.basis_points:
        row.basis_points, row.changed_at = audience.basis_points, now
        log_act(session, row, "resize", draft.actor, now)
    return row


def change_state(
    session: Session,
    name: str,
    state: RolloutState,
    now: float,
    actor: Actor = LOCAL,
    reason: str | None = None,
) -> RolloutRow:
    """Pause, resume or abort a roll-out; aborting is final. What it is already changes nothing.

    Raises:
        ConfigError: ``state`` is none that can be asked for.
        NotFoundError: there is no such roll-out.
        ConflictError: it was aborted, or its state does not allow this.
    """
    if state not in WISHES:
        raise ConfigError(f"roll-out: state must be one of {', '.join(WISHES)}, not {str(state)[:40]!r}")
    for _ in range(NUM_RETRIES):
        row = find(session, name)
        if row.state == state or (state == "active" and row.state == "done"):
            return row
        if row.state == "aborted":
            raise ConflictError(f"roll-out {name} was aborted, which is final: make a new one")
        if row.state not in MOVES[_ACTS[state]][0]:
            raise ConflictError(f"roll-out {name} is {row.state}: it cannot be {state}")
        if move(session, row, _ACTS[state], actor, now, reason=reason, **_forgiven(row, state, now)):
            return row
    raise ConflictError(f"roll-out {name} is being changed by others: look at it and try again")


def _forgiven(row: RolloutRow, state: RolloutState, now: float) -> dict[str, Any]:
    """Return what a resume starts anew: the soak time, and what the operator has seen and gone on from."""
    if state != "active":
        return {}
    values: dict[str, Any] = {"stage_at": now, "silent_from": now}
    return values | {"judged_from": now} if row.state == "halted" else values


def promote(session: Session, row: RolloutRow, stage: int, now: float, actor: Actor) -> RolloutRow:
    """Go on to ``stage`` now, whatever the clock and the evidence say.

    Raises:
        ConflictError: it is not active, or there is no further stage.
    """
    name = rollout_name(row.id)
    if row.state != "active":
        raise ConflictError(f"roll-out {name} is {row.state}: only an active one can be promoted")
    if not row.stage < stage <= plan_of(row).last:
        raise ConflictError(f"roll-out {name} is in its last stage: there is nothing to promote it to")
    if not enter(session, row, stage, "promote", actor, now):
        raise ConflictError(f"roll-out {name} was changed meanwhile: look at it and try again")
    return row


def enter(session: Session, row: RolloutRow, stage: int, act: str, actor: Actor, now: float) -> bool:
    """Let a further stage in; see :func:`move`."""
    points, _ = plan_of(row).reach(stage)
    return move(session, row, act, actor, now, stage=stage, stage_at=now, basis_points=points)


def move(
    session: Session,
    row: RolloutRow,
    act: str,
    actor: Actor,
    now: float,
    *,
    reason: str | None = None,
    **values: Any,
) -> bool:
    """Do an act of :data:`MOVES`, unless another process was faster.

    Returns:
        Whether it was done; the row is as it is in the database in either case.
    """
    allowed, state = MOVES[act]
    if row.state not in allowed:
        return False
    as_seen = (RolloutRow.id == row.id, RolloutRow.state == row.state, RolloutRow.stage == row.stage)
    changes = {"state": state, "reason": reason, "changed_at": now} | values
    done: Any = session.execute(
        update(RolloutRow).where(*as_seen).values(**changes).execution_options(synchronize_session=False)
    )
    session.refresh(row)
    if done.rowcount != 1:
        return False
    log_act(session, row, act, actor, now)
    announce(session)
    return True


def announce(session: Session) -> None:
    """Let every process read its snapshot again once this write is committed, its own process at once."""
    session.info[DECIDED] = True


def of_hub(session: Session, model: str, variant: str, states: Collection[str] = ()) -> Sequence[RolloutRow]:
    """Return the roll-outs of a model and variant, oldest first; all of them when no states are named."""
    rows = (
        select(RolloutRow)
        .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
        .where(ReleaseRow.model == model, ReleaseRow.variant == variant)
        .order_by(RolloutRow.id)
    )
    return session.scalars(rows.where(RolloutRow.state.in_(states)) if states else rows).all()
