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
    """Who is offered which release.

    ``basis_points`` and the groups among ``stages`` up to ``stage`` are whom it reaches now; no stages means
    that it stays as it was made. Results up to ``judged_from`` do not count towards a halt, and devices
    last heard of up to ``silent_from`` not towards a pause: an operator has seen them and gone on.
    """

    __tablename__ = "rollouts"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'paused', 'halted', 'aborted', 'done')", name="state"),
        CheckConstraint("basis_points BETWEEN 0 AND 10000", name="basis_points"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("releases.id"), index=True)
    basis_points: Mapped[int]
    salt: Mapped[str]
    groups: Mapped[list[str]] = mapped_column(JSON)
    regions: Mapped[list[str]] = mapped_column(JSON)
    from_versions: Mapped[list[str]] = mapped_column(JSON, server_default="[]")
    stages: Mapped[list[str]] = mapped_column(JSON, server_default="[]")
    stage: Mapped[int] = mapped_column(server_default="0")
    stage_at: Mapped[float] = mapped_column(server_default="0")
    soak_s: Mapped[float] = mapped_column(server_default="86400")
    threshold: Mapped[float] = mapped_column(server_default="0.02")
    judged_from: Mapped[float] = mapped_column(server_default="0")
    silent_from: Mapped[float] = mapped_column(server_default="0")
    rollback_of: Mapped[int | None]
    state: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[float]
    changed_at: Mapped[float]


class RolloutLogRow(Base):
    """What was done to roll-outs, by whom and why; rows are only ever added."""

    __tablename__ = "rollout_log"
    __table_args__ = (Index(None, "rollout_id", "at"),)
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"))
    at: Mapped[float]
    by: Mapped[str]
    act: Mapped[str]
    state: Mapped[str]
    stage: Mapped[int]
    basis_points: Mapped[int]
    reason: Mapped[str | None]


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


class DeviceVersionRow(Base):
    """What a device ran from when on; a row for each change, and rows are only ever added."""

    __tablename__ = "device_versions"
    __table_args__ = (Index(None, "model", "variant", "device_id", "at"),)
    id: Mapped[int] = mapped_column(_BIG_KEY, primary_key=True)
    model: Mapped[str]
    variant: Mapped[str]
    device_id: Mapped[str]
    version: Mapped[str | None]
    at: Mapped[float]


class OfferRow(Base):
    """A device in a roll-out: what it was offered, and what came of it. It counts once, by this row.

    ``attempt_id`` and ``offered_at`` are of the newest offer, ``heard_at`` of the newest offer or event.
    ``compared`` and ``worse`` are sets of metrics as bits.
    """

    __tablename__ = "offers"
    __table_args__ = (
        Index(None, "rollout_id", "result", "result_at"),
        Index(None, "rollout_id", "compared", "worse"),
    )
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_id: Mapped[str]
    offered_at: Mapped[float]
    first_offered_at: Mapped[float] = mapped_column(server_default="0")
    heard_at: Mapped[float] = mapped_column(server_default="0")
    began_at: Mapped[float | None]
    result: Mapped[str | None]
    code: Mapped[str | None]
    result_seq: Mapped[int] = mapped_column(BigInteger, server_default="-1")
    result_at: Mapped[float | None]
    compared: Mapped[int] = mapped_column(server_default="0")
    worse: Mapped[int] = mapped_column(server_default="0")


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
        Index(None, "name"),
        Index(None, "device_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    role: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSON, server_default=text("'[]'"))
    created_by: Mapped[str] = mapped_column(server_default=text("'local'"))
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    device_id: Mapped[str | None]
    groups: Mapped[list[str]] = mapped_column(JSON)
    region: Mapped[str | None]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class LinkKeyRow(Base):
    """A key that download links are signed with, shared by all hubs on the database; see ``links.py``."""

    __tablename__ = "link_keys"
    key_id: Mapped[str] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    created_at: Mapped[float]


class MetadataRow(Base):
    """A file of signed metadata, where several hubs share them; all but the timestamp never change."""

    __tablename__ = "metadata_files"
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    content: Mapped[bytes]
    written_at: Mapped[float]
