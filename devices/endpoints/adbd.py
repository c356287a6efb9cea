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
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from devices.endpoints.debian import unpack
from devices.endpoints.processes import free_port, listening, serving
from devices.transport.adb import adb_program
from devices.transport.adb_wire import Server
from profiles.errors import DeviceUnreachable

_SUITE = "trixie"
_SHIM = Path(__file__).with_name("adbprops.cc")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_COMPILERS = {"amd64": "x86_64-linux-gnu-g++", "arm64": "aarch64-linux-gnu-g++"}
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
    server: Server
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
    port = free_port()
    listen = {"ADBD_LISTEN": f"tcp:localhost:{port}"}
    with serving(argv, port, folder / "adbd.log", env=env | listen, cwd=folder) as adbd:
        if strays := [where for where in listening(adbd.pid) if where[0] != "127.0.0.1"]:
            raise DeviceUnreachable(f"adbd listens beyond loopback, on {strays}: it was ended")
        with serve_adb_server(folder) as (server, process):
            yield Phone(f"127.0.0.1:{port}", server, adbd, process)


@contextmanager
def serve_adb_server(folder: Path) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """Start an adb server that knows no device but those it is told to connect to.

    Args:
        folder: for its keys and its log.

    Returns:
        Its host and port, and its process.

    Raises:
        DeviceUnreachable: if it does not start.
    """
    port = free_port()
    argv = [adb_program(), "-P", str(port), "nodaemon", "server"]
    env = {"PATH": _PATH, "HOME": str(folder), "TMPDIR": str(folder)} | _NO_OTHER_DEVICES
    with serving(argv, port, folder / "adb-server.log", env=env, cwd=folder) as process:
        yield ("127.0.0.1", port), process


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
                aside = root.with_name(f".{architecture}.part")
                shutil.rmtree(aside, ignore_errors=True)  # of one who was killed at it
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
