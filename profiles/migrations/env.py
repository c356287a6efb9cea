"""Alembic's entry point: the store hands its open connection over."""

from alembic import context

from profiles.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
