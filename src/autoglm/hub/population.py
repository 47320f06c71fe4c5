"""The devices that a hub knows, as roll-outs see them: what they run, and where they belong.

What it guarantees: groups and regions are those of registrations and live device tokens, never what a
device says of itself. A device that was not seen for a month is not waited for.

Functions work inside the caller's transaction, and hold all devices in memory: some hundred bytes each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.hub.access_tables import RegistrationRow
from autoglm.hub.decision import bucket
from autoglm.hub.records import ALL_BASIS_POINTS, Audience, Claims
from autoglm.hub.snapshot import audience_of
from autoglm.hub.stages import Plan
from autoglm.hub.tables import DeviceRow, ReleaseRow, RolloutRow, TokenRow
from autoglm.hub.tokens import token_claims

PRESENT_S = 30 * 24 * 3600.0
_NOBODY = Claims("device")


@dataclass(frozen=True)
class Person:
    """One device.

    Attributes:
        device_id: its own name.
        version: what it ran when last seen.
        counter: of that release; 0 for one that the hub does not know.
        claims: what its token proves; a device without one has no group and no region.
    """

    device_id: str
    version: str | None
    counter: int
    claims: Claims


@dataclass(frozen=True)
class People:
    """All devices seen lately."""

    devices: tuple[Person, ...] = field(default=())


def load_people(session: Session, model: str, variant: str, now: float) -> People:
    """Read the devices that were seen within :data:`PRESENT_S`."""
    claims = device_claims(session, now)
    ours = (ReleaseRow.model == model, ReleaseRow.variant == variant)
    counters = dict(session.execute(select(ReleaseRow.version, ReleaseRow.counter).where(*ours)).all())
    seen = select(DeviceRow.device_id, DeviceRow.version).where(
        DeviceRow.model == model, DeviceRow.variant == variant, DeviceRow.seen_at > now - PRESENT_S
    )
    return People(
        tuple(
            Person(device, version, counters.get(version or "", 0), claims.get(device, _NOBODY))
            for device, version in session.execute(seen)
        )
    )


def device_claims(session: Session, now: float, device_id: str | None = None) -> Mapping[str, Claims]:
    """Return what the live tokens of devices prove, by device; the newest token of each counts.

    Args:
        session: any view.
        now: seconds since 1970; a token that has expired by then proves nothing.
        device_id: only of this one.
    """
    is_live = TokenRow.revoked_at.is_(None) & (TokenRow.expires_at.is_(None) | (TokenRow.expires_at > now))
    tokens = (
        select(TokenRow, RegistrationRow)
        .outerjoin(RegistrationRow, RegistrationRow.device_id == TokenRow.device_id)
        .where(TokenRow.device_id.is_not(None), is_live)
    )
    if device_id is not None:
        tokens = tokens.where(TokenRow.device_id == device_id)
    return {
        str(row.device_id): token_claims(row, registration)
        for row, registration in session.execute(tokens.order_by(TokenRow.id))
    }


Reach = Sequence[tuple[int, frozenset[str]]]
"""Whom each stage and those before it let in: basis points, and groups."""


def reach_of(plan: Plan) -> Reach:
    """Return whom the stages of a plan let in."""
    found = [plan.reach(stage) for stage in range(len(plan.stages))]
    return [(points, frozenset(groups)) for points, groups in found]


def stage_of(reach: Reach, salt: str, person: Person) -> int | None:
    """Return the first stage that lets a device in, None when none does."""
    place: int | None = None
    for stage, (points, groups) in enumerate(reach):
        if points >= ALL_BASIS_POINTS or not groups.isdisjoint(person.claims.groups):
            return stage
        if points:
            place = bucket(salt, person.device_id) if place is None else place
            if place < points:
                return stage
    return None


def is_for(audience: Audience, counter: int, person: Person) -> bool:
    """Tell whether a release is for this device at all: newer than its own, and its place is named.

    Args:
        audience: the groups, regions and versions of a roll-out; its share is not looked at.
        counter: of the release.
        person: the device.
    """
    return (
        person.counter < counter
        and (not audience.groups or not set(audience.groups).isdisjoint(person.claims.groups))
        and (not audience.regions or person.claims.region in audience.regions)
        and (not audience.from_versions or person.version in audience.from_versions)
    )


def first_open_stage(people: People, row: RolloutRow, counter: int, stage: int) -> int:
    """Return the first stage from ``stage`` on that some device can newly be in.

    Without any such device it is the last stage, which waits for devices to come; a hub that knows no
    device at all passes no stage.

    Args:
        people: the hub's devices.
        row: the roll-out.
        counter: of its release.
        stage: where to look from.
    """
    if not people.devices:
        return stage
    plan, audience = Plan(tuple(row.stages)), audience_of(row)
    reach = reach_of(plan)
    wanted = (person for person in people.devices if is_for(audience, counter, person))
    found = {stage_of(reach, row.salt, person) for person in wanted}
    return min((each for each in found if each is not None and each >= stage), default=max(stage, plan.last))
