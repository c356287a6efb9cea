"""Artifacts, trials and runs

Revision: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('artifact',
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('model', sa.String(), nullable=False),
    sa.Column('variant', sa.String(), nullable=False),
    sa.Column('role', sa.String(), nullable=False),
    sa.Column('format', sa.String(), nullable=False),
    sa.Column('size_bytes', sa.Integer(), nullable=False),
    sa.Column('io', sa.JSON(), nullable=False),
    sa.Column('dtype', sa.String(), nullable=False),
    sa.Column('recipe_key', sa.String(), nullable=False),
    sa.Column('parent', sa.String(), nullable=False),
    sa.Column('toolchain', sa.JSON(), nullable=False),
    sa.Column('details', sa.JSON(), nullable=False),
    sa.Column('parity', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('sha256', 'model', 'variant')
    )
    with op.batch_alter_table('artifact', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_artifact_role'), ['role'], unique=False)

    op.create_table('trial',
    sa.Column('key', sa.String(length=64), nullable=False),
    sa.Column('artifact_sha256', sa.String(length=64), nullable=False),
    sa.Column('device_id', sa.String(), nullable=False),
    sa.Column('transport', sa.String(), nullable=False),
    sa.Column('runtime', sa.String(), nullable=False),
    sa.Column('runtime_version', sa.String(), nullable=False),
    sa.Column('delegates', sa.JSON(), nullable=False),
    sa.Column('emulated', sa.Boolean(), nullable=False),
    sa.Column('condition', sa.JSON(), nullable=False),
    sa.Column('plan', sa.JSON(), nullable=False),
    sa.Column('status', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=False),
    sa.Column('started_utc', sa.String(), nullable=False),
    sa.PrimaryKeyConstraint('key')
    )
    with op.batch_alter_table('trial', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_trial_artifact_sha256'), ['artifact_sha256'], unique=False)
        batch_op.create_index(batch_op.f('ix_trial_device_id'), ['device_id'], unique=False)
        batch_op.create_index(batch_op.f('ix_trial_status'), ['status'], unique=False)

    op.create_table('run',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('trial_key', sa.String(length=64), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('complete', sa.Boolean(), nullable=False),
    sa.Column('warmup_ns', sa.LargeBinary(), nullable=False),
    sa.Column('samples_ns', sa.LargeBinary(), nullable=False),
    sa.Column('load_ns', sa.Integer(), nullable=True),
    sa.Column('first_ns', sa.Integer(), nullable=True),
    sa.Column('peak_bytes', sa.Integer(), nullable=True),
    sa.Column('environment', sa.JSON(), nullable=False),
    sa.Column('finished_utc', sa.String(), nullable=False),
    sa.ForeignKeyConstraint(['trial_key'], ['trial.key'], ),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('trial_key', 'number')
    )
    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_run_trial_key'), ['trial_key'], unique=False)



def downgrade() -> None:
    with op.batch_alter_table('run', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_run_trial_key'))

    op.drop_table('run')
    with op.batch_alter_table('trial', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_trial_status'))
        batch_op.drop_index(batch_op.f('ix_trial_device_id'))
        batch_op.drop_index(batch_op.f('ix_trial_artifact_sha256'))

    op.drop_table('trial')
    with op.batch_alter_table('artifact', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_artifact_role'))

    op.drop_table('artifact')
