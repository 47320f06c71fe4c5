"""The hub's knowledge of devices: who was seen with what, what was offered, what was reported.

Checks are many and cheap to forget, so they are written behind, in batches: a crash loses about a second
of last-seen times and nothing else. Events are few and must not be lost or counted twice: each batch is
one durable transaction, and an event's id is stored with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from autoglm.errors import StorageError
from autoglm.hub.database import Database
from autoglm.hub.dialects import insert_into
from autoglm.hub.flushing import Flusher
from autoglm.hub.guard import watch
from autoglm.hub.history import note_change, note_versions
from autoglm.hub.ledger import queue_pair
from autoglm.hub.records import Device
from autoglm.hub.results import rollout_key, settle, settle_stored
from autoglm.hub.tables import DeviceRow, EventRow, OfferRow, ReleaseRow, RolloutRow
from autoglm.releases import Control, Event, EventBatch

_log = logging.getLogger(__name__)

MAX_BUFFERED = 200_000
_FIELD_PRIORITY = 5
_CONTROL: Mapping[str, Control] = {
    "active": "continue",
    "done": "continue",
    "paused": "pause",
    "halted": "cancel",
    "aborted": "cancel",
}


@dataclass(frozen=True)
class Sighting:
    """One update check, to be written behind.

    Attributes:
        device_id, version, manifest_sha256: what the device said.
        seen_at: seconds since 1970.
        rollout_id, attempt_id: of what it was offered.
        wanted: a pair (from, to) whose patch should be built.
    """

    device_id: str
    version: str | None
    manifest_sha256: str | None
    seen_at: float
    rollout_id: str | None = None
    attempt_id: str | None = None
    wanted: tuple[str, str] | None = None


class Devices:
    """Writes what devices do; one for each open hub, with one thread of its own."""

    def __init__(self, database: Database, model: str, variant: str) -> None:
        self._database, self._model, self._variant = database, model, variant
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._seen: dict[str, Sighting] = {}
        self._offers: dict[tuple[int, str], Sighting] = {}
        self._wanted: dict[tuple[str, str], float] = {}
        self._flusher = Flusher(self.flush, "hub-devices", "Device sightings wait to be written")

    def see(self, sighting: Sighting) -> None:
        """Remember a check; it is in the database about a second later."""
        with self._lock:
            if len(self._seen) < MAX_BUFFERED or sighting.device_id in self._seen:
                self._seen[sighting.device_id] = sighting
            if (key := rollout_key(sighting.rollout_id)) is not None and len(self._offers) < MAX_BUFFERED:
                self._offers[key, sighting.device_id] = sighting
            if sighting.wanted is not None:
                self._wanted.setdefault(sighting.wanted, sighting.seen_at)
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
            StorageError: the database refused; everything is kept for the next time.
        """
        with self._writing:  # so that an older batch is never written after a newer one
            with self._lock:
                self._flusher.taken()
                seen, offers, wanted = self._seen, self._offers, self._wanted
                self._seen, self._offers, self._wanted = {}, {}, {}
            try:
                self._write(seen.values(), offers, wanted)
            except StorageError:
                self._keep(seen, offers, wanted)
                raise

    def _write(
        self,
        seen: Iterable[Sighting],
        offers: Mapping[tuple[int, str], Sighting],
        wanted: Mapping[tuple[str, str], float],
    ) -> None:
        rows = list(seen)
        if not rows and not offers and not wanted:
            return
        with self._database.write(decides=bool(wanted)) as session:
            self._put_seen(session, rows)
            _put_offers(session, offers)
            if offers:
                newest = max(row.seen_at for row in offers.values())
                watch(session, settle_stored(session, _by_rollout(offers)), newest)
            for (source, target), asked_at in sorted(wanted.items()):
                self._queue(session, source, target, asked_at)

    def _keep(
        self,
        seen: Mapping[str, Sighting],
        offers: Mapping[tuple[int, str], Sighting],
        wanted: Mapping[tuple[str, str], float],
    ) -> None:
        with self._lock:
            self._seen = {**seen, **self._seen}
            self._offers = {**offers, **self._offers}
            self._wanted = {**wanted, **self._wanted}
        self._flusher.wake()

    def _put_seen(self, session: Session, rows: Sequence[Sighting]) -> None:
        statement = insert_into(session, DeviceRow)
        new = statement.excluded
        upsert = statement.on_conflict_do_update(
            index_elements=["model", "variant", "device_id"],
            set_={name: new[name] for name in ("version", "manifest_sha256", "seen_at")},
            where=DeviceRow.seen_at <= new["seen_at"],  # another hub may have seen it later
        )
        if rows:
            seen = [(row.device_id, row.version, row.seen_at) for row in rows]
            note_versions(session, self._model, self._variant, seen)
            session.execute(upsert, [self._device_row(row) for row in rows])

    def _device_row(self, row: Sighting) -> dict[str, Any]:
        return {
            "model": self._model,
            "variant": self._variant,
            "device_id": row.device_id,
            "version": row.version,
            "manifest_sha256": row.manifest_sha256,
            "first_seen_at": row.seen_at,
            "seen_at": row.seen_at,
            "last_seq": -1,
        }

    def _queue(self, session: Session, source: str, target: str, now: float) -> None:
        found = select(ReleaseRow.version, ReleaseRow.id).where(
            ReleaseRow.model == self._model,
            ReleaseRow.variant == self._variant,
            ReleaseRow.version.in_((source, target)),
        )
        ids = dict(session.execute(found).all())
        if source in ids and target in ids:
            queue_pair(session, ids[source], ids[target], priority=_FIELD_PRIORITY, now=now)

    def record(self, batch: EventBatch, now: float) -> Control:
        """Store a batch of events, each once, and say whether the device should go on.

        Raises:
            StorageError: the database refused; nothing of the batch is stored.
        """
        with self._writing:
            sighting, offers = self._take(batch)
            try:
                with self._database.write(decides=False) as session:
                    # It is older than these events, so it must not be written after them.
                    self._put_seen(session, [] if sighting is None else [sighting])
                    _put_offers(session, offers)
                    known = set(_rollout_states(session, batch.events))
                    _put_events(session, batch, known, now)
                    self._put_progress(session, batch, now)
                    watch(session, settle(session, batch.device_id, batch.events, now), now)
                    return _control(batch.events, _rollout_states(session, batch.events))
            except StorageError:
                self._keep({} if sighting is None else {batch.device_id: sighting}, offers, {})
                raise

    def _take(self, batch: EventBatch) -> tuple[Sighting | None, Mapping[tuple[int, str], Sighting]]:
        """Take out what waits to be written of this device and of the roll-outs that it reports about."""
        keys = {rollout_key(event.rollout_id) for event in batch.events}
        with self._lock:
            sighting = self._seen.pop(batch.device_id, None)
            waiting = [(key, batch.device_id) for key in keys if key is not None]
            offers = {place: self._offers.pop(place) for place in waiting if place in self._offers}
        return sighting, offers

    def _put_progress(self, session: Session, batch: EventBatch, now: float) -> None:
        key = (self._model, self._variant, batch.device_id)
        device = session.get(DeviceRow, key)
        if device is None:
            device = DeviceRow(
                model=self._model,
                variant=self._variant,
                device_id=batch.device_id,
                first_seen_at=now,
                last_seq=-1,
            )
            session.add(device)
        device.seen_at = now
        before = device.version
        for event in sorted(batch.events, key=lambda event: event.seq):
            if event.seq > device.last_seq:
                _advance(device, event)
        if device.version != before:
            note_change(session, self._model, self._variant, (batch.device_id, device.version, now))

    def list(self, limit: int | None = None) -> list[Device]:
        """Return devices, newest sight first.

        Raises:
            StorageError: the database refused.
        """
        self.flush()
        columns = (
            DeviceRow.device_id,
            DeviceRow.version,
            DeviceRow.first_seen_at,
            DeviceRow.seen_at,
            DeviceRow.state,
            DeviceRow.result,
            DeviceRow.code,
        )
        of_hub = (DeviceRow.model == self._model, DeviceRow.variant == self._variant)
        newest = select(*columns).where(*of_hub).order_by(DeviceRow.seen_at.desc(), DeviceRow.device_id)
        with self._database.read() as session:
            return [Device(*row) for row in session.execute(newest.limit(limit))]


