"""Processes of a test server, found through /proc: to kill and to freeze exactly these."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from devices.endpoints.sshd import LoopbackServer


def children(pid: int) -> list[int]:
    """All descendants of a process, parents first."""
    parent_of: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field is the program's name in brackets and may hold anything.
            parent_of[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for candidate in found:
        found += [child for child, parent in parent_of.items() if parent == candidate]
    return found[1:]


def connections(server: LoopbackServer) -> list[int]:
    """The server's processes for its connections, without the commands they run."""
    return [pid for pid in children(server.process.pid) if _program(pid).startswith("sshd")]


def kill_connections(server: LoopbackServer) -> None:
    """What a board's crash looks like from here: nobody says goodbye."""
    _signal(connections(server), signal.SIGKILL)


def freeze(server: LoopbackServer) -> None:
    """Stop the whole server; :func:`thaw` it before the test ends."""
    _signal([server.process.pid, *connections(server)], signal.SIGSTOP)


def thaw(server: LoopbackServer) -> None:
    _signal([server.process.pid, *connections(server)], signal.SIGCONT)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended since it was found
            os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether a process is still there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
