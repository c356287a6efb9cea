"""Changes to a device that are put back, whatever becomes of us.

Before anything is changed, the way back is written down on the device itself: ``ROOT/restore.sh``,
a script of the old values that puts them back and then removes itself.  Three play it: the visit
that made it, when it ends; any later visit, before it does anything else; and a guard, a process on
the device that needs neither the host nor the link.  The guard plays it when ``ROOT/alive`` has not
been written for some minutes, tries again where that fails, and ends when there is nothing to put
back any more.  It does not outlive a restart of the device, which undoes changes to the clocks; a
phone's settings then wait for the next visit.

Another holder (a host, or another lab of this one) leaves the journal alone while its guard is
patient.  Playing it twice does no harm.  What cannot be put back stays in the journal, and is said.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from devices.conditions.scripts import GUARD, JOURNAL_HEAD, JOURNAL_TAIL, RESTORE, SET, STILL
from devices.transport.base import Transport
from profiles.errors import ConnectionLost, DeviceBusy, DeviceError, NotReady

_DEADLINE_S = 60.0
#: Long enough for the longest single run of an agent, and for the host to come back.
PATIENCE_S = 1200
#: Goes for every host and lab that gives itself no word of its own.
ANYBODY = "anybody"

Kind = Literal["file", "lift", "cap", "setting", "fixed", "airplane", "screen"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to set on a device.

    Args:
        kind: ``file`` in sysfs, ``lift`` for one that only makes room for the next and ``cap`` for
            one that reads as less while the system cools, Android's global ``setting``, ``fixed``
            performance mode, ``airplane`` mode or the ``screen``.
        target: the file's path or the setting's name; empty for the others.
        value: the file's text; the setting's, or ``null`` for none; ``true`` or ``false``; ``1`` or
            ``0``; ``on`` or ``off``.
    """

    kind: Kind
    target: str
    value: str


def change(
    transport: Transport,
    root: str,
    forward: Sequence[Change],
    back: Sequence[Change],
    *,
    holder: str = ANYBODY,
    patience_s: int = PATIENCE_S,
) -> str:
    """Write down the way back, leave a guard, and only then change the device.

    Args:
        transport: the connection to it.
        root: folder on the device for the journal; made if needed.
        forward: what to set, in this order.
        back: what to set to undo it, in this order.
        holder: one word for this host and lab.
        patience_s: how long the guard waits for a sign of life.

    Returns:
        What :func:`still_applied` knows this visit by.

    Raises:
        NotReady: the device did not take a change; :func:`restore` undoes those it took.
        DeviceError: the journal could not be written; nothing was changed.
    """
    lines = [shlex.join([item.kind, item.target, item.value]) for item in back]
    journal = JOURNAL_HEAD + "".join(f"{line}\n" for line in lines) + JOURNAL_TAIL
    words = [word for item in forward for word in (item.kind, item.target, item.value)]
    token = secrets.token_hex(8)
    done = transport.run(
        ["sh", "-c", SET, "sh", root, journal, GUARD, str(patience_s), token, holder, *words],
        deadline_s=_DEADLINE_S,
    )
    if done.exit_code == 3:
        raise NotReady(
            [f"the device cannot be pinned: {done.complaint()}"],
            ["measure as-shipped, or log in as one who may change this"],
        )
    if done.exit_code != 0:
        raise DeviceError(
            f"the device's state cannot be written down in {root}: {done.complaint()}",
            "nothing was changed; see that the folder can be written",
        )
    return token


def restore(transport: Transport, root: str, holder: str = ANYBODY) -> None:
    """Put back what any visit to this device has changed and left; nothing, if all is as it was.

    Args:
        transport: the connection to it.
        root: the folder with the journal.
        holder: one word for this host and lab; what it left itself is put back at once.

    Raises:
        DeviceBusy: another holder has pinned the device, and its guard still hears of it.
        DeviceError: something could not be put back.  It is tried again at the next visit.
    """
    done = transport.run(["sh", "-c", RESTORE, "sh", root, holder], deadline_s=_DEADLINE_S)
    if done.exit_code == 3:
        raise DeviceBusy(
            "another host has pinned it, and is not done",
            "wait until it has finished; should it have gone for good, the device puts itself back",
        )
    if done.exit_code != 0:
        said = "; ".join(done.stderr.decode(errors="replace").split("\n")).strip("; ")
        raise DeviceError(
            f"the device is not as it was before it was pinned: {said or done.complaint()}",
            f"restart it, or put it back by hand with 'sh {root}/restore.sh'; as a last resort"
            " delete that file, and what is said here stays as it is",
        )


def still_applied(transport: Transport, root: str, token: str) -> None:
    """Make sure that what a visit has set is still in force, and tell the guard that it goes on.

    One small command; to be called more often than the guard's patience is long, and before
    everything that is going to be labelled with the condition.

    Args:
        transport: the connection to the device.
        root: the folder with the journal.
        token: of the visit's journal; nothing is to be done for none.

    Raises:
        ConnectionLost: the device was restarted, or was put back: a new visit can pin it again.
        DeviceError: the sign of life could not be given.
    """
    if not token:
        return
    done = transport.run(
        ["sh", "-c", STILL, "sh", root, token, secrets.token_hex(8)], deadline_s=_DEADLINE_S
    )
    if done.exit_code == 3:
        raise ConnectionLost("it is not pinned any more: its guard or another host put it back")
    if done.exit_code == 4:
        raise ConnectionLost("it is not pinned any more: it was restarted in the middle of a visit")
    if done.exit_code != 0:
        raise DeviceError(
            f"its guard cannot be told that the visit goes on: {done.complaint()}",
            f"see that {root} can be written",
        )
