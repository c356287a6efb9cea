"""The database of a lab: who holds which device, and what is known of it.

It is in write-ahead mode and opened for each look at it, so what stands for it in a process holds
nothing, may be used from any thread and survives a fork.  It belongs to one host: the expiry of a
lease is on that host's clock.
"""

from __future__ import annotations

import datetime
import functools
import os
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from devices.kernel_lock import NOT_OURS, open_shared
from profiles.errors import DeviceError

BUSY_TIMEOUT_S = 30.0
SCHEMA = 2
_TABLES = (
    """
    CREATE TABLE device (
        serial TEXT PRIMARY KEY,
        id TEXT,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        since_utc TEXT NOT NULL,
        last_seen_utc TEXT,
        facts TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE lease (
        serial TEXT PRIMARY KEY,
        id TEXT NOT NULL,
        fence INTEGER NOT NULL UNIQUE,
        pid INTEGER NOT NULL,
        started INTEGER NOT NULL,  -- of the process, so that its number cannot be another's
        host TEXT NOT NULL,
        user TEXT NOT NULL,
        purpose TEXT NOT NULL,
        by_hand INTEGER NOT NULL,
        since_utc TEXT NOT NULL,
        ends_utc TEXT,
        boot TEXT NOT NULL,  -- whose monotonic clock the next is on
        expires REAL NOT NULL,
        released_utc TEXT
    ) STRICT
    """,
)
#: What leads from each older schema to this one.
_STEPS = {
    0: _TABLES,
    1: (
        "ALTER TABLE lease DROP COLUMN dirty",
        "ALTER TABLE lease ADD COLUMN boot TEXT NOT NULL DEFAULT 'unknown'",
    ),
}


class LabDatabase:
    """The files of a lab.

    Args:
        folder: where they are; made, for its user alone, where there is none.

    Raises:
        DeviceError: if it cannot be used, or was made by a newer edgeloop.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._database = self.folder / "lab.db"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / "locks").mkdir(exist_ok=True)
            _share_as(self.folder / "locks", self.folder)
            os.close(open_shared(self._database))
        except OSError as error:
            raise DeviceError(
                f"the lab's folder {self.folder} cannot be used: {error.strerror}",
                NOT_OURS,
            ) from error
        with self._explained(), closing(self._connect()) as database:
            self._prepare(database)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, locked against other writers until the block ends; undone by an error."""
        with self._explained(), closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database for one look; writers do not hold it up."""
        with self._explained(), closing(self._connect()) as database:
            yield database

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        # A fence that was given out must not be given out again after a power cut.
        database.execute("PRAGMA synchronous = FULL")
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        if self._schema(database) == SCHEMA:
            return
        _write_ahead(database)
        database.execute("BEGIN IMMEDIATE")
        found = self._schema(database)  # again: another process may just have been here
        if found != SCHEMA:
            for statement in (*_STEPS[found], f"PRAGMA user_version = {SCHEMA}"):
                database.execute(statement)
        database.execute("COMMIT")

    def _schema(self, database: sqlite3.Connection) -> int:
        found: int = database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if found > SCHEMA:
            raise DeviceError(
                f"{self._database} has schema {found}, newer than this edgeloop's {SCHEMA}",
                "upgrade edgeloop, or set EDGELOOP_LAB to another folder",
            )
        if found == 0 and tables:
            raise DeviceError(
                f"{self._database} is another program's", "set EDGELOOP_LAB to another folder"
            )
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            hint = "set EDGELOOP_LAB to another folder"
            if "unable to open" in str(error) or "readonly" in str(error):
                hint = NOT_OURS
            elif "locked" in str(error):
                hint = (
                    f"is a process stopped in the middle of writing it? See: fuser {self._database}"
                )
            raise DeviceError(f"{self._database} cannot be used: {error}", hint) from error


def _share_as(folder: Path, above: Path) -> None:
    """Let the group into a folder of ours if it is let into the one above."""
    if above.stat().st_mode & stat.S_IWGRP and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o2770)


def lease_row(database: sqlite3.Connection, serial: str) -> sqlite3.Row | None:
    """The last lease of a device, over or not."""
    row: sqlite3.Row | None = database.execute(
        "SELECT * FROM lease WHERE serial = ?", (serial,)
    ).fetchone()
    return row


@functools.cache
def this_boot() -> str:
    """Which run of which host this is: the one whose monotonic clock is ours.

    *Source*: random(4), ``/proc/sys/kernel/random/boot_id``.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def expired(boot: str, expires: float) -> bool:
    """Whether a lease was not renewed in time, as far as this host's clock can tell."""
    return boot == this_boot() and time.monotonic() >= expires


def elsewhere(boot: str, host: str) -> bool:
    """Whether another host took a lease; a container here has our clock, whatever its name."""
    return boot != this_boot() and host != socket.gethostname()


def utc_now() -> str:
    """Now, for people: to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write_ahead(database: sqlite3.Connection) -> None:
    """Set the journal mode; SQLite does not wait by itself while others do the same."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
