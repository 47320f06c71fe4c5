"""Tokens: made once, shown once, kept only as hashes.

A token is 256 random bits, so its plain SHA-256 cannot be searched back; the database never holds the
token itself. The embedded default keeps one admin token in ``admin.token`` (mode 0600) beside the
database, for the operator of this machine.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from pathlib import Path
from typing import cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from autoglm import files
from autoglm.errors import ConfigError, NotFoundError, StorageError
from autoglm.hub.database import Database
from autoglm.hub.records import ROLES, Claims, Role
from autoglm.hub.tables import TokenRow
from autoglm.releases import is_name

_EMBEDDED = "embedded-admin"
_MAX_TOKEN_LENGTH = 200
_MAX_CACHED = 50_000


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _check_claims(claims: Claims) -> None:
    if claims.role not in ROLES:
        raise ConfigError(f"token: role must be one of {', '.join(ROLES)}")
    if not is_name(claims.name):
        raise ConfigError("token: it needs a name of letters, digits, '.', '_' or '-'")
    for name in (*claims.groups, *([claims.region] if claims.region is not None else [])):
        if not is_name(name):
            raise ConfigError(f"token: {name[:80]!r} is no name for a group or region")


def add_token(session: Session, token: str, claims: Claims, now: float) -> None:
    """Record what a token proves, in the caller's transaction."""
    session.add(
        TokenRow(
            digest=_digest(token),
            name=claims.name,
            role=claims.role,
            device_id=claims.device_id,
            groups=list(claims.groups),
            region=claims.region,
            created_at=now,
        )
    )


def _valid(session: Session, digest: str) -> TokenRow | None:
    live = select(TokenRow).where(TokenRow.digest == digest, TokenRow.revoked_at.is_(None))
    return session.scalars(live).one_or_none()


def ensure_admin_token(database: Database, path: Path, now: float) -> str:
    """Return the embedded admin token; made anew, and the old one revoked, when its file is gone.

    Raises:
        StorageError: the disk or the database refused.
    """
    token = _read(path)
    if token is not None:
        with database.read() as session:
            if _valid(session, _digest(token)) is not None:
                return token
    token = secrets.token_urlsafe(32)
    files.write_durably(path, f"{token}\n".encode(), mode=0o600)
    with database.write() as session:
        _revoke(session, _EMBEDDED, now)
        add_token(session, token, Claims(role="admin", name=_EMBEDDED), now)
    return token


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()[:_MAX_TOKEN_LENGTH] or None
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; run as its owner") from error


def _revoke(session: Session, name: str, now: float) -> int:
    live = (TokenRow.name == name, TokenRow.revoked_at.is_(None))
    rows = session.scalars(select(TokenRow.id).where(*live)).all()
    session.execute(update(TokenRow).where(TokenRow.id.in_(rows)).values(revoked_at=now))
    return len(rows)


class Tokens:
    """The tokens of one hub, with the verified ones remembered until something changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._revision = -1
        self._known: dict[str, Claims] = {}

    def issue(self, claims: Claims, now: float) -> str:
        """Make a token; it is shown this once.

        Raises:
            ConfigError: the claims break a rule.
            StorageError: the database refused.
        """
        _check_claims(claims)
        token = secrets.token_urlsafe(32)
        with self._database.write() as session:
            add_token(session, token, claims, now)
        return token

    def revoke(self, name: str, now: float) -> int:
        """Revoke all tokens of a name, for every process at once.

        Returns:
            How many were live.

        Raises:
            NotFoundError: there is no live token of that name.
            StorageError: the database refused.
        """
        with self._database.write() as session:
            if (count := _revoke(session, name, now)) == 0:
                raise NotFoundError(f"there is no live token named {name[:80]!r}")
            return count

    def verify(self, token: str, revision: int) -> Claims | None:
        """Return what a token proves, None for an unknown, malformed or revoked one.

        Args:
            token: as the bearer sent it.
            revision: the database's of now; what was remembered under an older one is forgotten.

        Raises:
            StorageError: the database refused.
        """
        if not token or len(token) > _MAX_TOKEN_LENGTH or not token.isascii():
            return None
        digest = _digest(token)
        with self._lock:
            if revision != self._revision:
                self._known, self._revision = {}, revision
            known = self._known
        if (claims := known.get(digest)) is not None:
            return claims
        with self._database.read() as session:
            row = _valid(session, digest)
            if row is None:
                return None
            claims = Claims(cast("Role", row.role), row.name, row.device_id, tuple(row.groups), row.region)
        if len(known) < _MAX_CACHED:
            known[digest] = claims
        return claims
