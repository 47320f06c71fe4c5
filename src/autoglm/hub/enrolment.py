"""Registering devices: by an administrator, or by themselves with an enrolment code.

What it guarantees: a code is used at most as often as it says, however many devices send it at once; a use is
only spent when a device was registered; a device whose answer was lost gets a token when it asks again with
the same request; nobody takes over a device that is registered or
has a token from an operator; groups and region are those of the
administrator or of the code, never those that a device names.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autoglm.errors import ConfigError, ConflictError, NotFoundError, PermissionDeniedError
from autoglm.hub.access_tables import InviteRow, RegistrationRow
from autoglm.hub.audit import LOCAL, Actor, audit
from autoglm.hub.credentials import digest, new_code, new_token, read_code
from autoglm.hub.database import Database
from autoglm.hub.records import Claims
from autoglm.hub.tables import DeviceRow, TokenRow
from autoglm.hub.tokens import REGISTERED, add_token, check_places, revoke_rows, withdraw
from autoglm.releases import RegistrationAnswer, RegistrationRequest, is_device_id

MAX_USES = 1_000_000
OWN_ENGINE = "service"
"""The device id of the engine beside the hub, which needs no token."""
MIN_SECONDS, MAX_SECONDS = 60.0, 366 * 86400.0
_ID = re.compile(r"i([1-9][0-9]{0,8})")  # no id that the database could not hold


@dataclass(frozen=True)
class Invite:
    """An enrolment code as it is listed: all but the code.

    Attributes:
        id: such as ``i3``.
        groups, region: what a device gets with it.
        uses, uses_left: how often it may be used, and may still be.
        created_at, created_by: when, and who made it.
        expires_at, revoked_at: seconds since 1970.
    """

    id: str
    groups: tuple[str, ...]
    region: str | None
    uses: int
    uses_left: int
    created_at: float
    created_by: str
    expires_at: float
    revoked_at: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the code's record as the admin API shows it."""
        return vars(self) | {"groups": list(self.groups)}


