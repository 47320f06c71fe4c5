"""The hub's tables. The migrations make them; a test holds the two together.

Times are seconds since 1970 as floats, lists are JSON, both the same on every database. No row holds a
path: what lies on disk follows from hashes and folder names.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only where the key's type is exactly INTEGER.
_BIG_KEY = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """Names every constraint by a rule, so that later migrations can name what they change."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class RevisionRow(Base):
    """One row whose number grows with every change that can alter a decision."""

    __tablename__ = "revision"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)


class ReleaseRow(Base):
    """A release; it is there whole or not at all."""

    __tablename__ = "releases"
    __table_args__ = (
        UniqueConstraint("model", "variant", "version"),
        UniqueConstraint("model", "variant", "counter"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    variant: Mapped[str]
    version: Mapped[str]
    counter: Mapped[int] = mapped_column(BigInteger)
    folder: Mapped[str] = mapped_column(unique=True)
    manifest_sha256: Mapped[str] = mapped_column(unique=True)
    manifest: Mapped[bytes]
    created_at: Mapped[float]


class PackageRow(Base):
    """The patch ledger: one row for each pair of releases, ``base_id`` null for a full package."""

    __tablename__ = "packages"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'running', 'stored', 'skipped')", name="state"),
        CheckConstraint("state <> 'stored' OR sha256 IS NOT NULL", name="stored"),
        # NULLs differ from each other in a unique constraint, so full packages need an index of their own.
        Index(
            "uq_packages_full",
            "target_id",
            unique=True,
            sqlite_where=text("base_id IS NULL"),
            postgresql_where=text("base_id IS NULL"),
        ),
        UniqueConstraint("base_id", "target_id"),
        Index(None, "state", "priority", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    base_id: Mapped[int | None] = mapped_column(ForeignKey("releases.id"))
    target_id: Mapped[int] = mapped_column(ForeignKey("releases.id"))
    state: Mapped[str]
    reason: Mapped[str | None]
    priority: Mapped[int]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    worker: Mapped[str | None]
    sha256: Mapped[str | None] = mapped_column(index=True)
    size: Mapped[int | None] = mapped_column(BigInteger)
    header_length: Mapped[int | None] = mapped_column(BigInteger)
    header_sha256: Mapped[str | None]
    seconds: Mapped[float | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    queued_at: Mapped[float]
    finished_at: Mapped[float | None]


class RolloutRow(Base):
    """Who is offered which release."""

    __tablename__ = "rollouts"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'paused', 'aborted')", name="state"),
        CheckConstraint("basis_points BETWEEN 0 AND 10000", name="basis_points"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"), index=True)
    basis_points: Mapped[int]
    salt: Mapped[str]
    groups: Mapped[list[str]] = mapped_column(JSON)
    regions: Mapped[list[str]] = mapped_column(JSON)
    state: Mapped[str]
    created_at: Mapped[float]
    changed_at: Mapped[float]


class DeviceRow(Base):
    """A device as last seen; written behind, in batches."""

    __tablename__ = "devices"
    __table_args__ = (Index(None, "model", "variant", "version"),)
    model: Mapped[str] = mapped_column(primary_key=True)
    variant: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str | None]
    manifest_sha256: Mapped[str | None]
    first_seen_at: Mapped[float]
    seen_at: Mapped[float]
    last_seq: Mapped[int] = mapped_column(BigInteger, default=-1)
    state: Mapped[str | None]
    result: Mapped[str | None]
    code: Mapped[str | None]


class OfferRow(Base):
    """The newest offer of a roll-out to a device; one without a result is a device that never reported."""

    __tablename__ = "offers"
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_id: Mapped[str]
    offered_at: Mapped[float]


class EventRow(Base):
    """What devices reported, each event once.

    The id is unique per device, so that no device can shadow another's events.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("device_id", "event_id"),
        Index(None, "rollout_id", "result", "device_id"),
    )
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    device_id: Mapped[str]
    event_id: Mapped[str]
    seq: Mapped[int] = mapped_column(BigInteger)
    rollout_id: Mapped[int | None] = mapped_column(ForeignKey("rollouts.id"))
    attempt_id: Mapped[str | None]
    from_version: Mapped[str | None]
    to_version: Mapped[str | None]
    state: Mapped[str]
    result: Mapped[str]
    code: Mapped[str | None]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    ms: Mapped[int | None] = mapped_column(BigInteger)
    ts: Mapped[str | None]
    stats: Mapped[dict[str, float]] = mapped_column(JSON)
    received_at: Mapped[float]


class TokenRow(Base):
    """A token's hash and what it proves; the token itself is nowhere in the database."""

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint("role IN ('viewer', 'operator', 'publisher', 'admin', 'device')", name="role"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    role: Mapped[str]
    device_id: Mapped[str | None]
    groups: Mapped[list[str]] = mapped_column(JSON)
    region: Mapped[str | None]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
