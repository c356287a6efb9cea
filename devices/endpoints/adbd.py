"""A real adbd on loopback: this machine as a phone, for demos and tests.

Debian packages adbd for its own machines; the package is fetched once into the user's cache and
started from there, with a small library preloaded (``adbprops.cc``) that makes it listen on
127.0.0.1.  It asks for no authorisation, so nothing but loopback may ever reach it.  The adb server
beside it is private as well: it looks for no USB devices and has keys of its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from devices.endpoints.debian import unpack
from devices.endpoints.processes import free_port, serving
from devices.transport.adb import adb_program
from profiles.errors import DeviceUnreachable

_SUITE = "trixie"
_SHIM = Path(__file__).with_name("adbprops.cc")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_COMPILERS = {"amd64": "x86_64-linux-gnu-g++", "arm64": "aarch64-linux-gnu-g++"}
_LISTEN = "0A"  # state of a listening socket in /proc/net/tcp; include/net/tcp_states.h
# Source: adb's client/main.cpp and client/transport_local.cpp.
_NO_OTHER_DEVICES = {
    "ADB_USB": "0",
    "ADB_EMU": "0",
    "ADB_MDNS": "0",
    "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
}


@dataclass(frozen=True, slots=True)
class AdbdFiles:
    """An unpacked adbd: its loader, the folders of its libraries, and the program."""

    loader: Path
    libraries: tuple[Path, ...]
    program: Path

    def command(self, shim: Path) -> list[str]:
        """The command line that starts it, with the library that keeps it to loopback."""
        path = ":".join(str(folder) for folder in self.libraries)
        preload = ["--library-path", path, "--preload", str(shim)]
        return [str(self.loader), *preload, str(self.program)]


@dataclass(frozen=True, slots=True)
class Phone:
    """A running adbd and the adb server for it: how to reach them, and their processes."""

    serial: str
    server: tuple[str, int]
    adbd: subprocess.Popen[bytes]
    adb_server: subprocess.Popen[bytes]

    def inventory_entry(self, device_id: str, root: str) -> dict[str, str]:
        """This phone as a device of ``devices.yaml``."""
        return {
            "id": device_id,
            "profile": "android",
            "address": f"adb:{self.serial}",
            "adb_server": f"{self.server[0]}:{self.server[1]}",
            "root": root,
        }


@contextmanager
def serve_phone(
    folder: Path, programs: Path | None = None, *, cache: Path | None = None
) -> Iterator[Phone]:
    """Start adbd and an adb server for it, and end both on any way out.

    Args:
        folder: for keys and logs, and where adbd's commands start; made if needed.
        programs: a folder of programs that come first on the phone's PATH.
        cache: where adbd is kept; the user's cache if ``None``.

    Raises:
        DeviceUnreachable: if adbd cannot be had on this machine, or does not start.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    files = adbd_files(cache=cache)
    argv = files.command(build_shim(cache=cache))
    _check_preload(argv)
    paths = f"{programs.absolute()}:{_PATH}" if programs else _PATH
    env = {"PATH": paths, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
    with ExitStack() as running:
        adbd_port, server_port = free_port(), free_port()
        listen = {"ADBD_LISTEN": f"tcp:localhost:{adbd_port}"}
        adbd = running.enter_context(
            serving(argv, adbd_port, folder / "adbd.log", env=env | listen, cwd=folder)
        )
        if strays := [where for where in listening(adbd.pid) if where[0] != "127.0.0.1"]:
            raise DeviceUnreachable(f"adbd listens beyond loopback, on {strays}: it was ended")
        server = running.enter_context(
            serving(
                [adb_program(), "-P", str(server_port), "nodaemon", "server"],
                server_port,
                folder / "adb-server.log",
                env=env | _NO_OTHER_DEVICES,
                cwd=folder,
            )
        )
        yield Phone(f"127.0.0.1:{adbd_port}", ("127.0.0.1", server_port), adbd, server)


def adbd_files(architecture: str | None = None, cache: Path | None = None) -> AdbdFiles:
    """Debian's adbd with its libraries, fetched at the first call.

    Several processes may ask at once: one fetches, and nobody sees an unfinished folder.

    Args:
        architecture: Debian's name (``amd64``, ``arm64``) for the machine it is for; this
            machine's own if ``None``.
        cache: where it is kept; the user's cache if ``None``.

    Raises:
        DeviceUnreachable: if it cannot be fetched.
    """
    architecture = architecture or own_architecture()
    root = _cache(cache) / architecture
    if not root.exists():
        with FileLock(root.with_suffix(".lock")):
            if not root.exists():
                aside = root.with_name(f".{secrets.token_hex(8)}.part")
                try:
                    unpack(["adbd"], _SUITE, architecture, aside)
                    aside.rename(root)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    (loader,) = root.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*")
    libraries = (loader.parent / "android", loader.parent)
    return AdbdFiles(loader, libraries, root / "usr/lib/android-sdk/platform-tools/adbd")


def build_shim(architecture: str | None = None, cache: Path | None = None) -> Path:
    """The library to preload into adbd, compiled at the first call.

    Args:
        architecture, cache: as for :func:`adbd_files`.

    Raises:
        DeviceUnreachable: without a C++ compiler for that machine.
    """
    architecture = architecture or own_architecture()
    digest = hashlib.sha256(_SHIM.read_bytes()).hexdigest()[:16]
    built = _cache(cache) / f"adbprops-{architecture}-{digest}.so"
    if built.exists():
        return built
    compiler = _COMPILERS.get(architecture, "g++")
    if shutil.which(compiler) is None:
        raise DeviceUnreachable(
            f"no C++ compiler for {architecture} on this machine, to make adbd listen on "
            "loopback only",
            f"apt-get install g++-{compiler.removesuffix('-g++').replace('_', '-')}",
        )
    aside = built.with_name(f".{secrets.token_hex(8)}.part")
    try:
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", aside, _SHIM],
            check=True,
            capture_output=True,
        )
        aside.rename(built)
    except subprocess.CalledProcessError as error:
        raise DeviceUnreachable(
            f"{_SHIM.name} does not compile: {error.stderr.decode()}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return built


def own_architecture() -> str:
    """Debian's name for this machine."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}.get(machine, machine)


def listening(pid: int) -> list[tuple[str, int]]:
    """The addresses and TCP ports a process listens on; all of IPv6 reads ``::``."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = descriptor.readlink().name
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
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


def _check_preload(argv: list[str]) -> None:
    """The loader only warns of a library it cannot preload; adbd must not start without it."""
    loader, *options, program = argv
    done = subprocess.run(
        [loader, *options, "--list", program], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or options[-1] not in done.stdout:
        raise DeviceUnreachable(
            f"adbd's library {options[-1]} cannot be preloaded: {done.stderr.strip()}"
        )


def _cache(cache: Path | None) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (cache or home / "edgeloop" / "adbd").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
