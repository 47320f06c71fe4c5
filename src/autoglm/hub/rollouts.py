"""Roll-outs in the database: making, changing and counting them.

A roll-out is the same one when release, groups and regions are the same: making it again sets its
percentage and keeps its salt, so that a raise adds devices and loses none. Functions work inside the
caller's transaction.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, ConflictError, NotFoundError
from autoglm.hub.records import Audience, Rollout, RolloutState
from autoglm.hub.snapshot import audience_of, rollout_name
from autoglm.hub.tables import EventRow, OfferRow, ReleaseRow, RolloutRow

_ID = re.compile(r"r([1-9][0-9]{0,9})")
STATES: tuple[RolloutState, ...] = ("active", "paused", "aborted")


def rollout_key(name: str | None) -> int | None:
    """Return the database key of a roll-out's id, None for what cannot be one."""
    match = _ID.fullmatch(name or "")
    return int(match[1]) if match else None


def put_rollout(session: Session, release: ReleaseRow, audience: Audience, now: float) -> RolloutRow:
    """Make a roll-out, or set the percentage of the same one.

    Raises:
        ConflictError: the same one is paused.
    """
    for row in session.scalars(select(RolloutRow).where(RolloutRow.release_id == release.id)):
        known = audience_of(row)
        if row.state == "aborted" or (known.groups, known.regions) != (audience.groups, audience.regions):
            continue
        if row.state == "paused":
            raise ConflictError(
                f"roll-out {rollout_name(row.id)} of {release.version} is paused: resume it first"
            )
        row.basis_points, row.changed_at = audience.basis_points, now
        return row
    row = RolloutRow(
        release_id=release.id,
        basis_points=audience.basis_points,
        salt=secrets.token_hex(8),
        groups=list(audience.groups),
        regions=list(audience.regions),
        state="active",
        created_at=now,
        changed_at=now,
    )
    session.add(row)
    session.flush()
    return row


def change_state(session: Session, name: str, state: RolloutState, now: float) -> RolloutRow:
    """Pause, resume or abort a roll-out; aborting is final.

    Raises:
        ConfigError: ``state`` is no state.
        NotFoundError: there is no such roll-out.
        ConflictError: it was aborted.
    """
    if state not in STATES:
        raise ConfigError(f"roll-out: state must be one of {', '.join(STATES)}, not {str(state)[:40]!r}")
    key = rollout_key(name)
    row = None if key is None else session.get(RolloutRow, key)
    if row is None:
        raise NotFoundError(f"there is no roll-out {name[:80]!r}")
    if row.state == "aborted" and state != "aborted":
        raise ConflictError(f"roll-out {name} was aborted, which is final: make a new one")
    row.state, row.changed_at = state, now
    return row


def describe(session: Session, row: RolloutRow) -> Rollout:
    """Return a roll-out with what its devices reported."""
    release = session.get_one(ReleaseRow, row.release_id)
    offered = select(func.count()).select_from(OfferRow).where(OfferRow.rollout_id == row.id)
    results = _results(session, row.id)
    return Rollout(
        id=rollout_name(row.id),
        version=release.version,
        audience=audience_of(row),
        state=cast("RolloutState", row.state),
        created_at=row.created_at,
        offered=session.scalars(offered).one(),
        succeeded=results.get("ok", 0),
        failed=results.get("fail", 0),
    )


def _results(session: Session, key: int) -> Mapping[str, int]:
    """Count devices by their newest final result: a confirmed success, or a failure."""
    final = (EventRow.result == "fail") | ((EventRow.result == "ok") & (EventRow.state == "CONFIRMED"))
    place = func.row_number().over(partition_by=EventRow.device_id, order_by=EventRow.seq.desc())
    newest = select(EventRow.result, place.label("place")).where(EventRow.rollout_id == key, final).subquery()
    counts = select(newest.c.result, func.count()).where(newest.c.place == 1).group_by(newest.c.result)
    return dict(session.execute(counts).all())


def list_rollouts(session: Session, model: str, variant: str) -> list[Rollout]:
    """Return all roll-outs, oldest first."""
    rows = session.scalars(
        select(RolloutRow)
        .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
        .where(ReleaseRow.model == model, ReleaseRow.variant == variant)
        .order_by(RolloutRow.id)
    ).all()
    return [describe(session, row) for row in rows]
