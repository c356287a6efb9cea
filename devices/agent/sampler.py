"""A child process that reads a power sensor while its parent measures.

Part of the program that runs on a board: standard library, Python 3.9.

It is a process of its own so that reading neither waits for the interpreter nor makes it wait, and
it has to be made before there is any thread: a fork copies the one thread that asks for it, and the
locks of all.  It understands nothing of what it reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

#: How long a command may take however short the period, in s.
COMMAND_S = 1.0
#: What is taken of a file, or of what a command prints, in bytes.  Chosen: no sensor says more, and
#: a whole page of the kernel's is 4096.
MOST_BYTES = 65_536

Read = Callable[[], tuple[str, ...]]


class Sampler:
    """Reads from the moment it is made until its readings are asked for.

    Args:
        meter: of a plan: ``files`` to be read every ``period_ns``, or a ``command`` to be run.
    """

    def __init__(self, meter: dict[str, Any]) -> None:
        # Both sides stay open here: to write to a sampler that has died would end this process.
        self._over = os.pipe()
        self._readings, readings = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _child(meter, self._over[0], readings)
        os.close(readings)

    def readings(self) -> dict[str, Any]:
        """End it: ``at_ns``, the middle of each reading, and ``values``, its texts.

        Raises:
            ChildProcessError: if it has died.
        """
        # A word, not a closed line: that would say that this process is gone.
        os.write(self._over[1], b"x")
        with os.fdopen(self._readings, "rb") as stream:
            said = stream.read()
        for side in self._over:
            os.close(side)
        os.waitpid(self.pid, 0)
        if not said:
            raise ChildProcessError("the sampler of the power sensor died")
        found: dict[str, Any] = json.loads(said)
        return found


def _child(meter: dict[str, Any], over: int, readings: int) -> NoReturn:
    """Sample until ``over`` says so, or has no other end: the parent is dead.

    If it is dead, nobody takes the readings: writing them ends this process (``SIGPIPE``).
    """
    try:
        _let_go_of_all_but(over, readings)
        found = sample(_reader(meter, over), meter["period_ns"], over)
        with os.fdopen(readings, "w") as stream:
            stream.write(json.dumps(found))
    finally:
        os._exit(0)


def _let_go_of_all_but(*kept: int) -> None:
    """A host takes its agent for ended when nobody has its standard output open any more."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)


def sample(read: Read, period_ns: int, over: int) -> dict[str, Any]:
    """Read every ``period_ns``, and once more when ``over`` can be read from.

    Readings begin on a grid of time; those that would have been late are left out.
    """
    at_ns = array("q")
    values: list[tuple[str, ...]] = []
    due, last = time.monotonic_ns(), False
    while True:
        begun = time.monotonic_ns()
        texts = read()
        now = time.monotonic_ns()
        at_ns.append((begun + now) // 2)
        values.append(_sharing(values[-1], texts) if values else texts)
        if last:
            return {"at_ns": at_ns.tolist(), "values": values}
        due += ((now - due) // period_ns + 1) * period_ns
        wait_s = max(0, due - time.monotonic_ns()) / 1e9
        last = bool(select.select([over], [], [], wait_s)[0])


def _sharing(before: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of now; those that are as before are kept once."""
    if before == now:
        return before
    return tuple(old if old == new else new for old, new in zip(before, now))  # noqa: B905 - 3.10


def _reader(meter: dict[str, Any], over: int) -> Read:
    files, command = meter["files"], meter["command"]
    if not command:
        return lambda: tuple(_content(path) for path in files)
    deadline_s = max(COMMAND_S, meter["period_ns"] / 1e9)
    return lambda: (_output(command, deadline_s, over),)


def _content(path: str) -> str:
    """What is in a file; nothing, if it cannot be read."""
    try:
        # Not to wait for those who may write: a pipe could be there in place of a sensor.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    said = b""
    with contextlib.suppress(OSError):
        while len(said) < MOST_BYTES:
            piece = os.read(file, MOST_BYTES - len(said))
            if not piece:
                break
            said += piece
    os.close(file)
    return said.decode(errors="replace")


def _output(command: Sequence[str], deadline_s: float, over: int) -> str:
    """What a command prints; nothing, if it cannot be run or does not end in time.

    Then it is killed with all that it has started, and when it has said enough, or when ``over``
    has no other end.
    """
    import subprocess

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return ""
    with process:
        said = _said(process.stdout.fileno(), deadline_s, over) if process.stdout else b""
        os.killpg(process.pid, signal.SIGKILL)
    return said.decode(errors="replace")


def _said(output: int, deadline_s: float, over: int) -> bytes:
    """What can be read there until its end or enough of it; nothing, if that takes too long."""
    ready = select.poll()
    ready.register(output, select.POLLIN)
    ready.register(over, 0)  # what is asked for can wait; an end that is gone is told all the same
    said, deadline = b"", time.monotonic() + deadline_s
    while len(said) < MOST_BYTES:
        found = dict(ready.poll(1000 * max(0.0, deadline - time.monotonic())))
        if not found or over in found:
            return b""
        piece = os.read(output, MOST_BYTES - len(said))
        if not piece:
            break
        said += piece
    return said
