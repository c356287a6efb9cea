"""The tables of the store, as SQLAlchemy sees them.

The migrations in ``profiles/migrations`` build exactly this; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Root of the schema."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}


class ArtifactRow(Base):
    """A deployable file, by content and by what it stands for.

    Two variants may come out as the same bytes; both are listed, and measured once.
    """

    __tablename__ = "artifact"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    variant: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(index=True)
    format: Mapped[str]
    size_bytes: Mapped[int]
    io: Mapped[dict[str, Any]]
    dtype: Mapped[str]
    recipe_key: Mapped[str]
    parent: Mapped[str]
    toolchain: Mapped[dict[str, Any]]
    details: Mapped[dict[str, Any]]
    parity: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class TrialRow(Base):
    """One artifact's part of a visit to a device."""

    __tablename__ = "trial"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    artifact_sha256: Mapped[str] = mapped_column(String(64), index=True)
    device_id: Mapped[str] = mapped_column(index=True)
    transport: Mapped[str]
    runtime: Mapped[str]
    runtime_version: Mapped[str]
    delegates: Mapped[list[str]]
    emulated: Mapped[bool]
    condition: Mapped[dict[str, Any]]
    plan: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    started_utc: Mapped[str]
    # Added to stores that have rows already, which is why these have a default in the database.
    device_serial: Mapped[str] = mapped_column(server_default="unknown")
    device_build: Mapped[str] = mapped_column(server_default="unknown")
    agent: Mapped[str] = mapped_column(server_default="unknown")
    fence: Mapped[int] = mapped_column(server_default="0")

    runs: Mapped[list[RunRow]] = relationship(
        order_by="RunRow.number", cascade="all, delete-orphan"
    )


class RunRow(Base):
    """One fresh process: its raw samples as little-endian int64 nanoseconds."""

    __tablename__ = "run"
    __table_args__ = (UniqueConstraint("trial_key", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_key: Mapped[str] = mapped_column(ForeignKey("trial.key"), index=True)
    number: Mapped[int]
    complete: Mapped[bool]
    warmup_ns: Mapped[bytes] = mapped_column(LargeBinary)
    samples_ns: Mapped[bytes] = mapped_column(LargeBinary)
    load_ns: Mapped[int | None]
    first_ns: Mapped[int | None]
    environment: Mapped[dict[str, Any]]
    finished_utc: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