def _advance(device: DeviceRow, event: Event) -> None:
    device.last_seq = event.seq
    device.state, device.result, device.code = event.state, event.result, event.code
    if event.state == "CONFIRMED" and event.result == "ok" and event.to_version is not None:
        device.version, device.manifest_sha256 = event.to_version, None


def _put_offers(session: Session, offers: Mapping[tuple[int, str], Sighting]) -> None:
    statement = insert_into(session, OfferRow)
    upsert = statement.on_conflict_do_update(
        index_elements=["rollout_id", "device_id"],
        set_={name: statement.excluded[name] for name in ("attempt_id", "offered_at", "heard_at")},
        where=OfferRow.offered_at <= statement.excluded["offered_at"],
    )
    rows = [
        {
            "rollout_id": key,
            "device_id": device,
            "attempt_id": row.attempt_id,
            "offered_at": row.seen_at,
            "first_offered_at": row.seen_at,
            "heard_at": row.seen_at,
        }
        for (key, device), row in offers.items()
    ]
    if rows:
        session.execute(upsert, rows)


def _by_rollout(offers: Iterable[tuple[int, str]]) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = {}
    for key, device in offers:
        found.setdefault(key, []).append(device)
    return found


def _rollout_states(session: Session, events: Iterable[Event]) -> Mapping[int, str]:
    keys = {key for event in events if (key := rollout_key(event.rollout_id)) is not None}
    found = select(RolloutRow.id, RolloutRow.state).where(RolloutRow.id.in_(keys))
    return dict(session.execute(found).all())


def _put_events(session: Session, batch: EventBatch, known: set[int], now: float) -> None:
    rows = [_event_row(batch.device_id, event, known, now) for event in batch.events]
    once = insert_into(session, EventRow).on_conflict_do_nothing(index_elements=["device_id", "event_id"])
    if rows:
        session.execute(once, rows)


def _event_row(device_id: str, event: Event, known: set[int], now: float) -> dict[str, Any]:
    key = rollout_key(event.rollout_id)
    return {
        "device_id": device_id,
        "event_id": event.event_id,
        "seq": event.seq,
        "rollout_id": key if key in known else None,
        "attempt_id": event.attempt_id,
        "from_version": event.from_version,
        "to_version": event.to_version,
        "state": event.state,
        "result": event.result,
        "code": event.code,
        "bytes": event.bytes,
        "ms": event.ms,
        "ts": event.ts,
        "stats": event.stats,
        "received_at": now,
    }


def _control(events: Sequence[Event], states: Mapping[int, str]) -> Control:
    """Let the newest event's roll-out decide; one that is not ours cannot stop anything."""
    newest = max(events, key=lambda event: event.seq, default=None)
    key = rollout_key(newest.rollout_id) if newest is not None else None
    return _CONTROL[states.get(key, "active")] if key is not None else "continue"
