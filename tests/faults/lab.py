"""A board and a phone that can be hurt: killed, frozen, cut off, filled up, and brought back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from devices.endpoints.adbd import serve_phone
from devices.endpoints.phone import install_phone
from devices.endpoints.sshd import serve
from profiles.canonical import file_sha256
from tests.faults.servers import Janitor, Link, Server, janitor, send, small_disk
from tests.processes import alive

_CHUNK = 1 << 16
#: A peer that is silent stays so until the call has given up, or for so long: far beyond deadlines.
SILENT_S = 6.0
#: What pinning changes of the phone, as it is before.
_PHONE = {
    "fixed_performance": "false",
    "global.stay_on_while_plugged_in": "=3",
    "global.airplane_mode_on": "=0",
    "wakefulness": "Awake",
}
#: The machine is everybody's, so its load says nothing of the phone.
_PHONE_GATES = {
    "max_foreign_load_cores": None,
    "screen": "off",
    "airplane": True,
    "settle_s": 0,
}


@dataclass(frozen=True, slots=True)
class Wound:
    """For how long something stays as it is: for ``lasts_s``, or until a call has given up."""

    lasts_s: float
    until_back: bool = False


@dataclass
class Victim:
    """One device, what can be done to it, and how it is made whole again."""

    entry: dict[str, Any]
    root: Path
    servers: Mapping[str, Server]
    link: Link
    janitor: Janitor
    faults: tuple[str, ...]
    mode: str = "as-shipped"
    state: Path | None = None
    _truncated: set[tuple[int, int]] = field(default_factory=set)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def hurt(self, kind: str) -> Wound:
        """Do it; :meth:`heal` undoes it and is due as the result says."""
        verb, _, what = kind.partition(" ")
        if kind == "kill agent":
            send(self.agents(), signal.SIGKILL)
            return Wound(0)
        if kind == "freeze agent":
            send(self.agents(), signal.SIGSTOP)  # for good: it is for the next visit to end it
            return Wound(0)
        if verb == "kill":
            self.servers[what].kill()
            self._undo.append(self.servers[what].revive)
            return Wound(0.2)
        if verb == "freeze":
            self.janitor.kill_at_end(self.servers[what].freeze())
            self._undo += [partial(self.janitor.kill_at_end, []), self.servers[what].thaw]
            return Wound(SILENT_S, until_back=True)
        if verb == "swallow":
            self.link.swallow()
            self._undo.append(self.link.mend)
            return Wound(SILENT_S, until_back=True)
        if verb == "cut":
            self.link.cut()
            self._undo.append(self.link.mend)
            return Wound(0.3)
        if verb == "fill":
            self._undo.append(partial((self.root / "filler").unlink, missing_ok=True))
            self._fill()
            return Wound(0.5)
        assert kind == "truncate files"
        for path in [*self.root.glob("store/*.onnx"), *self.root.glob("incoming/*")]:
            with contextlib.suppress(OSError), path.open("r+b") as stream:
                os.truncate(stream.fileno(), os.fstat(stream.fileno()).st_size // 2)
                found = os.fstat(stream.fileno())
                # It may have got its name between our look at the folder and the cut.
                if any(p.stat().st_ino == found.st_ino for p in self.root.glob("store/*.onnx")):
                    self._truncated.add((found.st_ino, found.st_size))
        return Wound(0)

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

    def false_files(self, names: Collection[str]) -> list[str]:
        """Which of these hashes stand on other bytes, but for what was truncated in its place."""
        return [
            path.name
            for path in self.root.glob("store/*.onnx")
            if path.stem in names
            and file_sha256(path) != path.stem
            and (path.stat().st_ino, path.stat().st_size) not in self._truncated
        ]

    def settings(self) -> dict[str, str]:
        """What pinning changes on the device, as it is."""
        if self.state is None:
            return {}
        return {name: (self.state / name).read_text().strip() for name in _PHONE}

    def _fill(self) -> None:
        self.root.mkdir(exist_ok=True)
        with (self.root / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(_CHUNK))


def kinds(device: str, disk: bool) -> tuple[str, ...]:
    """What can be done to a ``board`` or a ``phone``, with or without a small disk of its own."""
    servers = {
        "board": ("kill sshd", "freeze sshd"),
        "phone": ("kill adbd", "freeze adbd", "kill adb-server"),
    }
    links = ("cut link", "swallow link", "truncate files", "kill agent", "freeze agent")
    return (*servers[device], *links, *(["fill disk"] if disk else []))


@contextmanager
def board(folder: Path) -> Iterator[Victim]:
    """A real sshd behind a link."""
    with ExitStack() as stack:
        device = folder / "disk"
        device.mkdir()
        cleaner = stack.enter_context(janitor(device))
        disk = stack.enter_context(small_disk(device))
        server = stack.enter_context(serve(folder / "sshd"))
        link = Link(server.port)
        stack.callback(link.close)
        known = folder / "known_hosts"
        key = server.known_hosts.read_text().partition(" ")[2]
        known.write_text(f"[127.0.0.1]:{link.port} {key}")
        sshd = Server(server.process, server.port)
        stack.callback(sshd.end)
        root = device / "root"
        entry = {
            **server.inventory_entry("board", str(root)),
            "address": f"ssh://{server.user}@127.0.0.1:{link.port}",
            "known_hosts": str(known),
        }
        victim = Victim(entry, root, {"sshd": sshd}, link, cleaner, kinds("board", disk))
        stack.callback(victim.heal)
        yield victim


@contextmanager
def phone(folder: Path) -> Iterator[Victim]:
    """A real adbd and adb server, with the link between them, and a phone that is pinned."""
    with ExitStack() as stack:
        device = folder / "disk"
        device.mkdir()
        cleaner = stack.enter_context(janitor(device))
        disk = stack.enter_context(small_disk(device))
        programs = install_phone(folder / "programs")
        state = folder / "programs" / "state"
        for name, value in _PHONE.items():
            (state / name).write_text(f"{value}\n")
        served = stack.enter_context(serve_phone(folder / "adbd", programs))
        adbd_port = int(served.serial.rpartition(":")[2])
        link = Link(adbd_port)
        stack.callback(link.close)
        adbd = Server(served.adbd, adbd_port)
        adb_server = Server(served.adb_server, served.server[1])
        stack.callback(adbd.end)
        stack.callback(adb_server.end)
        root = device / "root"
        entry = {
            **served.inventory_entry("phone", str(root)),
            "address": f"adb:127.0.0.1:{link.port}",
            "gates": _PHONE_GATES,
            "emulated": True,
        }
        servers = {"adbd": adbd, "adb-server": adb_server}
        victim = Victim(entry, root, servers, link, cleaner, kinds("phone", disk), "pinned", state)
        stack.callback(victim.heal)
        yield victim
