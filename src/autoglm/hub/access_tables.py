"""The tables of people and registrations: who was let in, by whom, and what was done.

Secrets are here as SHA-256 hashes only.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from autoglm.hub.tables import Base


class AccessRevisionRow(Base):
    """One row whose number grows whenever a token or a device's claims are taken back or changed."""

    __tablename__ = "access_revision"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)


class InviteRow(Base):
    """An enrolment code: what it gives, how often, and until when."""

    __tablename__ = "invites"
    __table_args__ = (CheckConstraint("uses_left >= 0 AND uses_left <= uses", name="uses"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    groups: Mapped[list[str]] = mapped_column(JSON)
    region: Mapped[str | None]
    uses: Mapped[int]
    uses_left: Mapped[int]
    created_at: Mapped[float]
    created_by: Mapped[str]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]


class RegistrationRow(Base):
    """A registered device and its claims; they are looked up here, not in its token, so they can change."""

    __tablename__ = "registrations"
    __table_args__ = (Index(None, "region"),)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    groups: Mapped[list[str]] = mapped_column(JSON)
    region: Mapped[str | None]
    registered_at: Mapped[float]
    registered_by: Mapped[str]
    changed_at: Mapped[float]
    invite_id: Mapped[int | None] = mapped_column(ForeignKey("invites.id"))
    request_digest: Mapped[str | None]


class AuditRow(Base):
    """One act. The database refuses to change or remove a row; ``hash`` chains it to the one before."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "act", "id"), Index(None, "actor", "id"))
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[float]
    actor: Mapped[str]
    role: Mapped[str]
    act: Mapped[str]
    subject: Mapped[str]
    details: Mapped[str] = mapped_column(Text)
    address: Mapped[str | None]
    previous: Mapped[str]
    hash: Mapped[str]


class AuditHeadRow(Base):
    """One row that says how long the audit log is and what its last hash is."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str]
