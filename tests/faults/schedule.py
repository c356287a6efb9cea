"""A seeded schedule of faults, carried out while a campaign measures.

The campaign runs in a process of its own, which asks for each fault when its moment has come: in
the middle of a push, after so many lines of the agent, or before a command.  It is started again
until everything is measured.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko  # noqa: F401 - here, so that not every campaign's process has to

import devices.transport.adb
import devices.transport.ssh
import devices.visit
import pipeline.campaign
from devices.endpoints.processes import end_with_parent
from devices.inventory import Device
from devices.lab import Lab
from devices.lease import Lease, lease, take_away
from devices.transport.base import Completed, LineSink, Transport
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from profiles.canonical import settled_sha256
from profiles.errors import EdgeError
from profiles.measure import Measure
from tests.faults.lab import Victim, Wound

MEASURE = Measure(
    runs=3,
    max_runs=3,
    iterations=400,
    warmup_iterations=2,
    warmup_seconds=0,
    app=False,
    memory=False,
    energy=False,
    tolerate=("throttled", "frequency", "foreign-load", "not-stationary"),
)
#: No call may take longer here, and none may be late by more than this.
DEADLINE_S = 1.0
LATE_S = 2.0
#: To connect is several calls.
CONNECT_S = 3 * DEADLINE_S
#: Instead of a minute and more: everything heals within a second or so.
PAUSES_S = (0.1, 0.3, 1.0)
#: The host is killed; the lease is taken away by force; the host sleeps beyond its lease, and wakes
#: up to find the device another's; the agent talks nonsense.
HOST_FAULTS = ("kill host", "take lease", "freeze host", "garbage")
#: After these the device is another's until it is leased again.
TAKEN = ("take lease", "freeze host")
#: These need an agent that runs.
AGENT = ("kill agent", "freeze agent")
#: When, and the counts it can come after: sixths of a file, lines of the agent, commands.
MOMENTS = {"push": range(1, 6), "line": range(3, 13), "command": range(1, 16)}
FAILED = 3
DONE, MISSED = b"+", b"-"


@dataclass(frozen=True)
class Fault:
    """What happens, and when: in a ``push``, after some ``lines``, before a ``command``."""

    kind: str
    moment: str
    count: int


def possible(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Each kind of fault with each moment at which it can occur."""
    return [
        (kind, moment)
        for kind in (*kinds, *HOST_FAULTS)
        for moment in (["line"] if kind in (*AGENT, "garbage") else MOMENTS)
    ]


def schedule(seed: int, kinds: Sequence[str], length: int) -> list[Fault]:
    """The same faults for the same seed.

    They are dealt from a pack with each of :func:`possible` in it, which is shuffled anew once it
    is used up; so a few seeds in a row have everything between them.
    """
    pack, chance = possible(kinds), random.Random(seed)
    faults = []
    for place in range(seed * length, (seed + 1) * length):
        turn, card = divmod(place, len(pack))
        kind, moment = random.Random(turn).sample(pack, len(pack))[card]
        faults.append(Fault(kind, moment, chance.choice(MOMENTS[moment])))
    return faults


