"""The store of measurements: one SQLite file per workspace.

Every write is one transaction, in write-ahead mode with a full sync on commit, so a kill at any
moment leaves the rows that were committed and nothing else.  A :class:`Store` may be used by one
thread at a time; several processes may hold one each on the same file, readers never block.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from sqlalchemy import URL, Engine, create_engine, event, inspect, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session, selectinload

from profiles.canonical import digest
from profiles.errors import StaleFence, StoreError
from profiles.findings import Measurement
from profiles.measurements import Siblings, conclude, siblings
from profiles.records import Artifact, Condition, Parity, Plan, Run, Samples, Trial
from profiles.schema import ArtifactRow, RunRow, TrialRow

BUSY_TIMEOUT_S = 30
_LITTLE_ENDIAN_INT64 = np.dtype("<i8")


def trial_key(
    artifact_sha256: str, place: str, runtime: str, condition: Condition, plan: Plan
) -> str:
    """The key under which a trial is measured once: what, where, by what, how, how often.

    ``place`` is where and by what it is measured, see ``devices.inventory.Device.place``.
    """
    return digest(["trial-2", artifact_sha256, place, runtime, condition.requested(), plan])


class Store:
    """Artifacts, trials and their raw samples.

    Args:
        path: the SQLite file; made, with its folder, where there is none, and migrated to the
            current schema where it is older.

    Raises:
        StoreError: if the file is no store, or was written by a newer edgeloop.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the folder of {path} cannot be made: {error.strerror}", "name another workspace"
            ) from error
        # Not written into a URL by hand: a path may hold ? and %.
        url = URL.create("sqlite", database=str(path))
        self._engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(self._engine, "connect", _configure_connection)
        try:
            _migrate(self._engine, path)
        except StoreError:
            self.close()
            raise
        except DatabaseError as error:
            self.close()
            raise StoreError(
                f"{path} cannot be opened as a store: {error.orig}", "name another workspace"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                # The lock comes first: what is read here still holds when it is written.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
                yield session
        except DatabaseError as error:
            raise StoreError(f"{self.path} cannot be written: {error.orig}") from error

    def put_artifact(self, artifact: Artifact, parity: Parity | None = None) -> None:
        """Record an artifact, and its parity where it is known; an earlier record is replaced."""
        row = ArtifactRow(
            sha256=artifact.sha256,
            model=artifact.model,
            variant=artifact.variant,
            role=artifact.role,
            format=artifact.format,
            size_bytes=artifact.size_bytes,
            io=_json(artifact.io),
            dtype=artifact.dtype,
            recipe_key=artifact.recipe_key,
            parent=artifact.parent,
            toolchain=dict(artifact.toolchain),
            details=dict(artifact.details),
            parity=None if parity is None else _json(parity),
        )
        with self._transaction() as session:
            session.merge(row)

    def open_trial(self, trial: Trial) -> Trial:
        """Begin a trial, or take it up again: its runs so far come back with it.

        What the device says of itself (runtime version, condition) is brought up to date.  Runs
        of another unit, OS build, agent or version of the runtime, or with another governor or
        power source, and those of data that was refused, are kept but no longer count as complete:
        a measurement never mixes two.

        Raises:
            StaleFence: if it has been opened under a newer lease than ``trial.fence``; nothing
                is changed.
        """
        refused = False
        with self._transaction() as session:
            row = session.get(TrialRow, trial.key)
            if row is None:
                row = TrialRow(key=trial.key, started_utc=_now(), status="open", reason="")
                session.add(row)
            else:
                _refuse_older(row, trial.fence)
                refused = row.status == "refused"
                if row.status != "accepted":
                    row.status, row.reason = "open", ""
            if refused or _another_setting(row, trial):
                for run in row.runs:
                    run.complete = False
            row.artifact_sha256 = trial.artifact_sha256
            row.device_id = trial.device_id
            row.transport = trial.transport
            row.runtime = trial.runtime
            row.runtime_version = trial.runtime_version
            row.delegates = list(trial.delegates) or row.delegates or []
            row.emulated = trial.emulated
            row.condition = _json(trial.condition)
            row.plan = _json(trial.plan)
            row.device_serial = _known(trial.device_serial, row.device_serial)
            row.device_build = _known(trial.device_build, row.device_build)
            row.agent = trial.agent
            row.fence = trial.fence
            session.flush()
            return _trial(row)

    def add_run(self, key: str, run: Run, fence: int = 0) -> None:
        """Append one run to an open trial; see :meth:`add_runs`."""
        self.add_runs({key: run}, fence)

    def add_runs(self, runs: Mapping[str, Run], fence: int = 0) -> None:
        """Append a run to each of some open trials: to all of them, or to none.

        Args:
            runs: what the device delivered, by the trial's key.
            fence: of the lease under which it was measured.

        Raises:
            StoreError: if there is no such trial, or it is closed, or has that run.
            StaleFence: if the trial has been opened under a newer lease.
        """
        with self._transaction() as session:
            for key, run in runs.items():
                _add_run(session, key, run, fence)

    def close_trial(self, key: str, status: str, reason: str = "", fence: int = 0) -> None:
        """End a trial with a status, one of :class:`profiles.records.Trial`'s, and why.

        Raises:
            StoreError: if there is no such trial.
            StaleFence: if it has been opened under a newer lease than ``fence``.
        """
        with self._transaction() as session:
            row = session.get(TrialRow, key)
            if row is None:
                raise StoreError(f"there is no trial {key[:12]} to close")
            _refuse_older(row, fence)
            row.status, row.reason = status, reason

    def set_aside(self, keys: Sequence[str]) -> None:
        """Begin these trials again, those that there are: their runs are kept, and count no more.

        For trials that belong together: one that is measured again must not stand alone.
        """
        with self._transaction() as session:
            for row in session.scalars(select(TrialRow).where(TrialRow.key.in_(keys))):
                row.status, row.reason = "open", ""
                for run in row.runs:
                    run.complete = False

    def trials(self, keys: Sequence[str] | None = None) -> list[Trial]:
        """The trials with these keys, or all, in the order they were begun."""
        query = (
            select(TrialRow)
            .options(selectinload(TrialRow.runs))
            .order_by(TrialRow.started_utc, TrialRow.key)
        )
        with Session(self._engine) as session:
            rows = session.scalars(query if keys is None else query.where(TrialRow.key.in_(keys)))
            return [_trial(row) for row in rows]

    def artifacts(self) -> list[ArtifactRow]:
        """What is recorded of every artifact, under each of its names."""
        with Session(self._engine) as session:
            return list(session.scalars(select(ArtifactRow)))

    def measurements(self, keys: Sequence[str] | None = None) -> list[Measurement]:
        """What the trials with these keys, or all, say; one for each model, variant and latency.

        An artifact that failed parity is listed too, as ``refused`` and without a latency.
        """
        artifacts = self.artifacts()
        by_sha: dict[str, list[Siblings]] = {}
        for group in siblings(self.trials(keys)):
            sha256 = next(iter(group.values())).artifact_sha256
            by_sha.setdefault(sha256, []).append(group)
        found: list[Measurement] = []
        for row in artifacts:
            parity = None if row.parity is None else Parity.from_json(row.parity)
            groups: Sequence[Siblings] = by_sha.get(row.sha256, [])
            if not groups and keys is None and parity is not None and not parity.passed:
                groups = [{}]
            found += [conclude(group, parity, row) for group in groups]
        return sorted(found, key=lambda m: (m.model, m.device, m.variant, m.format))


def _configure_connection(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _migrate(engine: Engine, path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "profiles:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current not in (None, *(script.revision for script in scripts.walk_revisions())):
            raise StoreError(
                f"{path} has schema {current}, newer than this edgeloop's {head}",
                "upgrade edgeloop, or name another workspace",
            )
        if current is None and (tables := inspect(connection).get_table_names()):
            raise StoreError(
                f"{path} is no store, but a database with {', '.join(tables)}",
                "name another workspace",
            )
        connection.rollback()
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        if current != head:
            # In one transaction, and looked at again in it: another process may be doing the same.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            if MigrationContext.configure(connection).get_current_revision() != head:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            connection.commit()


def _add_run(session: Session, key: str, run: Run, fence: int) -> None:
    row = session.get(TrialRow, key)
    if row is None:
        raise StoreError(f"trial {key[:12]} is not open: a run cannot be added")
    _refuse_older(row, fence)
    if row.status != "open":
        raise StoreError(f"trial {key[:12]} is not open: a run cannot be added")
    mine = select(RunRow.id).where(RunRow.trial_key == key, RunRow.number == run.number)
    if session.scalar(mine) is not None:
        raise StoreError(f"trial {key[:12]} already has run {run.number}")
    row.delegates = list(run.environment.get("delegates", row.delegates))
    session.add(
        RunRow(
            trial_key=key,
            number=run.number,
            complete=run.complete,
            warmup_ns=_blob(run.warmup_ns),
            samples_ns=_blob(run.samples_ns),
            load_ns=run.load_ns,
            first_ns=run.first_ns,
            environment=dict(run.environment),
            details=dict(run.details),
            finished_utc=_now(),
        )
    )


def _refuse_older(row: TrialRow, fence: int) -> None:
    """Whoever held the device before the last who opened this trial has nothing more to say."""
    if fence < row.fence:
        raise StaleFence(
            f"trial {row.key[:12]} belongs to a newer lease of its device"
            f" ({row.fence}, this one is {fence}): the result is rejected",
            "another process measures it now, or has; run again to take up what is missing",
            row.device_id,
            newer=row.fence,
        )


def _another_setting(row: TrialRow, trial: Trial) -> bool:
    """Whether a trial is taken up again where something that decides its numbers has changed.

    What is unknown, then or now, has not been seen to change.
    """
    if not row.runs:
        return False
    pairs = [
        (row.runtime_version, trial.runtime_version),
        (row.condition["governor"], trial.condition.governor),
        (row.condition["power_source"], trial.condition.power_source),
        (row.device_serial, trial.device_serial),
        (row.device_build, trial.device_build),
        (row.agent, trial.agent),
    ]
    return any("unknown" not in pair and pair[0] != pair[1] for pair in pairs)


def _known(now: str, before: str | None) -> str:
    """A visit that could not tell does not undo what an earlier one found."""
    return before if now == "unknown" and before is not None else now


def _trial(row: TrialRow) -> Trial:
    return Trial(
        key=row.key,
        artifact_sha256=row.artifact_sha256,
        device_id=row.device_id,
        transport=row.transport,
        runtime=row.runtime,
        condition=Condition(**row.condition),
        plan=Plan(**row.plan),
        runtime_version=row.runtime_version,
        delegates=tuple(row.delegates),
        emulated=row.emulated,
        status=row.status,
        reason=row.reason,
        runs=tuple(
            Run(
                number=run.number,
                complete=run.complete,
                warmup_ns=_samples(run.warmup_ns),
                samples_ns=_samples(run.samples_ns),
                load_ns=run.load_ns,
                first_ns=run.first_ns,
                environment=run.environment,
                details=run.details,
            )
            for run in row.runs
        ),
        device_serial=row.device_serial,
        device_build=row.device_build,
        agent=row.agent,
        fence=row.fence,
    )


def _json(record: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(record)


def _blob(samples: Samples) -> bytes:
    return np.ascontiguousarray(samples, dtype=_LITTLE_ENDIAN_INT64).tobytes()


def _samples(blob: bytes) -> Samples:
    return np.frombuffer(blob, dtype=_LITTLE_ENDIAN_INT64).astype(np.int64)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
