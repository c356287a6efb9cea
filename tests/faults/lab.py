"""A board and a phone that can be hurt: killed, frozen, cut off, filled up, and brought back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.endpoints.adbd import serve_phone
from devices.endpoints.phone import install_phone
from devices.endpoints.processes import end_with_parent
from devices.endpoints.sshd import serve
from tests.processes import alive, children

_CHUNK = 1 << 16


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
        _signal(self.all_pids(), signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        _signal(self.all_pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(self.all_pids(), signal.SIGCONT)

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
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, nothing to lock
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.02)
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
        self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
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
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                self._passing.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Victim:
    """One device, what can be done to it, and how it is made whole again.

    ``hurt`` does one thing and returns what undoes it, to be called some time later.
    """

    entry: dict[str, Any]
    root: Path
    servers: dict[str, Server]
    link: Link
    state: Path | None = None
    faults: tuple[str, ...] = ()
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def hurt(self, kind: str) -> float:
        """Do it; the seconds after which :meth:`heal` is due."""
        verb, _, what = kind.partition(" ")
        if verb == "kill":
            self.servers[what].kill()
            self._undo.append(self.servers[what].revive)
            return 0.2
        if verb == "freeze":
            self.servers[what].freeze()
            self._undo.append(self.servers[what].thaw)
            return 2.5
        if kind == "cut link":
            self.link.cut()
            self._undo.append(self.link.mend)
            return 0.3
        if kind == "swallow link":
            self.link.swallow()
            self._undo.append(self.link.mend)
            return 2.5
        if kind == "fill disk":
            self._fill()
            self._undo.append((self.root / "filler").unlink)
            return 1.0
        if kind == "truncate files":
            for path in [*self.root.glob("store/*.onnx"), *self.root.glob("incoming/*")]:
                with contextlib.suppress(OSError):
                    os.truncate(path, path.stat().st_size // 2)
            return 0.0
        assert kind == "kill agent"
        for pid in self.agents():
            _signal([pid], signal.SIGKILL)
        return 0.0

    def heal(self) -> None:
        while self._undo:
            self._undo.pop()()

    def agents(self) -> list[int]:
        """Agents of this device that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(f"{self.root}/store/".encode()):
                    found.append(int(path.parent.name))
        return [pid for pid in found if alive(pid)]

    def settings(self) -> dict[str, str]:
        """What can be set on the device, as it is."""
        if self.state is None:
            return {}
        return {path.name: path.read_text() for path in self.state.iterdir() if path.is_file()}

    def _fill(self) -> None:
        filler = self.root / "filler"
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(_CHUNK))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 96 MB on ``folder``; whether there is one, for it takes root."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", "size=96m,mode=700", "edgeloop-test", str(folder)]
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def board(folder: Path) -> Iterator[Victim]:
    """A real sshd behind a link."""
    with ExitStack() as stack:
        server = stack.enter_context(serve(folder / "sshd"))
        disk = stack.enter_context(small_disk(folder / "disk"))
        link = Link(server.port)
        stack.callback(link.close)
        known = folder / "known_hosts"
        key = server.known_hosts.read_text().partition(" ")[2]
        known.write_text(f"[127.0.0.1]:{link.port} {key}")
        sshd = Server(server.process, server.port)
        stack.callback(sshd.end)
        root = folder / "disk" / "root"
        entry = {
            **server.inventory_entry("board", str(root)),
            "address": f"ssh://{server.user}@127.0.0.1:{link.port}",
            "known_hosts": str(known),
        }
        faults = ["kill sshd", "freeze sshd", "cut link", "swallow link"]
        faults += ["truncate files", "kill agent", *(["fill disk"] if disk else [])]
        victim = Victim(entry, root, {"sshd": sshd}, link, faults=tuple(faults))
        stack.callback(victim.heal)
        yield victim


@contextmanager
def phone(folder: Path) -> Iterator[Victim]:
    """A real adbd and adb server, with the link between them, and a phone's commands."""
    with ExitStack() as stack:
        programs = install_phone(folder / "programs")
        served = stack.enter_context(serve_phone(folder / "adbd", programs))
        disk = stack.enter_context(small_disk(folder / "disk"))
        adbd_port = int(served.serial.rpartition(":")[2])
        link = Link(adbd_port)
        stack.callback(link.close)
        adbd = Server(served.adbd, adbd_port)
        adb_server = Server(served.adb_server, served.server[1])
        stack.callback(adbd.end)
        stack.callback(adb_server.end)
        root = folder / "disk" / "root"
        entry = {
            **served.inventory_entry("phone", str(root)),
            "address": f"adb:127.0.0.1:{link.port}",
            "emulated": True,
        }
        faults = ["kill adbd", "freeze adbd", "kill adb-server", "cut link", "swallow link"]
        faults += ["truncate files", "kill agent", *(["fill disk"] if disk else [])]
        victim = Victim(
            entry,
            root,
            {"adbd": adbd, "adb-server": adb_server},
            link,
            folder / "programs" / "state",
            tuple(faults),
        )
        stack.callback(victim.heal)
        yield victim
