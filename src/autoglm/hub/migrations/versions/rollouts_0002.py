"""Give roll-outs stages, states and a log; count devices by their offers; remember what devices ran when.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OLD_STATES = "state IN ('active', 'paused', 'aborted')"
_NEW_STATES = "state IN ('active', 'paused', 'halted', 'aborted', 'done')"

# A device's newest final result, as it was counted until now.
_FINAL = """
    SELECT {column} FROM events
    WHERE events.rollout_id = offers.rollout_id AND events.device_id = offers.device_id
      AND (events.result = 'fail' OR (events.result = 'ok' AND events.state = 'CONFIRMED'))
    ORDER BY events.seq DESC LIMIT 1
"""


def upgrade() -> None:
    """Add columns and tables, and fill them from what is there."""
    _allow_states()
    _extend_rollouts()
    _extend_offers()
    _make_logs()


def _allow_states() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_rollouts_state"), "rollouts", type_="check")
        op.create_check_constraint(op.f("ck_rollouts_state"), "rollouts", _NEW_STATES)
        return
    # Other tables refer to this one, so it cannot be made anew within the transaction. Changing the text of
    # a CHECK in the schema is what SQLite's documentation of ALTER TABLE describes for this.
    version = op.get_bind().exec_driver_sql("PRAGMA schema_version").scalar_one()
    op.execute("PRAGMA writable_schema = ON")
    op.get_bind().exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'rollouts'",
        (_OLD_STATES, _NEW_STATES),
    )
    op.execute(f"PRAGMA schema_version = {version + 1}")
    op.execute("PRAGMA writable_schema = RESET")


def _extend_rollouts() -> None:
    for column in (
        sa.Column("from_versions", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("stages", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("stage", sa.Integer(), server_default="0", nullable=False),
        sa.Column("stage_at", sa.Double(), server_default="0", nullable=False),
        sa.Column("soak_s", sa.Double(), server_default="86400", nullable=False),
        sa.Column("threshold", sa.Double(), server_default="0.02", nullable=False),
        sa.Column("judged_from", sa.Double(), server_default="0", nullable=False),
        sa.Column("silent_from", sa.Double(), server_default="0", nullable=False),
        sa.Column("rollback_of", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
    ):
        op.add_column("rollouts", column)
    op.execute("UPDATE rollouts SET stage_at = created_at")


def _extend_offers() -> None:
    for column in (
        sa.Column("first_offered_at", sa.Double(), server_default="0", nullable=False),
        sa.Column("heard_at", sa.Double(), server_default="0", nullable=False),
        sa.Column("began_at", sa.Double(), nullable=True),
        sa.Column("result", sa.String(), nullable=True),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("result_seq", sa.BigInteger(), server_default="-1", nullable=False),
        sa.Column("result_at", sa.Double(), nullable=True),
        sa.Column("compared", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worse", sa.Integer(), server_default="0", nullable=False),
    ):
        op.add_column("offers", column)
    op.execute("UPDATE offers SET first_offered_at = offered_at, heard_at = offered_at")
    for column, source in (("result", "result"), ("code", "code"), ("result_at", "received_at")):
        op.execute(f"UPDATE offers SET {column} = ({_FINAL.format(column=f'events.{source}')})")
    op.execute(f"UPDATE offers SET result_seq = coalesce(({_FINAL.format(column='events.seq')}), -1)")
    op.execute(
        "UPDATE offers SET began_at = (SELECT min(events.received_at) FROM events WHERE"
        " events.rollout_id = offers.rollout_id AND events.device_id = offers.device_id)"
    )
    op.create_index(
        op.f("ix_offers_rollout_id_result_result_at"), "offers", ["rollout_id", "result", "result_at"]
    )
    op.create_index(
        op.f("ix_offers_rollout_id_compared_worse"), "offers", ["rollout_id", "compared", "worse"]
    )


def _make_logs() -> None:
    op.create_table(
        "rollout_log",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("act", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("basis_points", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_rollout_log_rollout_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout_log")),
    )
    op.create_index(op.f("ix_rollout_log_rollout_id_at"), "rollout_log", ["rollout_id", "at"])
    op.create_table(
        "device_versions",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("variant", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_versions")),
    )
    op.create_index(
        op.f("ix_device_versions_model_variant_device_id_at"),
        "device_versions",
        ["model", "variant", "device_id", "at"],
    )
    # All that is known of before: what was made, as it stands, and what each device runs since it was seen.
    op.execute(
        "INSERT INTO rollout_log (rollout_id, at, by, act, state, stage, basis_points)"
        " SELECT id, changed_at, 'unknown', 'found', state, 0, basis_points FROM rollouts"
    )
    op.execute(
        "INSERT INTO device_versions (model, variant, device_id, version, at)"
        " SELECT model, variant, device_id, version, seen_at FROM devices"
    )


def downgrade() -> None:
    """Drop what was added; the wider CHECK of states stays, and does no harm."""
    op.drop_table("device_versions")
    op.drop_table("rollout_log")
    op.drop_index(op.f("ix_offers_rollout_id_compared_worse"), "offers")
    op.drop_index(op.f("ix_offers_rollout_id_result_result_at"), "offers")
    for column in ("worse", "compared", "result_at", "result_seq", "code", "result", "began_at", "heard_at"):
        op.drop_column("offers", column)
    op.drop_column("offers", "first_offered_at")
    for column in (
        "reason",
        "rollback_of",
        "silent_from",
        "judged_from",
        "threshold",
        "soak_s",
        "stage_at",
        "stage",
    ):
        op.drop_column("rollouts", column)
    op.drop_column("rollouts", "stages")
    op.drop_column("rollouts", "from_versions")
