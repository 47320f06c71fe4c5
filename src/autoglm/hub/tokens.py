"""Tokens: made once, shown once, kept only as hashes.

A token is 256 random bits, so its plain SHA-256 cannot be searched back; the database never holds the
token itself. The embedded default keeps one admin token in ``admin.token`` (mode 0600) beside the
database, for the operator of this machine.

What it guarantees: no token does more, or lives longer, than the one that made it; a revoked one proves
nothing from the next request on, in other processes as soon as they notice changes of the database; a
device's groups and region are those of its registration, where it has one, whatever its token was made with.
"""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from autoglm import files
from autoglm.errors import ConfigError, ConflictError, NotFoundError, PermissionDeniedError, StorageError
from autoglm.hub.access_tables import AccessRevisionRow, RegistrationRow
from autoglm.hub.audit import HUB, LOCAL, Actor, audit
from autoglm.hub.behind import WriteBehind
from autoglm.hub.credentials import digest, is_token, new_token
from autoglm.hub.database import Database
from autoglm.hub.permissions import granted
from autoglm.hub.records import ROLES, Claims, Role
from autoglm.hub.tables import TokenRow
from autoglm.releases import is_device_id, is_name

EMBEDDED_ADMIN = "embedded-admin"
REGISTERED = "registered"
"""The name of every token that a registration gives."""
MAX_PAGE = 1000
_MAX_TOKEN_LENGTH = 200
_MAX_CACHED = 50_000
_USED_EVERY_S, _DEVICE_USED_EVERY_S = 60.0, 3600.0
_ID = re.compile(r"t([1-9][0-9]{0,8})")  # no id that the database could not hold
# What stands for something else in the audit log, in lists, or where a token is revoked.
_RESERVED = re.compile(rf"local|hub|guard|unknown|service|{REGISTERED}|[it][0-9]+", re.IGNORECASE)

Fault = Literal["malformed", "unknown", "revoked", "expired"]


@dataclass(frozen=True)
class TokenRecord:
    """A token as it is listed: all but the token.

    Attributes:
        id: such as ``t3``.
        name: whom or what it was made for.
        role, scopes: what it may do.
        device_id, groups, region: of a device's token.
        created_at, created_by: when, and who made it.
        expires_at, revoked_at, last_used_at: seconds since 1970; None for never.
    """

    id: str
    name: str
    role: str
    scopes: tuple[str, ...]
    device_id: str | None
    groups: tuple[str, ...]
    region: str | None
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the token as the admin API shows it."""
        return vars(self) | {"scopes": list(self.scopes), "groups": list(self.groups)}


def check_claims(claims: Claims) -> None:
    """See that claims follow the rules.

    Raises:
        ConfigError: they do not.
    """
    if claims.role not in ROLES:
        raise ConfigError(f"token: role must be one of {', '.join(ROLES)}")
    if not is_name(claims.name):
        raise ConfigError("token: it needs a name of letters, digits, '.', '_' or '-'")
    if _RESERVED.fullmatch(claims.name):
        raise ConfigError(f"token: the name {claims.name!r} means something else here: take another")
    check_places(claims.groups, claims.region)
    if claims.role != "device" and (claims.device_id or claims.groups or claims.region):
        raise ConfigError(f"token: only a device has an id, groups and a region, a {claims.role} has none")
    if claims.role == "device" and claims.device_id is None:
        raise ConfigError("token: one of the role device is for one device: give its device_id (--device-id)")
    if claims.device_id is not None and not is_device_id(claims.device_id):
        raise ConfigError("token: device_id must be 1 to 128 letters, digits, '.', '_', ':', '@' or '-'")
    if beyond := sorted(set(claims.scopes) - granted(claims.role)):
        allowed = ", ".join(sorted(granted(claims.role)))
        raise ConfigError(f"token: the role {claims.role} has no {beyond[0][:40]!r}; it has {allowed}")


def check_places(groups: Sequence[str], region: str | None) -> None:
    """See that groups and a region are names.

    Raises:
        ConfigError: they are not.
    """
    for name in (*groups, *([region] if region is not None else [])):
        if not is_name(name):
            raise ConfigError(f"token: {str(name)[:80]!r} is no name for a group or region")


def _check_maker(claims: Claims, maker: Actor) -> None:
    """See that nobody makes a token that may do more, or lives longer, than the own one.

    Raises:
        PermissionDeniedError: it would.
    """
    own = maker.claims
    if own is None:
        return
    if beyond := sorted(claims.permissions - own.permissions):
        raise PermissionDeniedError(f"your token lacks {beyond[0]}, so it cannot make one that has it")
    if own.expires_at is not None and (claims.expires_at is None or claims.expires_at > own.expires_at):
        raise PermissionDeniedError("your token expires before the one it should make: ask for less time")


def add_token(session: Session, token: str, claims: Claims, now: float, maker: str = "local") -> TokenRow:
    """Record what a token proves, in the caller's transaction."""
    row = TokenRow(
        digest=digest(token),
        name=claims.name,
        role=claims.role,
        device_id=claims.device_id,
        groups=list(claims.groups),
        region=claims.region,
        created_at=now,
        scopes=list(claims.scopes),
        created_by=maker,
        expires_at=claims.expires_at,
    )
    session.add(row)
    session.flush()
    return row