@dataclass
class Enrolment:
    """Registrations and enrolment codes of one hub."""

    _database: Database
    _clock: Callable[[], float] = field(default=time.time)

    # By an administrator

    def register(self, request: RegistrationRequest, actor: Actor = LOCAL) -> RegistrationAnswer:
        """Register a device with the groups and region of the request, and make its token.

        Raises:
            ConfigError: a group or the region is no name.
            ConflictError: it is registered already, and no new token was asked for; or it is the hub's own.
            StorageError: the database refused.
        """
        _refuse_own_engine(request.device_id)
        check_places(request.groups, request.region)
        now = self._clock()
        with self._database.write(decides=self._has_tokens(request.device_id)) as session:
            row = session.get(RegistrationRow, request.device_id)
            if row is not None and not request.new_token:
                raise _taken(request.device_id)
            if row is None:
                row = _add(session, request, request.groups, request.region, actor.name, now)
            return self._give_token(session, row, actor, "device.register", now)

    def move(
        self,
        device_id: str,
        *,
        groups: Sequence[str] | None = None,
        region: str | None = None,
        no_region: bool = False,
        actor: Actor = LOCAL,
    ) -> RegistrationAnswer:
        """Give a registered device other groups or another region; its tokens go on working.

        Args:
            device_id: the device.
            groups: all of its groups from now on; None leaves them.
            region: its region from now on; None leaves it.
            no_region: take its region away.
            actor: who does it.

        Returns:
            The claims, with an empty token.

        Raises:
            ConfigError: a group or the region is no name.
            NotFoundError: it is not registered.
            StorageError: the database refused.
        """
        check_places(groups or (), region)
        now = self._clock()
        with self._database.write() as session:
            row = _find(session, device_id)
            before = {"groups": list(row.groups), "region": row.region}
            row.groups = row.groups if groups is None else sorted(set(groups))
            row.region = None if no_region else region or row.region
            row.changed_at = now
            withdraw(session)
            after = {"groups": list(row.groups), "region": row.region}
            audit(session, actor, "device.move", device_id, {"before": before, "after": after}, at=now)
            return RegistrationAnswer(device_id, "", tuple(row.groups), row.region)

    def forget(self, device_id: str, actor: Actor = LOCAL) -> int:
        """Drop a device's registration and sighting, and revoke its tokens; what it reported stays.

        Returns:
            How many tokens were revoked.

        Raises:
            NotFoundError: the hub knows no such device.
            StorageError: the database refused.
        """
        now = self._clock()
        with self._database.write() as session:
            row = session.get(RegistrationRow, device_id)
            before = None if row is None else {"groups": list(row.groups), "region": row.region}
            seen = session.scalars(select(DeviceRow.version).where(DeviceRow.device_id == device_id)).all()
            revoked = revoke_rows(session, now, TokenRow.device_id == device_id)
            if row is None and not seen and not revoked:
                raise NotFoundError(f"there is no device {device_id[:128]!r}")
            session.execute(delete(DeviceRow).where(DeviceRow.device_id == device_id))
            session.execute(delete(RegistrationRow).where(RegistrationRow.device_id == device_id))
            withdraw(session)
            details = {"before": before, "tokens_revoked": len(revoked)}
            audit(session, actor, "device.forget", device_id, details, at=now)
            return len(revoked)

    # By codes

    def invite(
        self,
        *,
        groups: Sequence[str] = (),
        region: str | None = None,
        uses: int = 1,
        seconds: float = 86400.0,
        actor: Actor = LOCAL,
    ) -> tuple[str, Invite]:
        """Make an enrolment code.

        Args:
            groups, region: what each device gets that uses it.
            uses: how many devices may use it.
            seconds: how long it is good.
            actor: who does it.

        Returns:
            The code, which is shown this once, and what is kept of it.

        Raises:
            ConfigError: an argument is out of its range.
            StorageError: the database refused.
        """
        check_places(groups, region)
        if not 1 <= uses <= MAX_USES:
            raise ConfigError(f"enrolment code: uses must be 1 to {MAX_USES}")
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise ConfigError("enrolment code: it may be good for a minute to 366 days")
        code, now = new_code(), self._clock()
        with self._database.write(decides=False) as session:
            row = InviteRow(
                digest=digest(code),
                groups=sorted(set(groups)),
                region=region,
                uses=uses,
                uses_left=uses,
                created_at=now,
                created_by=actor.name,
                expires_at=now + seconds,
            )
            session.add(row)
            session.flush()
            invite = _invite(row)
            kept = {"groups": list(groups), "region": region, "uses": uses, "expires_at": row.expires_at}
            audit(session, actor, "invite.create", invite.id, kept, at=now)
        return code, invite

    def invites(self, *, live: bool = False) -> list[Invite]:
        """Return the newest 1,000 enrolment codes, newest first.

        Args:
            live: only those that a device can still use.

        Raises:
            StorageError: the database refused.
        """
        wanted = select(InviteRow).order_by(InviteRow.id.desc()).limit(1000)
        if live:
            wanted = wanted.where(*_usable(self._clock()))
        with self._database.read() as session:
            return [_invite(row) for row in session.scalars(wanted)]

    def revoke_invite(self, invite_id: str, actor: Actor = LOCAL) -> Invite:
        """Make an enrolment code useless; devices that used it stay registered.

        Raises:
            NotFoundError: there is no such code, or it was revoked before.
            StorageError: the database refused.
        """
        match, now = _ID.fullmatch(invite_id), self._clock()
        with self._database.write(decides=False) as session:
            row = session.get(InviteRow, int(match[1])) if match else None
            if row is None or row.revoked_at is not None:
                raise NotFoundError(f"there is no live enrolment code {invite_id[:80]!r}; its id is like i3")
            row.revoked_at = now
            audit(session, actor, "invite.revoke", invite_id, {"uses_left": row.uses_left}, at=now)
            return _invite(row)

    def enrol(self, request: RegistrationRequest, address: str | None = None) -> RegistrationAnswer:
        """Register a device that sends an enrolment code, and make its token.

        Args:
            request: as the device sent it; its groups and region count for nothing.
            address: where it came from, for the audit log.

        Raises:
            PermissionDeniedError: the code is mistyped, unknown, used up, expired or revoked.
            ConflictError: the device is registered, has a token from an operator, or is the hub's own.
            StorageError: the database refused; no use of the code is spent.
        """
        if (code := read_code(request.code or "")) is None:
            raise PermissionDeniedError("this is no enrolment code: it is mistyped or cut off")
        _refuse_own_engine(request.device_id)
        now = self._clock()
        with self._database.write(decides=self._has_tokens(request.device_id)) as session:
            row, invite = session.get(RegistrationRow, request.device_id), _invite_of(session, code)
            if row is None or not _asks_again(row, invite, request):
                _spend(session, invite, now)
                if row is not None:
                    raise _taken(request.device_id)
                row = _add(session, request, invite.groups, invite.region, f"i{invite.id}", now, invite.id)
            elif not _is_live(invite, now):
                raise _refusal(invite, now)
            _leave_to_operator(session, request.device_id, now)
            actor = Actor(f"i{invite.id}", "code", address)
            return self._give_token(session, row, actor, "device.enrol", now)

    @staticmethod
    def _give_token(
        session: Session, row: RegistrationRow, actor: Actor, act: str, now: float
    ) -> RegistrationAnswer:
        """Make the device's one token; those that it had prove nothing any more."""
        revoked = revoke_rows(session, now, TokenRow.device_id == row.device_id)
        token = new_token()
        made = add_token(session, token, Claims("device", REGISTERED, row.device_id), now, actor.name)
        details: dict[str, Any] = {"groups": list(row.groups), "region": row.region, "token": f"t{made.id}"}
        if revoked:
            details["tokens_revoked"] = len(revoked)
        audit(session, actor, act, row.device_id, details, at=now)
        return RegistrationAnswer(row.device_id, token, tuple(row.groups), row.region)

    def _has_tokens(self, device_id: str) -> bool:
        """Tell whether something that processes remember will have to be forgotten."""
        live = (TokenRow.device_id == device_id, TokenRow.revoked_at.is_(None))
        with self._database.read() as session:
            return session.scalars(select(TokenRow.id).where(*live)).first() is not None