class Log:
    """What a campaign's process tells, over all its lives: appended, never buffered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, value: Any) -> None:
        line = json.dumps([kind, value, round(time.monotonic(), 3)]).encode() + b"\n"
        with self.path.open("ab", buffering=0) as stream:
            stream.write(line)

    def read(self) -> Iterator[tuple[str, Any]]:
        for line in self.path.read_text().splitlines():
            kind, value, _ = json.loads(line)
            yield kind, value


class Watched:
    """A transport that notes what comes through it, and asks for faults at their moments."""

    def __init__(self, inner: Transport, hand: Hand) -> None:
        self.name = inner.name
        self._inner = inner
        self._hand = hand

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        def hear(text: str) -> None:
            self._hand.log.write("line", text)
            assert on_line is not None
            on_line(text)
            if self._hand.at("line") == "garbage":
                on_line("\x1b[2J Segmentation fault (core dumped)")

        self._hand.at("command")
        with self._hand.on_time("run", DEADLINE_S):
            return self._inner.run(
                argv, deadline_s=min(deadline_s, DEADLINE_S), on_line=on_line and hear
            )

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        done = threading.Event()
        watcher = threading.Thread(
            target=self._hand.watch_push, args=(Path(target), source.stat().st_size, done)
        )
        watcher.start()
        try:
            with self._hand.on_time("push", DEADLINE_S):
                self._inner.push(
                    source, target, deadline_s=min(deadline_s, DEADLINE_S), offset=offset
                )
        finally:
            done.set()
            watcher.join()

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        self._inner.pull(source, target, deadline_s=deadline_s)

    def probe(self, *, deadline_s: float) -> float:
        return self._inner.probe(deadline_s=min(deadline_s, DEADLINE_S))

    def close(self) -> None:
        self._inner.close()


class Hand:
    """In the campaign's process: knows which fault comes next, and asks for it."""

    def __init__(self, faults: Sequence[Fault], log: Log, ask: int, answer: int) -> None:
        self.log = log
        self._left = list(faults)
        self._count = 0
        self._struck = False
        self._ask, self._answer = ask, answer
        self._lock = threading.Lock()

    def at(self, moment: str) -> str | None:
        """A moment of this kind has come; which fault was due, if any."""
        with self._lock:
            if not self._left or self._left[0].moment != moment:
                return None
            self._count += 1
            if self._count < self._left[0].count:
                return None
            return self._strike()

    def watch_push(self, target: Path, size: int, done: threading.Event) -> None:
        """Strike when a part of a large file has arrived."""
        while not done.is_set() and size > 1_000_000:
            fault = self._left[0] if self._left else None
            try:
                arrived = target.stat().st_size
            except OSError:
                arrived = 0
            if fault and fault.moment == "push" and arrived >= size * fault.count / 6:
                with self._lock:
                    self._strike()
                return
            time.sleep(0.0005)

    @contextmanager
    def on_time(self, what: str, within_s: float) -> Iterator[None]:
        """Note a call that ends after its deadline; say that one has come back after a fault."""
        start = time.monotonic()
        try:
            yield
        finally:
            taken_s = time.monotonic() - start
            if taken_s > within_s + LATE_S:
                self.log.write("late", [what, taken_s])
            with self._lock:
                if self._struck:
                    self._struck = False
                    os.write(self._ask, b"back\n")

    def _strike(self) -> str:
        fault = self._left.pop(0)
        self._count = 0
        self._struck = True
        self.log.write("fault", [fault.kind, fault.moment])
        os.write(self._ask, fault.kind.encode() + b"\n")
        if fault.kind == "kill host":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "freeze host":
            os.kill(os.getpid(), signal.SIGSTOP)
        if os.read(self._answer, 1) == MISSED:  # which comes once it is done
            self._left.insert(0, fault)
        return fault.kind


def campaign(
    workspace: Path, device: Device, subjects: Sequence[Subject], settings: Measure, hand: Hand
) -> int:
    """In the child: measure; the exit code is 0 once all is measured."""
    devices.transport.ssh.CONNECT_TIMEOUT_S = DEADLINE_S
    devices.transport.adb.CONNECT_TIMEOUT_S = DEADLINE_S
    pipeline.campaign.PAUSES_S = PAUSES_S
    connect = Device.connect

    def watched(device: Device) -> Transport:
        with hand.on_time("connect", CONNECT_S):
            return Watched(connect(device), hand)

    @contextmanager
    def noted(*arguments: Any, **named: Any) -> Iterator[Lease]:
        with lease(*arguments, **named) as held:
            hand.log.write("leased", held.fence)
            yield held

    Device.connect, devices.visit.lease = watched, noted
    try:
        opened = Workspace.open(workspace)
        for subject in subjects:
            opened.store.put_artifact(subject.artifact)
        trials = measure(opened, device, subjects, settings)
    except EdgeError as error:
        hand.log.write("status", str(error))
        return FAILED
    failed = [trial.reason for trial in trials if trial.status != "accepted"]
    for reason in failed:
        hand.log.write("status", reason)
    return FAILED if failed else 0