def withdraw(session: Session) -> None:
    """Let every process of this hub forget what it remembers of tokens and claims."""
    session.execute(update(AccessRevisionRow).values(number=AccessRevisionRow.number + 1))


def revoke_rows(session: Session, now: float, *which: Any) -> list[int]:
    """Revoke the live tokens that fit, in the caller's transaction; return their keys."""
    keys = session.scalars(select(TokenRow.id).where(TokenRow.revoked_at.is_(None), *which)).all()
    if keys:
        session.execute(update(TokenRow).where(TokenRow.revoked_at.is_(None), *which).values(revoked_at=now))
        withdraw(session)
    return list(keys)


def ensure_admin_token(database: Database, path: Path, now: float, *, name: str = EMBEDDED_ADMIN) -> str:
    """Return the embedded admin token; made anew, and the old one revoked, when its file is gone.

    Raises:
        StorageError: the disk or the database refused.
    """
    token = _read(path)
    if token is not None:
        with database.read() as session:
            live = (TokenRow.digest == digest(token), TokenRow.revoked_at.is_(None))
            if session.scalars(select(TokenRow.id).where(*live)).first() is not None:
                return token
    token = new_token()
    files.write_durably(path, f"{token}\n".encode(), mode=0o600)
    with database.write() as session:
        revoke_rows(session, now, TokenRow.name == name)
        row = add_token(session, token, Claims(role="admin", name=name), now, HUB.name)
        audit(session, HUB, "token.create", f"t{row.id}", {"name": name, "role": "admin"}, at=now)
    return token


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()[:_MAX_TOKEN_LENGTH] or None
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; run as its owner") from error


@dataclass
class _Known:
    """A verified token, and when its last use was noted."""

    key: int
    claims: Claims
    noted_at: float = 0.0


