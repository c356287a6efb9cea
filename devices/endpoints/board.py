"""A whole board on this machine: its own kernel, disk and network card, under qemu-system.

Unlike :mod:`devices.endpoints.emulated` it can lose its link, be restarted and be frozen, and its
kernel can make the link a bad one (:func:`flaky_link`).  It reaches nothing but this machine's
loopback, and forgets what was written to its disk when it is ended.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.endpoints import sshd
from devices.endpoints.emulated import ssh_entry
from devices.endpoints.image import DRIVERS, Image, make_disk
from devices.endpoints.processes import free_port, serving
from devices.endpoints.rootfs import AARCH64, System
from profiles.errors import DeviceUnreachable

_BOOT_TIMEOUT_S = 300.0
_CONTROL_TIMEOUT_S = 10.0
# Source: QEMU's documentation, system/devices/net: the addresses of its user-mode network.
_ADDRESS, _GATEWAY = "10.0.2.15", "10.0.2.2"
# The first process of the board's own system; as such it may never end.
_INIT = f"""\
#!/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
cp /etc/edgeloop/machine-id /etc/machine-id
hostname board
ip link set lo up
ip link set eth0 up
ip address add {_ADDRESS}/24 dev eth0
ip route add default via {_GATEWAY}
ip link set ifb0 up
. /etc/edgeloop/start
/usr/sbin/sshd -D -e -f /etc/edgeloop/sshd_config &
while :; do wait; sleep 1; done
"""
# Both directions: what leaves goes through netem, what arrives through a detour with a netem.
_FLAKY = """
tc qdisc replace dev eth0 root netem "$@" &&
tc qdisc replace dev ifb0 root netem "$@" &&
{ tc qdisc delete dev eth0 ingress 2>/dev/null; tc qdisc add dev eth0 ingress; } &&
tc filter add dev eth0 ingress matchall action mirred egress redirect dev ifb0
"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of board.

    Args:
        system: what its disk holds.
        package: of Debian, with its emulator.
        machine: the emulator's options for its main board and processor.
        console: the kernel's name for its first serial line.
        drivers: what its kernel loads, see :func:`~devices.endpoints.image.board_image`.
        start: shell lines that its first process reads before it serves SSH.
    """

    system: System
    package: str
    machine: tuple[str, ...]
    console: str
    drivers: tuple[str, ...] = DRIVERS
    start: str = ""

    @property
    def emulator(self) -> str:
        """The program that plays it."""
        return f"qemu-system-{self.system.machine}"


ARM_BOARD = Hardware(
    AARCH64, "qemu-system-arm", ("-M", "virt", "-cpu", "max,pauth=off"), console="ttyAMA0"
)


def missing(hardware: Hardware = ARM_BOARD) -> str | None:
    """Why no such board can be started here, with the remedy; ``None`` if it can."""
    if shutil.which(hardware.emulator) is None:
        return f"no {hardware.emulator} here (apt-get install {hardware.package})"
    return None


def flaky_link(*netem: str) -> list[str]:
    """The command that makes the board's link a bad one, or with no arguments a good one.

    Args:
        netem: as tc-netem(8) takes them, say ``delay 40ms loss 2% rate 20mbit``.
    """
    return ["sh", "-c", _FLAKY, "sh", *netem]


@dataclass(frozen=True, slots=True)
class Board:
    """A running board: how to reach it, its process, and the way to its switches."""

    hardware: Hardware
    port: int
    key_file: Path
    known_hosts: Path
    control: Path
    process: subprocess.Popen[bytes]

    def inventory_entry(self, device_id: str, environment: str = "current") -> dict[str, Any]:
        """This board as a device of ``devices.yaml``; see :class:`.emulated.EmulatedBoard`."""
        machine = self.hardware.system.machine
        return ssh_entry(
            device_id, self.port, self.key_file, self.known_hosts, environment, machine
        )

    def set_link(self, up: bool) -> None:
        """Plug the network cable in, or out."""
        self._tell("set_link", name="net0", up=up)

    def restart(self) -> None:
        """Press the reset button; returns at once."""
        self._tell("system_reset")

    def freeze(self, frozen: bool) -> None:
        """Stop the board's clock and processor, or let them go on."""
        self._tell("stop" if frozen else "cont")

    def await_ssh(self, timeout_s: float = _BOOT_TIMEOUT_S) -> None:
        """Wait until the board's SSH server answers.

        Raises:
            DeviceUnreachable: if it does not in time, or the board has ended.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            # The emulator takes any connection, and passes it on only if the board answers.
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 5) as stream,
            ):
                if stream.recv(4) == b"SSH-":
                    return
            time.sleep(0.2)
        raise DeviceUnreachable(f"the board has no SSH server after {timeout_s:.0f} s")

    def _tell(self, command: str, **arguments: Any) -> None:
        """One command to the emulator. Source: QEMU's documentation, interop/qmp-spec."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_CONTROL_TIMEOUT_S)
            line.connect(str(self.control))
            with line.makefile("rwb") as stream:
                stream.readline()
                for name, given in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": name, "arguments": given}).encode())
                    stream.flush()
                    answer: dict[str, Any] = {"event": None}
                    while "event" in answer:
                        answer = json.loads(stream.readline())
                    if "return" not in answer:
                        raise DeviceUnreachable(f"the emulator refuses {name}: {answer}")


