"""A seeded schedule of faults, carried out while a campaign measures, and what must hold then.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import devices.transport.adb
import devices.transport.ssh
from devices.inventory import Device
from devices.lab import Lab
from devices.lease import take_away
from devices.transport.base import Completed, LineSink, Transport
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from profiles.errors import EdgeError
from profiles.recipe import Measure
from tests.faults.lab import Victim

MEASURE = Measure(runs=3, iterations=150, warmup_iterations=2, warmup_seconds=0)
#: No call may take longer here, and none may be late by more than this.
DEADLINE_S = 2.0
LATE_S = 2.0
HOST_FAULTS = ("kill host", "take lease", "garbage")
FAILED = 3


@dataclass(frozen=True)
class Fault:
    """What happens, and when: in a ``push``, after some ``lines``, before a ``command``."""

    kind: str
    moment: str
    count: int


def schedule(seed: int, kinds: Sequence[str], length: int) -> list[Fault]:
    """The same faults for the same seed."""
    chance = random.Random(seed)
    faults = []
    for _ in range(length):
        kind = chance.choice([*kinds, *HOST_FAULTS])
        moments = ["line"] if kind in ("garbage", "kill agent") else ["push", "line", "command"]
        faults.append(Fault(kind, chance.choice(moments), chance.randrange(1, 6)))
    return faults


class Log:
    """What a campaign's process tells, over all its lives: appended, never buffered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, value: Any) -> None:
        with self.path.open("ab", buffering=0) as stream:
            stream.write(json.dumps([kind, value]).encode() + b"\n")

    def read(self) -> Iterator[tuple[str, Any]]:
        for line in self.path.read_text().splitlines():
            kind, value = json.loads(line)
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
            if '"samples"' in text and self._hand.at("line") == "garbage":
                on_line("\x1b[2J Segmentation fault (core dumped)")

        self._hand.at("command")
        with self._hand.on_time("run"):
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
            with self._hand.on_time("push"):
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

    def on_time(self, what: str) -> OnTime:
        return OnTime(self.log, what)

    def _strike(self) -> str:
        fault = self._left.pop(0)
        self._count = 0
        self.log.write("fault", fault.kind)
        if fault.kind == "kill host":
            os.write(self._ask, b"kill host\n")
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self._ask, fault.kind.encode() + b"\n")
        os.read(self._answer, 1)
        return fault.kind


class OnTime:
    """Notes calls that end after their deadline."""

    def __init__(self, log: Log, what: str) -> None:
        self._log, self._what = log, what

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        taken_s = time.monotonic() - self._start
        if taken_s > DEADLINE_S + LATE_S:
            self._log.write("late", [self._what, taken_s])


def campaign(workspace: Path, device: Device, subjects: Sequence[Subject], hand: Hand) -> int:
    """In the child: measure; the exit code is 0 once all is measured."""
    devices.transport.ssh.CONNECT_TIMEOUT_S = DEADLINE_S
    devices.transport.adb.CONNECT_TIMEOUT_S = DEADLINE_S
    connect = Device.connect
    Device.connect = lambda self: Watched(connect(self), hand)
    try:
        opened = Workspace.open(workspace)
        for subject in subjects:
            opened.store.put_artifact(subject.artifact)
        trials = measure(opened, device, subjects, MEASURE)
    except EdgeError as error:
        hand.log.write("status", str(error))
        return FAILED
    failed = [trial.reason for trial in trials if trial.status != "accepted"]
    for reason in failed:
        hand.log.write("status", reason)
    return FAILED if failed else 0


def carry_out(
    victim: Victim,
    device: Device,
    workspace: Path,
    subjects: Sequence[Subject],
    faults: list[Fault],
    log: Log,
) -> list[Fault]:
    """One life of the campaign's process.

    Returns:
        The faults that are still to come.
    """
    ask_read, ask_write = os.pipe()
    answer_read, answer_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            code = campaign(workspace, device, subjects, Hand(faults, log, ask_write, answer_read))
        except BaseException:
            traceback.print_exc()
            log.write("crash", traceback.format_exc())
            code = 99
        sys.stderr.flush()
        os._exit(code)
    os.close(ask_write)
    os.close(answer_read)
    left = list(faults)
    # In this thread: a server ends with the thread that started it.
    heal_at: float | None = None
    with os.fdopen(ask_read, "rb", buffering=0) as asked:
        while True:
            wait_s = None if heal_at is None else max(heal_at - time.monotonic(), 0)
            if not select.select([asked], [], [], wait_s)[0]:
                victim.heal()
                heal_at = None
                continue
            if not (line := asked.readline()):
                break
            kind = left.pop(0).kind
            assert kind == line.decode().strip()
            heal_at = time.monotonic() + _do(victim, device, kind)
            if kind != "kill host":
                os.write(answer_write, b"\n")
    os.close(answer_write)
    _, status = os.waitpid(child, 0)
    if heal_at is not None:
        time.sleep(max(heal_at - time.monotonic(), 0))
    victim.heal()
    log.write("ended", os.waitstatus_to_exitcode(status))
    return left


def _do(victim: Victim, device: Device, kind: str) -> float:
    """Carry a fault out; the seconds after which the victim is to be healed."""
    if kind not in HOST_FAULTS:
        return victim.hurt(kind)
    if kind == "take lease":
        lab = Lab()
        serial = lab.serial_of(device.id)
        if serial:
            take_away(lab, serial, device.id)
    return 0.0
