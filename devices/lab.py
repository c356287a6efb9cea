"""What a host knows of the devices whose cables it owns: one folder, one small database.

The folder is ``$EDGELOOP_LAB``, else ``~/.local/state/edgeloop``: one that a login, cron and a
service have in common.  It is its user's own.  Several users of one host share a lab by setting
``EDGELOOP_LAB`` to a folder of a group they are all in::

    install -d -m 2770 -g lab /srv/edgeloop

Hosts do not share one: where home folders are on a network, each host's ``EDGELOOP_LAB`` is a
folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from devices.kernel_lock import held
from devices.lab_database import LabDatabase, elsewhere, expired, lease_row, utc_now
from profiles.errors import DeviceError


class DeviceState(StrEnum):
    """What a device is up to; ``leased`` is never stored, but seen by its holder being alive."""

    ABSENT = "absent"
    PREPARING = "preparing"
    READY = "ready"
    LEASED = "leased"
    COOLING = "cooling"
    QUARANTINED = "quarantined"


_PRESENT = {DeviceState.PREPARING, DeviceState.READY, DeviceState.COOLING}
#: From each state to those that may follow.  Out of quarantine only a person lets a device, and
#: nothing cools or is ready that has not been looked at.
TRANSITIONS: Mapping[DeviceState, frozenset[DeviceState]] = {
    DeviceState.ABSENT: frozenset({DeviceState.PREPARING, DeviceState.QUARANTINED}),
    **{
        state: frozenset({*_PRESENT, DeviceState.ABSENT, DeviceState.QUARANTINED}) - {state}
        for state in _PRESENT
    },
    DeviceState.QUARANTINED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device as the lab remembers it.

    Args:
        serial: of the hardware.
        id: the name it had when it was last seen; ``None`` if that is another's now.
        state: what it is up to, at the time of asking.
        reason: why, or empty.
        since_utc: when the stored state began.
        last_seen_utc: when it last answered, or ``None``.
        facts: what it told of itself then.
    """

    serial: str
    id: str | None
    state: DeviceState
    reason: str
    since_utc: str
    last_seen_utc: str | None
    facts: Mapping[str, Any]


def lab_folder() -> Path:
    """``$EDGELOOP_LAB``, else ``~/.local/state/edgeloop``."""
    given = os.environ.get("EDGELOOP_LAB")
    return Path(given) if given else Path.home() / ".local" / "state" / "edgeloop"


