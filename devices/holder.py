"""Who holds a device, and how to ask for it back."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from devices.lab import Lab
from devices.lab_database import elsewhere, expired, lease_row
from profiles.errors import DeviceBusy

_ASKED_TO_END_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a device.

    Args:
        serial, device_id: of the device.
        fence: of the lease.
        pid, host, user: the process that holds it.
        started: when that process began, in the kernel's ticks since boot.
        purpose: what for.
        by_hand: whether a person took it by ``devices lease``.
        since_utc: when.
        ends_utc: when it is planned to end, or ``None``.
        boot: the run of the host whose monotonic clock ``expires`` is on.
        expires: when, unless it is renewed.
    """

    serial: str
    device_id: str
    fence: int
    pid: int
    host: str
    user: str
    started: int
    purpose: str
    by_hand: bool
    since_utc: str
    ends_utc: str | None
    boot: str
    expires: float

    @property
    def expired(self) -> bool:
        """Whether it has not been renewed in time: whoever wants the device gets it.

        Never so of another host's, whose clock is not known here.
        """
        return expired(self.boot, self.expires)

    @property
    def elsewhere(self) -> bool:
        """Whether it is another host's."""
        return elsewhere(self.boot, self.host)

    @property
    def remedy(self) -> str:
        """What to do for who wants the device."""
        force = f"device-lab devices release {self.device_id} --force"
        if self.elsewhere:
            return (
                "a lab belongs to one host: set EDGELOOP_LAB to a folder of its own on each;"
                f" if nothing on {self.host} holds it any more: {force}"
            )
        return f"wait until it has finished (see: device-lab devices who), or: {force}"

    def describe(self) -> str:
        """In a few words, for messages."""
        return (
            f"held by process {self.pid} ({self.user}@{self.host})"
            f" for {self.purpose!r} since {self.since_utc}"
        )


def holder(lab: Lab, serial: str) -> Holder | None:
    """Who holds a device: a living process, though perhaps a stopped one with an expired lease,
    or one of another host."""
    with lab.reading() as database:
        row = lease_row(database, serial)
    return holder_from(row) if row is not None and lab.has_holder(row) else None


def holders(lab: Lab) -> list[Holder]:
    """Who holds the devices of a lab, by device."""
    with lab.reading() as database:
        rows = database.execute(
            "SELECT * FROM lease WHERE released_utc IS NULL ORDER BY id, serial"
        )
        found = rows.fetchall()
    return [holder_from(row) for row in found if lab.has_holder(row)]


def ask_to_end(lab: Lab, who: Holder) -> None:
    """End a lease that this user took by hand, by asking its process (SIGTERM).

    Raises:
        DeviceBusy: if it is not one that may be asked, or it does not end.
    """
    if not (who.by_hand and _ask(who)):
        raise DeviceBusy(who.describe(), who.remedy, who.device_id)
    deadline = time.monotonic() + _ASKED_TO_END_S
    while (now := holder(lab, who.serial)) is not None and now.fence == who.fence:
        if time.monotonic() > deadline:
            raise DeviceBusy(
                f"{who.describe()}, and does not end",
                f"device-lab devices release {who.device_id} --force",
                who.device_id,
            )
        time.sleep(_POLL_S)


def holder_from(row: sqlite3.Row) -> Holder:
    """Who has, or had, the lease of a row."""
    return Holder(
        serial=row["serial"],
        device_id=row["id"],
        fence=row["fence"],
        pid=row["pid"],
        host=row["host"],
        user=row["user"],
        started=row["started"],
        purpose=row["purpose"],
        by_hand=bool(row["by_hand"]),
        since_utc=row["since_utc"],
        ends_utc=row["ends_utc"],
        boot=row["boot"],
        expires=row["expires"],
    )


def user_name() -> str:
    """Whose process this is; a container may have no name for its user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def process_started(pid: int) -> int | None:
    """When a process began, in ticks since boot, field 22 of proc(5)'s stat."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _ask(who: Holder) -> bool:
    """Signal exactly the process that holds it, if it is one of this user's on this host."""
    if who.host != socket.gethostname():
        return False
    try:
        process = os.pidfd_open(who.pid)
    except OSError:
        return False
    try:
        # Looked at with the descriptor in hand: the number is nobody else's from here on.
        owner = Path(f"/proc/{who.pid}").stat().st_uid
        if owner != os.getuid() or process_started(who.pid) != who.started:
            return False
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except OSError:
        return False
    finally:
        os.close(process)
    return True
