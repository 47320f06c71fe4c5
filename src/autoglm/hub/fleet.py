"""The devices of a hub as an operator sees them: registered or not, seen or not, a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, String, and_, cast, func, select, true, union
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, NotFoundError
from autoglm.hub.access_tables import RegistrationRow
from autoglm.hub.database import Database
from autoglm.hub.tables import DeviceRow, EventRow

MAX_PAGE = 1000
NUM_EVENTS = 20
UNSEEN = "UNSEEN"
"""Stands for the state of devices that are registered and never asked for anything."""


@dataclass(frozen=True)
class FleetQuery:
    """Which devices are wanted.

    Attributes:
        version, region: exactly these.
        group: this one among the device's groups.
        state: of the newest event, such as ``TRIAL``; or ``UNSEEN``.
        after: the ``next`` of the page before.
        limit: at most this many, 1 to 1,000.
    """

    version: str | None = None
    group: str | None = None
    region: str | None = None
    state: str | None = None
    after: str | None = None
    limit: int = 100


@dataclass(frozen=True)
class FleetDevice:
    """One device.

    Attributes:
        device_id: its name.
        registered_at, registered_by: None of a device that is not registered.
        groups, region: of its registration.
        version: what it runs, as it says.
        first_seen_at, seen_at: seconds since 1970; None of a device that never asked.
        state, result, code: of its newest event.
    """

    device_id: str
    registered_at: float | None
    registered_by: str | None
    groups: tuple[str, ...]
    region: str | None
    version: str | None
    first_seen_at: float | None
    seen_at: float | None
    state: str | None
    result: str | None
    code: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the device as the admin API shows it."""
        return vars(self) | {"groups": list(self.groups)}


@dataclass(frozen=True)
class FleetPage:
    """Devices, newest sight first, those never seen last.

    Attributes:
        devices: of this page.
        total: how many fit the query, on all pages.
        next: what leads to the next page; None on the last one.
    """

    devices: tuple[FleetDevice, ...]
    total: int
    next: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the page as the admin API answers it."""
        return {
            "devices": [each.to_json() for each in self.devices],
            "total": self.total,
            "next": self.next,
        }


class Fleet:
    """The devices of one hub.

    Args:
        database: holds them.
        model, variant: what the hub serves.
        flush: writes what is remembered of devices and not yet in the database.
    """

    def __init__(self, database: Database, model: str, variant: str, flush: Callable[[], None]) -> None:
        self._database, self._flush = database, flush
        self._of_hub = and_(DeviceRow.model == model, DeviceRow.variant == variant)
        seen = select(DeviceRow.device_id).where(self._of_hub)
        self._ids = union(seen, select(RegistrationRow.device_id)).subquery("ids")
        self._id = self._ids.c.device_id

    def list(self, query: FleetQuery | None = None) -> FleetPage:
        """Return a page of devices.

        Raises:
            ConfigError: ``after`` is no page.
            StorageError: the database refused.
        """
        asked = query or FleetQuery()
        limit = max(1, min(asked.limit, MAX_PAGE))
        self._flush()
        fitting = self._devices().where(*_rules(asked))
        page = fitting.order_by(_seen().desc(), self._id).limit(limit + 1)
        if asked.after is not None:
            page = page.where(self._behind(asked.after))
        with self._database.read() as session:
            total = session.scalars(select(func.count()).select_from(fitting.subquery())).one()
            found = [_device(row) for row in session.execute(page)]
        more = len(found) > limit
        return FleetPage(tuple(found[:limit]), total, _cursor(found[limit - 1]) if more else None)

    def show(self, device_id: str) -> tuple[FleetDevice, list[dict[str, Any]]]:
        """Return one device and its newest 20 events, newest first.

        Raises:
            NotFoundError: it was neither seen nor registered.
            StorageError: the database refused.
        """
        self._flush()
        with self._database.read() as session:
            row = session.execute(self._devices().where(self._id == device_id)).one_or_none()
            if row is None:
                raise NotFoundError(f"there is no device {device_id[:128]!r}")
            return _device(row), _events(session, device_id)

    def _devices(self) -> Any:
        """Select every device that was seen or registered, once."""
        columns = (
            self._id.label("device_id"),
            RegistrationRow.registered_at,
            RegistrationRow.registered_by,
            RegistrationRow.groups,
            RegistrationRow.region,
            DeviceRow.version,
            DeviceRow.first_seen_at,
            DeviceRow.seen_at,
            DeviceRow.state,
            DeviceRow.result,
            DeviceRow.code,
        )
        return (
            select(*columns)
            .select_from(self._ids)
            .outerjoin(DeviceRow, and_(DeviceRow.device_id == self._id, self._of_hub))
            .outerjoin(RegistrationRow, RegistrationRow.device_id == self._id)
        )

    def _behind(self, cursor: str) -> ColumnElement[bool]:
        """Return the rule for what comes after a page."""
        seen_at, _, device_id = cursor.partition(":")
        try:
            at = float(seen_at)
        except ValueError as error:
            raise ConfigError("after: take it from the 'next' of the page before") from error
        return (_seen() < at) | ((_seen() == at) & (self._id > device_id))


def _seen() -> ColumnElement[float]:
    return func.coalesce(DeviceRow.seen_at, 0.0)


def _rules(asked: FleetQuery) -> list[ColumnElement[bool]]:
    rules: list[ColumnElement[bool]] = [true()]
    if asked.version is not None:
        rules.append(DeviceRow.version == asked.version)
    if asked.region is not None:
        rules.append(RegistrationRow.region == asked.region)
    if asked.group is not None:  # names hold no quotes, so a quoted name is found as a whole or not at all
        listed = cast(RegistrationRow.groups, String)
        rules.append(listed.contains(f'"{asked.group}"', autoescape=True))
    if asked.state == UNSEEN:
        rules.append(DeviceRow.device_id.is_(None))
    elif asked.state is not None:
        rules.append(DeviceRow.state == asked.state)
    return rules


def _cursor(device: FleetDevice) -> str:
    return f"{device.seen_at or 0.0!r}:{device.device_id}"


def _device(row: Any) -> FleetDevice:
    return FleetDevice(
        device_id=row.device_id,
        registered_at=row.registered_at,
        registered_by=row.registered_by,
        groups=tuple(row.groups or ()),
        region=row.region,
        version=row.version,
        first_seen_at=row.first_seen_at,
        seen_at=row.seen_at,
        state=row.state,
        result=row.result,
        code=row.code,
    )


def _events(session: Session, device_id: str) -> list[dict[str, Any]]:
    columns = (
        EventRow.received_at,
        EventRow.state,
        EventRow.result,
        EventRow.code,
        EventRow.from_version,
        EventRow.to_version,
        EventRow.rollout_id,
    )
    newest = select(*columns).where(EventRow.device_id == device_id).order_by(EventRow.id.desc())
    return [
        {
            "at": row.received_at,
            "state": row.state,
            "result": row.result,
            "code": row.code,
            "from": row.from_version,
            "to": row.to_version,
            "rollout_id": None if row.rollout_id is None else f"r{row.rollout_id}",
        }
        for row in session.execute(newest.limit(NUM_EVENTS))
    ]