@contextmanager
def serve(image: Image, folder: Path, hardware: Hardware = ARM_BOARD) -> Iterator[Board]:
    """Start a board and wait for its SSH server; end it on any way out.

    Args:
        image: what it starts from.
        folder: for keys and logs; made if needed.
        hardware: what it is, the same as its image is for.

    Raises:
        DeviceUnreachable: if it does not come up.
    """
    folder = folder.absolute()
    keys, own, port = folder / "keys", folder / "own", free_port()
    for path in (keys, own):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    sshd.make_keys(keys, port)
    _write_own(own, keys, hardware)
    make_disk(own, folder / "own.img", "4M")
    control = folder / "control"
    argv = [
        *(hardware.emulator, *hardware.machine, "-smp", "2", "-m", "1024"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-user-config"),
        *("-kernel", str(image.kernel), "-initrd", str(image.memory_disk)),
        *("-append", f"console={hardware.console} quiet panic=-1"),
        *_drive("disk", image.disk),
        *_drive("own", folder / "own.img"),
        *("-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-{_ADDRESS}:22"),
        *("-device", "virtio-net-pci,netdev=net0,id=card,romfile="),
        *("-qmp", f"unix:{_escaped(control)},server=on,wait=off"),
    ]
    with serving(argv, port, folder / "board.log") as process:
        known = keys / "known_hosts"
        board = Board(hardware, port, keys / "user_key", known, control, process)
        board.await_ssh()
        yield board


def _drive(name: str, path: Path) -> tuple[str, ...]:
    """A disk; what is written to it goes to a file without a name, and is gone with the board."""
    where = f"file={_escaped(path)},format=raw,if=none,id={name},snapshot=on"
    return ("-drive", where, "-device", f"virtio-blk-pci,drive={name}")


def _escaped(path: Path) -> str:
    """A path in an option, where a comma is written twice."""
    return str(path).replace(",", ",,")


def _write_own(own: Path, keys: Path, hardware: Hardware) -> None:
    """What this board has of its own: keys, identity, and its first process."""
    for name in ("host_key", "authorized_keys"):
        shutil.copy(keys / name, own)
    config = sshd.CONFIG.format(port=22, folder="/etc/edgeloop")
    config = config.replace("ListenAddress 127.0.0.1", f"ListenAddress {_ADDRESS}")
    (own / "sshd_config").write_text(config.replace('"/etc/edgeloop/sshd.pid"', "/run/sshd.pid"))
    (own / "start").write_text(hardware.start)
    (own / "init").write_text(_INIT)
    (own / "init").chmod(0o755)
    if not (own / "machine-id").exists():
        (own / "machine-id").write_text(secrets.token_hex(16) + "\n")