def _taken(device_id: str) -> ConflictError:
    return ConflictError(
        f"{device_id} is registered already: move it to change its groups, ask for a new token, or forget it"
    )


def _refuse_own_engine(device_id: str) -> None:
    if device_id == OWN_ENGINE:
        raise ConflictError(f"{OWN_ENGINE!r} is the hub's own engine: name the device otherwise")


def _leave_to_operator(session: Session, device_id: str, now: float) -> None:
    """See that no code revokes a token that somebody made for the device.

    Raises:
        ConflictError: there is a live one that did not come from a code.
    """
    lasting = TokenRow.expires_at.is_(None) | (TokenRow.expires_at > now)
    live = (TokenRow.device_id == device_id, TokenRow.revoked_at.is_(None), lasting)
    made = session.execute(select(TokenRow.name, TokenRow.created_by).where(*live)).all()
    if any(name != REGISTERED or not _ID.fullmatch(maker) for name, maker in made):
        raise ConflictError(f"{device_id} has a token from an operator: revoke that before it enrols")


def _find(session: Session, device_id: str) -> RegistrationRow:
    row = session.get(RegistrationRow, device_id) if is_device_id(device_id) else None
    if row is None:
        raise NotFoundError(f"there is no registered device {device_id[:128]!r}")
    return row


def _add(
    session: Session,
    request: RegistrationRequest,
    groups: Sequence[str],
    region: str | None,
    maker: str,
    now: float,
    invite_id: int | None = None,
) -> RegistrationRow:
    """Write a registration down.

    Raises:
        ConflictError: the device has one.
    """
    row = RegistrationRow(
        device_id=request.device_id,
        groups=sorted(set(groups)),
        region=region,
        registered_at=now,
        registered_by=maker,
        changed_at=now,
        invite_id=invite_id,
        request_digest=None if request.request_id is None else digest(request.request_id),
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise _taken(request.device_id) from error
    return row


def _invite_of(session: Session, code: str) -> InviteRow:
    row = session.scalars(select(InviteRow).where(InviteRow.digest == digest(code))).one_or_none()
    if row is None:
        raise PermissionDeniedError("this enrolment code is not known here: is it for another hub?")
    return row


def _usable(now: float) -> tuple[Any, ...]:
    return InviteRow.uses_left > 0, InviteRow.revoked_at.is_(None), InviteRow.expires_at > now


def _is_live(row: InviteRow, now: float) -> bool:
    return row.revoked_at is None and row.expires_at > now


def _spend(session: Session, row: InviteRow, now: float) -> None:
    """Spend one use, in one conditional statement, so that two devices cannot both have the last one."""
    one = update(InviteRow).where(InviteRow.id == row.id, *_usable(now))
    spent: Any = session.execute(one.values(uses_left=InviteRow.uses_left - 1))
    if spent.rowcount != 1:
        session.refresh(row)
        raise _refusal(row, now)


def _refusal(row: InviteRow, now: float) -> PermissionDeniedError:
    if row.revoked_at is not None:
        return PermissionDeniedError("this enrolment code was revoked: ask for a new one")
    if row.expires_at <= now:
        return PermissionDeniedError("this enrolment code has expired: ask for a new one")
    return PermissionDeniedError("this enrolment code is used up: ask for a new one")


def _asks_again(row: RegistrationRow, invite: InviteRow, request: RegistrationRequest) -> bool:
    """Tell whether this is the very request that made the registration: its answer was lost."""
    if request.request_id is None or row.request_digest is None:
        return False
    return row.invite_id == invite.id and row.request_digest == digest(request.request_id)


def _invite(row: InviteRow) -> Invite:
    return Invite(
        id=f"i{row.id}",
        groups=tuple(row.groups),
        region=row.region,
        uses=row.uses,
        uses_left=row.uses_left,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
