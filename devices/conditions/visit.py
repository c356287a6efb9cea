"""A device under a condition for as long as a visit lasts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from devices.conditions.gates import Gates
from devices.conditions.journal import ANYBODY, PATIENCE_S, change, restore
from devices.conditions.pinned import changes
from devices.conditions.preflight import POLL_S, Preflight, StateSink, judge_phone, settle
from devices.conditions.readings import Readings, read
from devices.transport.base import Transport
from profiles.errors import DeviceError, NotReady
from profiles.records import Condition


@dataclass(frozen=True, slots=True)
class Applied:
    """The device as it is under its condition.

    Args:
        readings: taken after everything was set; the governor of the condition is theirs.
        waited_s: how long the device was waited for.
        token: what :func:`devices.conditions.journal.still_applied` knows the visit by; empty
            as-shipped.
    """

    readings: Readings
    waited_s: float
    token: str = ""

    def environment(self) -> dict[str, Any]:
        """As plain data, for the record of a run."""
        return {**self.readings.environment(), "waited_s": self.waited_s}


@contextmanager
def applied(
    transport: Transport,
    root: str,
    facts: Mapping[str, Any],
    gates: Gates,
    condition: Condition,
    *,
    holder: str = ANYBODY,
    on_state: StateSink = lambda state, why: None,
    again: Callable[[], Transport] | None = None,
    patience_s: int = PATIENCE_S,
    poll_s: float = POLL_S,
    tree: str = "",
) -> Iterator[Applied]:
    """Put back what others left, wait for the gates, set what the condition says; then undo it.

    It is undone in every way out: SIGTERM, a closed terminal and Ctrl-C among them.  Should the way
    to the device be lost for good, the guard undoes it there.  Call
    :func:`devices.conditions.journal.still_applied` before each run, and while it is waited for.

    Args:
        transport: the connection to the device.
        root: folder on the device for the journal.
        facts: of the device; ``system`` is looked at.
        gates: what must hold.
        condition: ``mode`` and ``core_mask`` are looked at.
        holder: one word for this host and lab.
        on_state: told while the device is waited for.
        again: gives the connection to undo it by, a new one where the first is lost.
        patience_s: how long the guard waits for a sign of life.
        poll_s: seconds between two looks at a device that is waited for.
        tree: see :func:`devices.conditions.readings.read`.

    Raises:
        NotReady: what must hold does not, or cannot be set; every reason is said.
        DeviceBusy: another holder has pinned the device.
        DeviceError: something could not be undone.
    """
    restore(transport, root, holder)
    system = str(facts.get("system", "linux"))
    seen = settle(transport, system, gates, condition, on_state=on_state, poll_s=poll_s, tree=tree)
    _refuse(seen)
    if condition.mode != "pinned":
        yield Applied(seen.readings, seen.waited_s)
        return

    def undo() -> None:
        restore(again() if again else transport, root, holder)

    with _undone(undo, patience_s):
        forward, back = changes(seen.readings, system, gates, condition, tree)
        token = change(transport, root, forward, back, holder=holder, patience_s=patience_s)
        readings = read(transport, system, tree=tree)
        # What a phone only promises to do is looked at: its screen, its radios.
        _refuse(Preflight(readings, tuple(judge_phone(readings, gates))))
        yield Applied(readings, seen.waited_s, token)


def _refuse(seen: Preflight) -> None:
    if seen.refusals:
        raise NotReady(
            [str(refusal) for refusal in seen.refusals],
            [refusal.advice for refusal in seen.refusals],
        )


@contextmanager
def _undone(undo: Callable[[], None], patience_s: int) -> Iterator[None]:
    """Call ``undo`` at the end; a failure of it does not hide the one that came first."""
    with _ended_by_unwinding():
        try:
            yield
        except BaseException as error:
            try:
                undo()
            except DeviceError as second:
                error.add_note(f"{second}; its guard tries, too, in {patience_s} s")
            raise
        undo()


@contextmanager
def _ended_by_unwinding() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end this process as an exception does, through every ``finally``.

    A closed terminal may send its signal twice; the second one is not to break off the undoing.
    """
    main = threading.current_thread() is threading.main_thread()
    ours = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if main and signal.getsignal(number) is signal.SIG_DFL
    ]

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number in ours:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_DFL)
