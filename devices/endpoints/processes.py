"""Servers as child processes: on loopback, and ended with whoever started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from profiles.errors import DeviceUnreachable

_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0
_LISTEN = "0A"  # a listening socket's state in /proc/net/tcp.  Source: include/net/tcp_states.h
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """In a child process: be ended when the parent dies, however it dies.

    Args:
        by: the signal it gets; only SIGKILL ends what is frozen.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, by)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    argv: Sequence[str],
    port: int,
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while in context; it is entered once the port is listened on.

    Args:
        argv: the server's program, which stays in the foreground, and its arguments.
        port: of 127.0.0.1.
        log: file for both of its output streams.
        env, cwd: its environment and working folder, where not this process's own.

    Raises:
        DeviceUnreachable: with the server's last words, if it does not come up.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=env,
            cwd=cwd,
            start_new_session=True,
            # One system call, nothing to lock.
            preexec_fn=partial(end_with_parent, signal.SIGKILL),  # noqa: PLW1509
        )
    try:
        await_port(port, process, log)
        _check_owner(port, process, log)
        yield process
    finally:
        _end(process)


def listening(pid: int) -> list[tuple[str, int]]:
    """The addresses and TCP ports a process listens on; all of IPv6 reads ``::``."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed since it was listed
            inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((_readable(address), int(port, 16)))
    return found


def _readable(address: str) -> str:
    """An address of /proc/net/tcp, which is hexadecimal words in this machine's byte order."""
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server that was just started can be connected to.

    Args:
        port: of 127.0.0.1.
        process: the server, or what started it.
        log: file with its output, whose last line says why it ended.

    Raises:
        DeviceUnreachable: if it ends, or takes too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
    raise DeviceUnreachable(f"{log.stem} did not start: {lines[-1]}")


def _check_owner(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Another server may have taken the port since it was found free."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # it has ended since
            if port in {taken for _, taken in listening(process.pid)}:
                return
        time.sleep(0.02)
    raise DeviceUnreachable(f"{log.stem} did not start: another server has taken port {port}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started, even if it is frozen."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
