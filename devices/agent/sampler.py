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
from pathlib import Path
from typing import Any, NoReturn

#: How long a command may take however short the period, in s.
COMMAND_S = 1.0

Read = Callable[[], tuple[str, ...]]


class Sampler:
    """Reads from the moment it is made until its readings are asked for.

    Args:
        meter: of a plan: ``files`` to be read every ``period_ns``, or a ``command`` to be run.
    """

    def __init__(self, meter: dict[str, Any]) -> None:
        over, self._over = os.pipe()
        self._readings, readings = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _child(meter, over, readings)
        os.close(over)
        os.close(readings)

    def readings(self) -> dict[str, Any]:
        """End it: ``at_ns``, the middle of each reading, and ``values``, its texts.

        Raises:
            ChildProcessError: if it has died.
        """
        os.close(self._over)
        with os.fdopen(self._readings, "rb") as stream:
            said = stream.read()
        os.waitpid(self.pid, 0)
        if not said:
            raise ChildProcessError("the sampler of the power sensor died")
        found: dict[str, Any] = json.loads(said)
        return found


def _child(meter: dict[str, Any], over: int, readings: int) -> NoReturn:
    """Sample until ``over`` has no other end: the parent wants the readings, or is dead.

    If it is dead, nobody takes the readings: writing them ends this process (``SIGPIPE``).
    """
    try:
        _let_go_of_all_but(over, readings)
        found = sample(_reader(meter), meter["period_ns"], over)
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


def _reader(meter: dict[str, Any]) -> Read:
    files, command = meter["files"], meter["command"]
    if not command:
        return lambda: tuple(_content(path) for path in files)
    deadline_s = max(COMMAND_S, meter["period_ns"] / 1e9)
    return lambda: (_output(command, deadline_s),)


def _content(path: str) -> str:
    """What is in a file; nothing, if it cannot be read."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _output(command: Sequence[str], deadline_s: float) -> str:
    """What a command prints; nothing, if it cannot be run or does not end in time.

    One that does not is killed with all that it has started.
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
        try:
            said: bytes = process.communicate(timeout=deadline_s)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return ""
    return said.decode(errors="replace")
