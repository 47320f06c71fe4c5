"""What devices report becomes the result of their roll-outs: once a device, and only where it was offered.

What it guarantees: an event about a roll-out that never offered this device anything changes no count, nor
does one about another release; the newest result by the device's own order counts, so that repeated and
late events change nothing. The device's clock is never looked at.

Functions work inside the caller's transaction.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.hub.tables import EventRow, OfferRow, ReleaseRow, RolloutRow
from autoglm.hub.verdict import compare
from autoglm.releases import Event

_ID = re.compile(r"r([1-9][0-9]{0,8})")
_LAST_STATS = 8
_CHUNK = 500


def rollout_key(name: str | None) -> int | None:
    """Return the database key of a roll-out's id, None for what cannot be one."""
    match = _ID.fullmatch(name or "")
    return int(match[1]) if match else None


def is_result(event: Event) -> bool:
    """Tell whether an event ends an update: a confirmed success, or a failure."""
    return event.result == "fail" or (event.result == "ok" and event.state == "CONFIRMED")


def settle(session: Session, device_id: str, events: Iterable[Event], now: float) -> set[int]:
    """Let the events of one device change its offers.

    Returns:
        The roll-outs in which it has failed now and had not before.
    """
    keyed = [(key, event) for event in events if (key := rollout_key(event.rollout_id)) is not None]
    offers = _offers(session, device_id, {key for key, _ in keyed})
    failed: set[int] = set()
    for key, event in sorted(keyed, key=lambda pair: pair[1].seq):
        offer, version = offers.get(key, (None, None))
        if offer is None or event.to_version not in (None, version):
            continue
        before = offer.result
        _apply(session, offer, event, now)
        if offer.result == "fail" != before:
            failed.add(key)
    return failed


def settle_stored(session: Session, devices: Mapping[int, Sequence[str]]) -> set[int]:
    """Let events that came before their offer was written down count: another hub may have taken them.

    Args:
        session: after the offers were written.
        devices: by roll-out, those whose offers were written now.
    """
    failed: set[int] = set()
    for key, names in devices.items():
        for start in range(0, len(names), _CHUNK):
            for device_id, events in _stored(session, key, names[start : start + _CHUNK]).items():
                for event, received_at in events:
                    failed |= settle(session, device_id, (event,), received_at)
    return failed


def _offers(session: Session, device_id: str, keys: Collection[int]) -> Mapping[int, tuple[OfferRow, str]]:
    if not keys:
        return {}
    rows = session.execute(
        select(OfferRow, ReleaseRow.version)
        .join(RolloutRow, OfferRow.rollout_id == RolloutRow.id)
        .join(ReleaseRow, RolloutRow.release_id == ReleaseRow.id)
        .where(OfferRow.device_id == device_id, OfferRow.rollout_id.in_(keys))
        .with_for_update(of=OfferRow)  # two hubs may take events of one device at the same moment
    )
    return {offer.rollout_id: (offer, version) for offer, version in rows}


def _apply(session: Session, offer: OfferRow, event: Event, now: float) -> None:
    offer.began_at = now if offer.began_at is None else offer.began_at
    offer.heard_at = max(offer.heard_at, now)
    if event.stats and event.from_version is not None:
        before = _stats_of(session, offer.device_id, event.from_version)
        offer.compared, offer.worse = compare(before, event.stats)
    if is_result(event) and event.seq > offer.result_seq:
        offer.result, offer.code = event.result, event.code
        offer.result_seq, offer.result_at = event.seq, now


def _stats_of(session: Session, device_id: str, version: str) -> Mapping[str, float]:
    """Return the numbers that a device last reported about a release."""
    reported = session.scalars(
        select(EventRow.stats)
        .where(EventRow.device_id == device_id, EventRow.to_version == version)
        .order_by(EventRow.id.desc())
        .limit(_LAST_STATS)
    )
    return next((stats for stats in reported if stats), {})


def _stored(session: Session, key: int, devices: Sequence[str]) -> Mapping[str, list[tuple[Event, float]]]:
    """Return stored events whose offers know nothing of them, by device, in the device's order."""
    rows = session.scalars(
        select(EventRow)
        .join(
            OfferRow,
            (OfferRow.rollout_id == EventRow.rollout_id) & (OfferRow.device_id == EventRow.device_id),
        )
        .where(EventRow.device_id.in_(devices), EventRow.rollout_id == key, OfferRow.began_at.is_(None))
        .order_by(EventRow.seq)
    ).all()
    found: dict[str, list[tuple[Event, float]]] = defaultdict(list)
    for row in rows:
        found[row.device_id].append((_event(row), row.received_at))
    return found


def _event(row: EventRow) -> Event:
    return Event(
        event_id=row.event_id,
        seq=row.seq,
        state=row.state,
        result=row.result,
        attempt_id=row.attempt_id,
        rollout_id=f"r{row.rollout_id}",
        from_version=row.from_version,
        to_version=row.to_version,
        code=row.code,
        stats=row.stats,
    )
