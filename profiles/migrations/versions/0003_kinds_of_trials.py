"""Kinds of trials: what a run has beside its samples

Revision: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('run', sa.Column('details', sa.JSON(), server_default='{}', nullable=False))
    # The high-water mark of a latency run; memory has runs of its own from here on.
    op.execute("UPDATE run SET details = json_object('peak_bytes', peak_bytes) WHERE peak_bytes IS NOT NULL")
    op.drop_column('run', 'peak_bytes')


def downgrade() -> None:
    op.add_column('run', sa.Column('peak_bytes', sa.Integer(), nullable=True))
    op.execute("UPDATE run SET peak_bytes = json_extract(details, '$.peak_bytes')")
    op.drop_column('run', 'details')