class Tokens:
    """The tokens of one hub, with the verified ones remembered until something is taken back."""

    def __init__(
        self, database: Database, behind: WriteBehind, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._behind, self._clock = database, behind, clock
        self._lock = threading.Lock()
        self._revision = self._access_revision = -1
        self._known: dict[str, _Known] = {}

    def create(self, claims: Claims, actor: Actor = LOCAL) -> tuple[str, TokenRecord]:
        """Make a token.

        Returns:
            The token, which is shown this once, and what is kept of it.

        Raises:
            ConfigError: the claims break a rule.
            PermissionDeniedError: it could do more, or would live longer, than the actor's own.
            StorageError: the database refused.
        """
        check_claims(claims)
        _check_maker(claims, actor)
        token, now = new_token(), self._clock()
        with self._database.write(decides=False) as session:
            record = _record(add_token(session, token, claims, now, actor.name))
            kept = {key: value for key, value in record.to_json().items() if value not in (None, [])}
            audit(session, actor, "token.create", record.id, kept, at=now)
        return token, record

    def revoke(self, name: str, actor: Actor = LOCAL) -> int:
        """Revoke all tokens of a name, or the one of an id such as ``t3``, for every process at once.

        Returns:
            How many were live.

        Raises:
            ConflictError: it is the name that the tokens of all registered devices have.
            NotFoundError: there is no such live token.
            StorageError: the database refused.
        """
        if name == REGISTERED:
            raise ConflictError(
                "all registered devices have tokens of that name: revoke one by its id, or forget its device"
            )
        match, now = _ID.fullmatch(name), self._clock()
        which = TokenRow.id == int(match[1]) if match else TokenRow.name == name
        with self._database.write() as session:
            if not (keys := revoke_rows(session, now, which)):
                raise NotFoundError(f"there is no live token named {name[:80]!r}")
            details = {"tokens": [f"t{key}" for key in keys[:100]], "count": len(keys)}
            audit(session, actor, "token.revoke", name, details, at=now)
            return len(keys)

    def list(
        self,
        *,
        role: Role | None = None,
        device_id: str | None = None,
        live: bool = False,
        after: int = 0,
        limit: int = 100,
    ) -> list[TokenRecord]:
        """Return tokens, oldest first.

        Args:
            role: only of this role.
            device_id: only of this device.
            live: only those that prove something now.
            after: only those with a higher number in their id, for the next page.
            limit: at most this many, 1 to 1,000.

        Raises:
            StorageError: the database refused.
        """
        wanted = select(TokenRow).where(TokenRow.id > after).order_by(TokenRow.id)
        if role is not None:
            wanted = wanted.where(TokenRow.role == role)
        if device_id is not None:
            wanted = wanted.where(TokenRow.device_id == device_id)
        if live:
            lasting = TokenRow.expires_at.is_(None) | (TokenRow.expires_at > self._clock())
            wanted = wanted.where(TokenRow.revoked_at.is_(None), lasting)
        with self._database.read() as session:
            rows = session.scalars(wanted.limit(max(1, min(limit, MAX_PAGE))))
            return [_record(row) for row in rows]

    def verify(self, token: str, revision: int) -> Claims | None:
        """Return what a token proves, None for an unknown, malformed, expired or revoked one.

        Args:
            token: as the bearer sent it.
            revision: the database's of now; under a new one it is asked whether something was taken back.

        Raises:
            StorageError: the database refused.
        """
        if len(token) > _MAX_TOKEN_LENGTH or not token.isascii():
            return None
        hashed, known, now = digest(token), self._remembered(revision), self._clock()
        if (found := known.get(hashed)) is None:
            found = self._find(hashed) if is_token(token) else None
            if found is None:
                return None
            if len(known) < _MAX_CACHED:
                known[hashed] = found
        if found.claims.expires_at is not None and found.claims.expires_at <= now:
            return None
        self._note(found, now)
        return found.claims

    def fault(self, token: str) -> Fault:
        """Say why a token that proves nothing does so. Only its bearer learns whether it ever was one.

        Raises:
            StorageError: the database refused.
        """
        if len(token) > _MAX_TOKEN_LENGTH or not is_token(token):
            return "malformed"
        with self._database.read() as session:
            row = session.scalars(select(TokenRow).where(TokenRow.digest == digest(token))).one_or_none()
            if row is None:
                return "unknown"
            return "expired" if row.revoked_at is None else "revoked"

    def _remembered(self, revision: int) -> dict[str, _Known]:
        """Return what is remembered, all forgotten once something was taken back."""
        with self._lock:
            if revision != self._revision:
                with self._database.read() as session:
                    number = session.scalars(select(AccessRevisionRow.number)).one()
                if number != self._access_revision:
                    self._known, self._access_revision = {}, number
                self._revision = revision
            return self._known

    def _find(self, hashed: str) -> _Known | None:
        found = (
            select(TokenRow, RegistrationRow)
            .outerjoin(RegistrationRow, RegistrationRow.device_id == TokenRow.device_id)
            .where(TokenRow.digest == hashed, TokenRow.revoked_at.is_(None))
        )
        with self._database.read() as session:
            row = session.execute(found).one_or_none()
            if row is None or not hmac.compare_digest(row[0].digest, hashed):
                return None
            return _Known(row[0].id, token_claims(row[0], row[1]))

    def _note(self, known: _Known, now: float) -> None:
        every = _DEVICE_USED_EVERY_S if known.claims.role == "device" else _USED_EVERY_S
        if now - known.noted_at >= every:
            known.noted_at = now
            self._behind.used(known.key, now)


def token_claims(row: TokenRow, registration: RegistrationRow | None) -> Claims:
    places = row if registration is None else registration
    return Claims(
        role=cast("Role", row.role),
        name=row.name,
        device_id=row.device_id,
        groups=tuple(places.groups),
        region=places.region,
        scopes=tuple(row.scopes),
        expires_at=row.expires_at,
    )


def _record(row: TokenRow) -> TokenRecord:
    return TokenRecord(
        id=f"t{row.id}",
        name=row.name,
        role=row.role,
        scopes=tuple(row.scopes),
        device_id=row.device_id,
        groups=tuple(row.groups),
        region=row.region,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
