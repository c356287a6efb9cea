"""One holder per device: a kernel lock on the host that owns its cable, and a fence.

Whoever holds the lock of a device's file holds the device; when the holder dies, however, the
kernel frees it at once.  A holder that lives but does not run (stopped, its host asleep) no longer
renews its lease, which expires; the next one puts a new file in place of the old.  The expiry is on
the host's clock: what another host holds is held until it says otherwise, or a person.  Each lease
carries a fence, a number larger than that of every lease before it: whoever keeps results rejects
those of a fence older than one it has seen, so a holder that wakes up late does no harm.

Locks change hands within a transaction of the lab's database, so lock and row tell the same.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from devices.holder import Holder, holder_from, process_started, user_name
from devices.kernel_lock import KernelLock, held
from devices.lab import Lab
from devices.lab_database import expired, lease_row, this_boot, utc_now
from profiles.errors import DeviceBusy, DeviceError, LeaseLost

#: A lease that was not renewed for so long is over, though its holder may live.
TERM_S = 60.0
POLL_S = 0.05


class Lease:
    """A device that is ours; made by :func:`lease`.

    Args:
        fence: goes with every result that is stored.
    """

    def __init__(self, lab: Lab, holder: Holder, lock: KernelLock) -> None:
        self.serial = holder.serial
        self.device_id = holder.device_id
        self.fence = holder.fence
        self._lab = lab
        self._lock = lock
        self._process = os.getpid()

    def check(self) -> None:
        """Make sure that the device still is ours.

        Raises:
            LeaseLost: if it expired, or somebody took it.
        """
        with self._lab.reading() as database:
            self._refuse_lost(database)

    def _refuse_lost(self, database: sqlite3.Connection) -> None:
        row = lease_row(database, self.serial)
        if row is None or row["fence"] != self.fence or row["released_utc"]:
            who = "" if row is None else f" by {row['user']}@{row['host']} (fence {row['fence']})"
            raise LeaseLost(
                f"the lease has been taken over{who}", "run again to go on", self.device_id
            )
        if expired(row["boot"], row["expires"]):
            late_s = time.monotonic() - row["expires"]
            raise LeaseLost(
                f"the lease expired {late_s:.0f} s ago: this process did not run",
                "run again to go on",
                self.device_id,
            )

    def raise_above(self, fence: int) -> None:
        """Make this lease newer than a fence that was not given out by this lab.

        Fences begin at the time: where a store has seen one of a clock far ahead, and the lab that
        gave it out is lost, all new ones would stay below it.

        Raises:
            LeaseLost: if the device is not ours any more: the other fence may be the new holder's.
        """
        with self._lab.transaction() as database:
            self._refuse_lost(database)
            raised = max(_newest(database), fence) + 1
            database.execute("UPDATE lease SET fence = ? WHERE serial = ?", (raised, self.serial))
            self.fence = raised  # before the thread that renews it may look

    def renew(self, term_s: float) -> bool:
        """Put the expiry off; a lease that is over stays so.

        Returns:
            Whether it is still ours.
        """
        now = time.monotonic()
        with self._lab.transaction() as database:
            changed = database.execute(
                "UPDATE lease SET expires = ? WHERE serial = ? AND fence = ?"
                " AND released_utc IS NULL AND expires > ?",
                (now + term_s, self.serial, self.fence, now),
            )
            return changed.rowcount == 1

    def release(self) -> None:
        """Give the device back."""
        if os.getpid() != self._process:
            return  # a forked child unwinds its copy of us
        try:
            with self._lab.transaction() as database:
                database.execute(
                    "UPDATE lease SET released_utc = ? WHERE serial = ? AND fence = ?",
                    (utc_now(), self.serial, self.fence),
                )
                self._lock.release()
        except DeviceError:
            pass  # it looks like a crash of ours: the lock is free all the same
        finally:
            self._lock.release()


@contextmanager
def lease(
    lab: Lab,
    serial: str,
    device_id: str,
    purpose: str,
    wait_s: float = 0.0,
    *,
    term_s: float = TERM_S,
    by_hand: bool = False,
    ends_utc: str | None = None,
) -> Iterator[Lease]:
    """Hold a device; two measurements at once would disturb each other.

    Args:
        lab: of this host.
        serial: of the device.
        device_id: its name, for messages.
        purpose: what for, in a few words.
        wait_s: how long to wait for another holder to finish.
        term_s: it is over when it was not renewed for so long, which a thread does.
        by_hand: whether a person holds it, and may be asked to end it.
        ends_utc: when it is planned to end, for people to see.

    Raises:
        DeviceBusy: if another process still holds it.
        DeviceError: if the device is in quarantine.
    """
    claim = _Claim(serial, device_id, purpose, term_s, by_hand, ends_utc)
    ours = _acquire(lab, claim, wait_s)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(ours, term_s, done), daemon=True, name="lease")
    heart.start()
    try:
        yield ours
    finally:
        done.set()
        heart.join()
        ours.release()


def take_away(lab: Lab, serial: str, device_id: str) -> Holder | None:
    """End a lease without asking: the fence rises, so its holder's results are rejected.

    Returns:
        Who held it; what that has running on the device, the next holder will kill.
    """
    claim = _Claim(serial, device_id, "taken away by force", 0.0, True, None)
    with lab.transaction() as database:
        row = lease_row(database, serial)
        if row is None or not lab.has_holder(row):
            return None
        lock = _replaced(lab.lock_path(serial))
        claim.write(database)
        database.execute("UPDATE lease SET released_utc = ? WHERE serial = ?", (utc_now(), serial))
        lock.release()
    return holder_from(row)


@dataclass(frozen=True, slots=True)
class _Claim:
    serial: str
    device_id: str
    purpose: str
    term_s: float
    by_hand: bool
    ends_utc: str | None

    def write(self, database: sqlite3.Connection) -> Holder:
        """The row of a new lease, with the next fence.

        Fences are at least the time in seconds: also after the lab's folder was lost, or where a
        workspace has moved to another host, a new lease is newer than the old ones.
        """
        now = Holder(
            serial=self.serial,
            device_id=self.device_id,
            fence=max(_newest(database) + 1, int(time.time())),
            pid=os.getpid(),
            host=socket.gethostname(),
            user=user_name(),
            started=process_started(os.getpid()) or 0,
            purpose=self.purpose,
            by_hand=self.by_hand,
            since_utc=utc_now(),
            ends_utc=self.ends_utc,
            boot=this_boot(),
            expires=time.monotonic() + self.term_s,
        )
        database.execute("DELETE FROM lease WHERE serial = ?", (self.serial,))
        columns = (
            "serial, id, fence, pid, host, user, started, purpose, by_hand, since_utc, ends_utc,"
            " boot, expires"
        )
        database.execute(
            f"INSERT INTO lease ({columns}) VALUES ({', '.join('?' * 13)})",  # noqa: S608
            astuple(now),
        )
        return now


def _acquire(lab: Lab, claim: _Claim, wait_s: float) -> Lease:
    deadline = time.monotonic() + wait_s
    while True:
        answer = _attempt(lab, claim)
        if isinstance(answer, Lease):
            return answer
        # Whoever waits looks at the lock alone: the database is for those who have work to do.
        while answer.elsewhere or (held(lab.lock_path(claim.serial)) and not answer.expired):
            if time.monotonic() >= deadline:
                raise DeviceBusy(answer.describe(), answer.remedy, claim.device_id)
            time.sleep(POLL_S)
            if answer.elsewhere:
                break  # the lock does not tell


def _attempt(lab: Lab, claim: _Claim) -> Lease | Holder:
    """The device, or who has it; nobody else gets or loses one meanwhile."""
    lock: KernelLock | None = None
    try:
        with lab.transaction() as database:
            lab.refuse_quarantined(database, claim.serial)
            path, last = lab.lock_path(claim.serial), lease_row(database, claim.serial)
            if last is not None and lab.has_holder(last) and not holder_from(last).expired:
                return holder_from(last)
            lock = KernelLock.take(path) or _replaced(path)
            return Lease(lab, claim.write(database), lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _newest(database: sqlite3.Connection) -> int:
    """The greatest fence that this lab has given out."""
    found: int = database.execute("SELECT coalesce(max(fence), 0) FROM lease").fetchone()[0]
    return found


def _replaced(path: Path) -> KernelLock:
    lock = KernelLock.replace(path)
    if lock is None:
        raise DeviceError(f"somebody else locks {path}, and is no edgeloop")
    return lock


def _beat(ours: Lease, term_s: float, done: threading.Event) -> None:
    """Renew a lease until it is done or lost; ``check`` says which."""
    while not done.wait(term_s / 6):
        try:
            if not ours.renew(term_s):
                return
        except DeviceError:
            continue  # the database is busy: there is time for another try