class Lab(LabDatabase):
    """The devices of this host, and who holds them.

    Args:
        folder: where its files are, if not in :func:`lab_folder`; made, for its user alone,
            where there is none.

    Raises:
        DeviceError: if it cannot be used, or was made by a newer edgeloop.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder or lab_folder())

    def lock_path(self, serial: str) -> Path:
        """The file whose lock is the lease of a device; a serial may hold any characters."""
        readable = re.sub(r"[^A-Za-z0-9-]+", "_", serial)[:60]
        return self.folder / "locks" / f"{readable}-{hashlib.sha256(serial.encode()).hexdigest()}"

    def remember(self, device_id: str, serial: str, facts: Mapping[str, Any]) -> None:
        """Note that a device has answered under this id; the id is no other device's any more."""
        with self.transaction() as database:
            database.execute(
                "UPDATE device SET id = NULL WHERE id = ? AND serial != ?", (device_id, serial)
            )
            row = self._row(database, serial)
            now = utc_now()
            if row is None:
                database.execute(
                    "INSERT INTO device VALUES (?, ?, 'preparing', '', ?, ?, ?)",
                    (serial, device_id, now, now, json.dumps(facts)),
                )
                return
            database.execute(
                "UPDATE device SET id = ?, last_seen_utc = ?, facts = ? WHERE serial = ?",
                (device_id, now, json.dumps(facts), serial),
            )
            if row["state"] == DeviceState.ABSENT:
                self._write(database, serial, DeviceState.PREPARING, "it answers again")

    def serial_of(self, device_id: str) -> str | None:
        """The hardware last seen under an id; to be checked, once connected, against its own."""
        with self.reading() as database:
            row = database.execute("SELECT serial FROM device WHERE id = ?", (device_id,))
            found = row.fetchone()
        return None if found is None else str(found["serial"])

    def set_state(self, serial: str, state: DeviceState, reason: str = "") -> None:
        """Note what a device is up to; the same state again only changes the reason.

        Raises:
            DeviceError: if that cannot follow its present state, or the device is unknown.
            ValueError: for ``leased``, which is seen and not stored.
        """
        if state is DeviceState.LEASED:
            raise ValueError("a device is leased by a lease, not by saying so")
        with self.transaction() as database:
            row = self._known(database, serial)
            before = DeviceState(row["state"])
            if state is not before and state not in TRANSITIONS[before]:
                raise DeviceError(
                    f"a device that is {before} cannot become {state}",
                    _remedy(before, row["id"] or serial),
                    row["id"] or serial,
                )
            self._write(database, serial, state, reason)

    def quarantine(self, serial: str, reason: str) -> None:
        """Take a device out of use until a person lets it back.

        Raises:
            DeviceError: if the device is unknown.
        """
        self.set_state(serial, DeviceState.QUARANTINED, reason)

    def release_quarantine(self, serial: str) -> None:
        """Let a device back; it is looked at anew before it is used.

        Raises:
            DeviceError: if it is not in quarantine.
        """
        with self.transaction() as database:
            row = self._known(database, serial)
            if row["state"] != DeviceState.QUARANTINED:
                raise DeviceError("it is not in quarantine", device=row["id"] or serial)
            self._write(database, serial, DeviceState.PREPARING, "released from quarantine")

    def state_of(self, serial: str) -> DeviceState:
        """What a device is up to now; one that nobody has seen is ``absent``."""
        with self.reading() as database:
            row = self._row(database, serial)
            return self._state(database, serial, None if row is None else row["state"])

    def devices(self) -> list[KnownDevice]:
        """All devices that were ever seen here, by id and serial."""
        with self.reading() as database:
            rows = database.execute("SELECT * FROM device ORDER BY id IS NULL, id, serial")
            return [
                KnownDevice(
                    serial=row["serial"],
                    id=row["id"],
                    state=self._state(database, row["serial"], row["state"]),
                    reason=row["reason"],
                    since_utc=row["since_utc"],
                    last_seen_utc=row["last_seen_utc"],
                    facts=json.loads(row["facts"]),
                )
                for row in rows.fetchall()
            ]

    def has_holder(self, lease: sqlite3.Row) -> bool:
        """Whether who took a lease has not given it back and lives.

        Of another host's holder nothing is known here, whose locks need not be seen either: it
        counts as alive.
        """
        return not lease["released_utc"] and (
            elsewhere(lease["boot"], lease["host"]) or held(self.lock_path(lease["serial"]))
        )

    def refuse_quarantined(self, database: sqlite3.Connection, serial: str) -> None:
        """Nobody works with a device in quarantine.

        Raises:
            DeviceError: with the reason, and what ends it.
        """
        row = self._row(database, serial)
        if row is not None and row["state"] == DeviceState.QUARANTINED:
            name = row["id"] or serial
            raise DeviceError(
                f"in quarantine since {row['since_utc']}: {row['reason']}",
                _remedy(DeviceState.QUARANTINED, name),
                name,
            )

    def _state(self, database: sqlite3.Connection, serial: str, stored: str | None) -> DeviceState:
        row = lease_row(database, serial)
        if row is not None and self.has_holder(row) and not expired(row["boot"], row["expires"]):
            return DeviceState.LEASED
        return DeviceState(stored or DeviceState.ABSENT)

    def _row(self, database: sqlite3.Connection, serial: str) -> sqlite3.Row | None:
        found = database.execute("SELECT * FROM device WHERE serial = ?", (serial,))
        row: sqlite3.Row | None = found.fetchone()
        return row

    def _known(self, database: sqlite3.Connection, serial: str) -> sqlite3.Row:
        row = self._row(database, serial)
        if row is None:
            raise DeviceError("no device of this serial has been seen here", device=serial)
        return row

    @staticmethod
    def _write(database: sqlite3.Connection, serial: str, state: DeviceState, reason: str) -> None:
        database.execute(
            "UPDATE device SET since_utc = CASE state WHEN ?1 THEN since_utc ELSE ?2 END,"
            " state = ?1, reason = ?3 WHERE serial = ?4",
            (state.value, utc_now(), reason, serial),
        )


def _remedy(state: DeviceState, name: str) -> str:
    if state is DeviceState.QUARANTINED:
        return f"mend it, then: device-lab devices release {name} --quarantine"
    return "look at it first: device-lab devices doctor " + name
