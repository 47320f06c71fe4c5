"""Run the migrations inside the transaction that the caller has begun, so that a crash undoes all of them."""

from alembic import context

from autoglm.hub.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
