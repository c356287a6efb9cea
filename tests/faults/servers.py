"""Servers and links that can be hurt, and one process that clears up after them, come what may."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from devices.endpoints.processes import end_with_parent
from tests.processes import children

_CHUNK = 1 << 16
_COMES_BACK_WITHIN_S = 20.0


class Janitor:
    """Ends what is frozen and takes down what is mounted once this process has gone, or is done.

    It waits for the end of its standard input, so it also learns of a ``kill -9``.
    """

    def __init__(self, told: IO[bytes]) -> None:
        self._told = told

    def kill_at_end(self, pids: Sequence[int]) -> None:
        """Those that could not end by themselves; they replace the ones named before."""
        self._told.write(" ".join(map(str, pids)).encode() + b"\n")


# Agents, and guards with what they sleep in, have the device's folder on their command lines.
_CLEAR_UP = """
trap '' HUP INT TERM
frozen=
while read -r line; do frozen=$line; done
[ -z "$frozen" ] || kill -9 $frozen
for found in $(grep -lF "$1/" /proc/[0-9]*/cmdline); do
  pid=${found#/proc/} pid=${pid%/cmdline}
  kill -9 "$pid" $(cat "/proc/$pid/task/$pid/children")
done
umount -l "$1"
exit 0
"""


@contextmanager
def janitor(device: Path) -> Iterator[Janitor]:
    """Whoever clears up, when this ends or the process is killed.

    Args:
        device: all of the device's files; what names them on its command line is ended.
    """
    process = subprocess.Popen(
        ["sh", "-c", _CLEAR_UP, "janitor", str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield Janitor(process.stdin)
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 96 MB on ``folder``, whose janitor unmounts it; whether there is one.

    It takes root.
    """
    options = ["-t", "tmpfs", "-o", "size=96m,mode=700", "edgeloop-test", str(folder)]
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    )
    yield mounted


class Server:
    """A server's process, which comes back on the same port after it was killed."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        proc = Path(f"/proc/{process.pid}")
        self._argv = process.args
        pairs = (proc / "environ").read_bytes().decode().split("\0")
        self._env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        self._cwd = (proc / "cwd").readlink()
        self._port = port
        self.process = process

    def all_pids(self) -> list[int]:
        return [self.process.pid, *children(self.process.pid)]

    def kill(self) -> None:
        send(self.all_pids(), signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> list[int]:
        pids = self.all_pids()
        send(pids, signal.SIGSTOP)
        return pids

    def thaw(self) -> None:
        send(self.all_pids(), signal.SIGCONT)

    def revive(self) -> None:
        if self.process.poll() is None:
            return
        self.process = subprocess.Popen(
            self._argv,
            env=self._env,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # One system call, nothing to lock.
            preexec_fn=partial(end_with_parent, signal.SIGKILL),  # noqa: PLW1509
        )
        deadline = time.monotonic() + _COMES_BACK_WITHIN_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.01)
        raise AssertionError(f"{self._argv} does not come back")

    def end(self) -> None:
        self.thaw()
        if self.process.poll() is None:
            self.kill()


class Link:
    """A TCP link to a server on loopback that can be cut, or swallow everything."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._down = threading.Event()
        self._passing = threading.Event()
        self._passing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection ends at once, and new ones are refused until :meth:`mend`."""
        self._down.set()
        self._hang_up()

    def swallow(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._passing.clear()

    def mend(self) -> None:
        """Work again; what was swallowed in between is lost, as are its connections."""
        if not self._passing.is_set():
            self._hang_up()
        self._down.clear()
        self._passing.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
        self._listener.close()
        self.mend()
        self._hang_up()

    def _hang_up(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._down.is_set():
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for end in (near, far):
                with contextlib.suppress(OSError):  # it has been reset already
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                self._passing.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """A signal to those that still are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