class Lives:
    """The lives of a campaign's process, and what is done to it and its device meanwhile."""

    def __init__(
        self, victim: Victim, device: Device, workspace: Path, faults: Sequence[Fault], log: Log
    ) -> None:
        self.left = list(faults)
        self._victim = victim
        self._device = device
        self._workspace = workspace
        self._settings = MEASURE.model_copy(update={"mode": victim.mode})
        self._log = log
        for runtime in device.libraries:  # hashed here, for all lives
            settled_sha256(device.libraries[runtime])

    def live(self, subjects: Sequence[Subject]) -> int:
        """One life; its exit code, or the negative number of the signal that ended it."""
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        child = os.fork()
        if child == 0:
            end_with_parent(signal.SIGKILL)
            os.close(ask_read)
            os.close(answer_write)
            hand = Hand(self.left, self._log, ask_write, answer_read)
            self._measure(subjects, hand)
        os.close(ask_write)
        os.close(answer_read)
        try:
            with os.fdopen(ask_read, "rb", buffering=0) as asked:
                self._answer(child, asked.fileno(), answer_write)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(answer_write)
            _, status = os.waitpid(child, 0)
            self._victim.heal()
        code = os.waitstatus_to_exitcode(status)
        self._log.write("ended", code)
        return code

    def _measure(self, subjects: Sequence[Subject], hand: Hand) -> None:
        try:
            code = campaign(self._workspace, self._device, subjects, self._settings, hand)
        except BaseException:
            self._log.write("crash", traceback.format_exc())
            code = 99
        sys.stderr.flush()
        os._exit(code)

    def _answer(self, child: int, asked: int, answer: int) -> None:
        """Do as is asked until the child has ended, and heal in time.

        In this thread: a server ends with the thread that started it.
        """
        heal_at: float | None = None
        wound = Wound(0)
        words = b""
        while True:
            wait_s = None if heal_at is None else max(heal_at - time.monotonic(), 0)
            if not select.select([asked], [], [], wait_s)[0]:
                self._victim.heal()
                heal_at = None
                continue
            if not (more := os.read(asked, 1024)):
                break
            *lines, words = (words + more).split(b"\n")
            for line in lines:
                if line == b"back":
                    if wound.until_back and heal_at is not None:
                        heal_at = min(heal_at, time.monotonic() + 0.1)
                    continue
                kind = self.left[0].kind
                assert kind == line.decode()
                if kind in AGENT and not self._victim.agents():  # it has just ended
                    os.write(answer, MISSED)
                    continue
                del self.left[0]
                wound = self._do(kind, child)
                heal_at = time.monotonic() + wound.lasts_s
                if kind != "kill host":
                    os.write(answer, DONE)
        if heal_at is not None and not wound.until_back:
            time.sleep(max(heal_at - time.monotonic(), 0))

    def _do(self, kind: str, child: int) -> Wound:
        """Carry a fault out."""
        if kind not in HOST_FAULTS:
            return self._victim.hurt(kind)
        lab = Lab()
        serial = lab.serial_of(self._device.id)
        if kind == "take lease" and serial:
            take_away(lab, serial, self._device.id)
        if kind == "freeze host":
            os.waitpid(child, os.WUNTRACED)
            if serial:
                _overtake(lab, serial, self._device.id)
            os.kill(child, signal.SIGCONT)
        return Wound(0)


def _overtake(lab: Lab, serial: str, device_id: str) -> None:
    """Another measures on the device of a holder that has slept for longer than its lease."""
    with lab.transaction() as database:
        database.execute(
            "UPDATE lease SET expires = ? WHERE serial = ?", (time.monotonic() - 1, serial)
        )
    with lease(lab, serial, device_id, "another's measurement"):
        pass
