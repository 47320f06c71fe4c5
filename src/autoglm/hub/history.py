"""What was when: the versions that devices ran, and what was done to roll-outs. Rows are only ever added.

Functions work inside the caller's transaction, so that the log and what it is about are written together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlalchemy.orm import Session

from autoglm.hub.audit import Actor, audit
from autoglm.hub.snapshot import rollout_name
from autoglm.hub.tables import DeviceRow, DeviceVersionRow, OfferRow, ReleaseRow, RolloutLogRow, RolloutRow

MAX_LISTED = 10_000
_CHUNK = 500  # values in one IN (...); every database takes as many


@dataclass(frozen=True)
class LogEntry:
    """One act on a roll-out.

    Attributes:
        rollout_id, version: which.
        at: seconds since 1970.
        by: who; ``guard`` for the hub itself.
        act: such as ``create``, ``advance``, ``halt``.
        state, stage, basis_points: after it.
        reason: why, where one was given.
    """

    rollout_id: str
    version: str
    at: float
    by: str
    act: str
    state: str
    stage: int
    basis_points: int
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the admin API shows it."""
        return {
            "rollout_id": self.rollout_id,
            "version": self.version,
            "at": self.at,
            "by": self.by,
            "act": self.act,
            "state": self.state,
            "stage": self.stage,
            "percent": self.basis_points / 100,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Moment:
    """The fleet at one time.

    Attributes:
        at: when, seconds since 1970.
        versions: devices by the version that they ran.
        devices: those asked for by name, as (device, version, since).
        rollouts: the newest entry of each roll-out that there was.
        offers: devices that had been offered each release.
    """

    at: float
    versions: dict[str, int]
    devices: tuple[tuple[str, str | None, float], ...]
    rollouts: tuple[LogEntry, ...]
    offers: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the moment as the admin API shows it."""
        return {
            "at": self.at,
            "versions": self.versions,
            "offered": self.offers,
            "devices": [{"device_id": d, "version": v, "since": at} for d, v, at in self.devices],
            "rollouts": [entry.to_json() for entry in self.rollouts],
        }


def log_act(session: Session, row: RolloutRow, act: str, actor: Actor, now: float) -> None:
    """Write down what was done to a roll-out, here and in the audit log; ``row`` is as after the act."""
    entry = RolloutLogRow(
        rollout_id=row.id,
        at=now,
        by=actor.name,
        act=act,
        state=row.state,
        stage=row.stage,
        basis_points=row.basis_points,
        reason=row.reason,
    )
    session.add(entry)
    session.flush()
    version = session.get_one(ReleaseRow, row.release_id).version
    after = _entry(entry, version).to_json()
    audit(session, actor, f"rollout.{act}", rollout_name(row.id), after, at=now)


def note_versions(
    session: Session, model: str, variant: str, seen: Sequence[tuple[str, str | None, float]]
) -> None:
    """Write down what devices run, where that differs from what they ran when last seen.

    Args:
        session: before the devices' own rows are changed.
        model, variant: what the hub serves.
        seen: (device, version, seconds since 1970).
    """
    changed: list[dict[str, Any]] = []
    for start in range(0, len(seen), _CHUNK):
        part = seen[start : start + _CHUNK]
        known = _versions(session, model, variant, [device for device, _, _ in part])
        changed += [
            {"model": model, "variant": variant, "device_id": device, "version": version, "at": at}
            for device, version, at in part
            if device not in known or known[device] != version
        ]
    if changed:
        session.execute(insert(DeviceVersionRow), changed)


def note_change(session: Session, model: str, variant: str, seen: tuple[str, str | None, float]) -> None:
    """Write down that a device runs another version than before."""
    device_id, version, at = seen
    values = {"model": model, "variant": variant, "device_id": device_id, "version": version, "at": at}
    session.execute(insert(DeviceVersionRow), [values])


def _versions(session: Session, model: str, variant: str, devices: Sequence[str]) -> dict[str, str | None]:
    rows = select(DeviceRow.device_id, DeviceRow.version).where(
        DeviceRow.model == model, DeviceRow.variant == variant, DeviceRow.device_id.in_(devices)
    )
    return dict(session.execute(rows).all())


def entries(session: Session, key: int, limit: int = 200) -> list[LogEntry]:
    """Return the log of one roll-out, newest first."""
    rows = session.execute(_log().where(RolloutLogRow.rollout_id == key).limit(limit))
    return [_entry(row, version) for row, version in rows]


def look_back(
    session: Session, model: str, variant: str, at: float, version: str | None, limit: int
) -> Moment:
    """Return the fleet as it was at a time.

    Args:
        session: any view.
        model, variant: what the hub serves.
        at: seconds since 1970.
        version: list the devices that ran this one; None lists none.
        limit: of the devices listed.
    """
    place = func.row_number().over(
        partition_by=DeviceVersionRow.device_id,
        order_by=(DeviceVersionRow.at.desc(), DeviceVersionRow.id.desc()),
    )
    ours = (DeviceVersionRow.model == model, DeviceVersionRow.variant == variant, DeviceVersionRow.at <= at)
    ranked = select(
        DeviceVersionRow.device_id, DeviceVersionRow.version, DeviceVersionRow.at, place.label("place")
    )
    last = ranked.where(*ours).subquery()
    of_last = select(last.c.version, func.count()).where(last.c.place == 1).group_by(last.c.version)
    listed = select(last.c.device_id, last.c.version, last.c.at).where(
        last.c.place == 1, last.c.version == version
    )
    rows = session.execute(listed.order_by(last.c.device_id).limit(limit)) if version else ()
    return Moment(
        at=at,
        versions={name or "none": number for name, number in session.execute(of_last)},
        devices=tuple(tuple(row) for row in rows),
        rollouts=tuple(_rollouts_at(session, model, variant, at)),
        offers=_offers_at(session, model, variant, at),
    )


def _log() -> Select[RolloutLogRow, str]:
    return (
        select(RolloutLogRow, ReleaseRow.version)
        .join(RolloutRow, RolloutLogRow.rollout_id == RolloutRow.id)
        .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
        .order_by(RolloutLogRow.id.desc())
    )


def _rollouts_at(session: Session, model: str, variant: str, at: float) -> Iterable[LogEntry]:
    wanted = _log().where(ReleaseRow.model == model, ReleaseRow.variant == variant, RolloutLogRow.at <= at)
    newest: dict[int, LogEntry] = {}
    for row, version in session.execute(wanted):
        newest.setdefault(row.rollout_id, _entry(row, version))
    return (newest[key] for key in sorted(newest))


def _offers_at(session: Session, model: str, variant: str, at: float) -> dict[str, int]:
    rows = (
        select(ReleaseRow.version, func.count(OfferRow.device_id.distinct()))
        .join(RolloutRow, OfferRow.rollout_id == RolloutRow.id)
        .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
        .where(ReleaseRow.model == model, ReleaseRow.variant == variant, OfferRow.first_offered_at <= at)
        .group_by(ReleaseRow.version)
    )
    return dict(session.execute(rows).all())


def _entry(row: RolloutLogRow, version: str) -> LogEntry:
    return LogEntry(
        rollout_name(row.rollout_id),
        version,
        row.at,
        row.by,
        row.act,
        row.state,
        row.stage,
        row.basis_points,
        row.reason,
    )
