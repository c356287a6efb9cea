"""An aarch64 board and an aarch64 phone on this machine, their servers run under qemu-user.

The kernel is this machine's and the processor a program, so what is measured there says nothing
about ARM hardware: every inventory entry says ``emulated: true``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.endpoints import sshd
from devices.endpoints.adbd import adbd_files, build_shim, serve_adb_server
from devices.endpoints.machine import Machine, end
from devices.endpoints.phone import install_phone
from devices.endpoints.processes import await_port, free_port, listening
from devices.endpoints.rootfs import ARCHITECTURE, Rootfs
from profiles.errors import DeviceUnreachable

_PHONE = "/system/recorded"
_PHONE_SERIAL = "EMULATEDARM1"  # another than the recorded phone's outside
_PHONE_ROOT = "/data/local/tmp/edgeloop"
# Without the library it would listen on every address; the loader only warns of one it lacks.
_WITH_SHIM = """
"$1" "$2" "$3" "$4" "$5" --list "$6" | grep -qF "$5" || { echo "no library $5" >&2; exit 1; }
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class EmulatedBoard:
    """A running aarch64 SSH server: how to reach it, and its first process."""

    port: int
    key_file: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]

    def inventory_entry(self, device_id: str, environment: str = "current") -> dict[str, Any]:
        """This server as a device of ``devices.yaml``.

        Args:
            device_id: its id.
            environment: which of the folder's Pythons runs the agent, see
                :meth:`~devices.endpoints.rootfs.Rootfs.python`.
        """
        return ssh_entry(device_id, self.port, self.key_file, self.known_hosts, environment)


def ssh_entry(
    device_id: str,
    port: int,
    key_file: Path,
    known_hosts: Path,
    environment: str,
    machine: str = "aarch64",
) -> dict[str, Any]:
    """A system of ours behind an sshd on loopback, as a device of ``devices.yaml``."""
    return {
        "id": device_id,
        "profile": f"linux-{machine}",
        "address": f"ssh://root@127.0.0.1:{port}",
        "key_file": str(key_file),
        "known_hosts": str(known_hosts),
        "python": Rootfs.python(environment),
        "emulated": True,
    }


@contextmanager
def serve_board(rootfs: Rootfs, folder: Path) -> Iterator[EmulatedBoard]:
    """Start the folder's own SSH server on loopback, and end it on any way out.

    Args:
        rootfs: the folder.
        folder: for keys and for what the board writes; made if needed, and kept.

    Raises:
        DeviceUnreachable: if it does not come up.
    """
    keys, port = folder.absolute() / "keys", free_port()
    keys.mkdir(parents=True, exist_ok=True)
    keys.chmod(0o700)
    sshd.make_keys(keys, port)
    machine = Machine.make(rootfs, folder / "board")
    inside = machine.path("etc/edgeloop/sshd_config").parent
    for name in ("host_key", "authorized_keys"):
        shutil.copy(keys / name, inside)
    (inside / "sshd_config").write_text(sshd.CONFIG.format(port=port, folder="/etc/edgeloop"))
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/edgeloop/sshd_config"]
    with _started(machine, argv, port, folder / "sshd.log") as process:
        yield EmulatedBoard(port, keys / "user_key", keys / "known_hosts", process)


@contextmanager
def serve_phone(rootfs: Rootfs, folder: Path) -> Iterator[dict[str, Any]]:
    """Start the aarch64 adbd on loopback and an adb server for it; end both on any way out.

    Args:
        rootfs: the folder.
        folder: for logs and for what the phone writes; made if needed, and kept.

    Returns:
        The phone, without an id, as a device of ``devices.yaml``.

    Raises:
        DeviceUnreachable: if it does not come up.
    """
    machine = Machine.make(rootfs, folder / "phone")
    install_phone(machine.path(_PHONE), _PHONE_SERIAL)
    machine.path(f"{_PHONE_ROOT}/").mkdir(parents=True, exist_ok=True)
    command = _install_adbd(machine)
    port = free_port()
    environment = (
        f"PATH={_PHONE}/bin:/usr/bin:/bin",
        "HOME=/data/local/tmp",
        f"ADBD_LISTEN=tcp:localhost:{port}",
    )
    argv = ["/usr/bin/env", "-i", *environment, "sh", "-c", _WITH_SHIM, "sh", *command]
    with ExitStack() as running:
        running.enter_context(_started(machine, argv, port, folder / "adbd.log"))
        (host, server_port), _server = running.enter_context(serve_adb_server(folder))
        yield {
            "profile": "android",
            "address": f"adb:127.0.0.1:{port}",
            "adb_server": f"{host}:{server_port}",
            "root": _PHONE_ROOT,
            "emulated": True,
        }


def _install_adbd(machine: Machine) -> list[str]:
    """Copy adbd and its shim into the machine, under the paths they have here.

    Returns:
        The command line that starts it there.
    """
    files, shim = adbd_files(ARCHITECTURE), build_shim(ARCHITECTURE)
    root = files.program.parents[4]
    shutil.copytree(root, machine.path(str(root)), symlinks=True, dirs_exist_ok=True)
    shutil.copy(shim, machine.path(str(shim)))
    return files.command(shim)


@contextmanager
def _started(
    machine: Machine, argv: Sequence[str], port: int, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a machine, while in context; entered once its port is listened on."""
    with log.open("wb") as sink:
        process = machine.start(argv, sink)
    try:
        await_port(port, process, log)
        _check_addresses(process, port, log)
        yield process
    finally:
        end(process)


def _check_addresses(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """See that it is the machine's first process that listens there, and on loopback alone."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [where for child in children for where in listening(int(child))]
    if found != [("127.0.0.1", port)]:
        raise DeviceUnreachable(f"{log.stem} listens on {found} instead of loopback: it was ended")
