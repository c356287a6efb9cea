"""Who measured: the unit, its OS build, the agent, and the fence of the lease

Revision: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Columns are added in place: a table that is copied takes the runs that refer to it along.
    op.add_column('trial', sa.Column('device_serial', sa.String(), server_default='unknown', nullable=False))
    op.add_column('trial', sa.Column('device_build', sa.String(), server_default='unknown', nullable=False))
    op.add_column('trial', sa.Column('agent', sa.String(), server_default='unknown', nullable=False))
    op.add_column('trial', sa.Column('fence', sa.Integer(), server_default='0', nullable=False))
    # Until then there was one agent for real devices; the serial and the build nobody knows.
    op.execute("UPDATE trial SET agent = 'python' WHERE transport IN ('local', 'ssh')")


def downgrade() -> None:
    for column in ('fence', 'agent', 'device_build', 'device_serial'):
        op.drop_column('trial', column)
