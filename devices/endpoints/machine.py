"""Running aarch64 programs on this machine, in a folder that is their whole world.

Nothing of this machine changes: qemu is registered as the interpreter of aarch64 programs in a user
namespace of the folder's own (Linux 6.7 and newer), the shared folder lies under a layer that takes
all writes, and whatever was started there ends with the process that started it.  The network is
this machine's: servers inside must bind loopback, as those outside.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from devices.endpoints.rootfs import Rootfs
from profiles.errors import DeviceUnreachable

_QEMU = "qemu-aarch64-static"
#: An ELF file of 64 bits, little-endian, executable or shared, for machine 0xb7; F keeps the
#: interpreter open, so that it need not be in the folder, P hands over the program's own name.
#: Source: elf(5), and the kernel's Documentation/admin-guide/binfmt-misc.rst.
_RULE = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:PF"
)
# In a new user namespace: wait for its user ids, then go on as their root.  Becoming root takes
# back the promise to end with the parent, so it is made here and not before.
_AS_ROOT = (
    "echo; read -r go || exit 1; exec >&2; "
    "exec setpriv --pdeathsig=KILL -- unshare --mount --pid --fork --kill-child=KILL -- "
    'sh -c "$@"'
)
# Mount what the folder needs and go there; the layer's folders are named by relative paths,
# because mount's options have no way to quote a comma.
_GO_IN = """
set -e
lower=$1 folder=$2 rule=$3; shift 3
cd "$folder"
mount -t proc proc /proc
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf %s "$rule" > /proc/sys/fs/binfmt_misc/register
mount --bind "$lower" lower
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr overlay root
mount --rbind /dev root/dev
mount -t proc proc root/proc
mount --bind cpuinfo root/proc/cpuinfo
exec chroot root "$@"
"""
# qemu-user of Debian 12 shows this machine's own processor otherwise.
_CORES = os.cpu_count() or 1
_CPUINFO = "".join(
    f"processor\t: {core}\nmodel name\t: emulated aarch64 (qemu-user)\n\n" for core in range(_CORES)
)
# ONNX Runtime counts cores here, and complains of each that it cannot find.
_CORE_LISTS = ("sys/devices/system/cpu/possible", "sys/devices/system/cpu/present")


def missing() -> str | None:
    """Why aarch64 programs cannot be run here, with the remedy; ``None`` if they can."""
    if os.geteuid() != 0:
        return "only root may go into another machine's folder with all its users"
    if shutil.which(_QEMU) is None:
        return f"no {_QEMU} here (apt-get install qemu-user-static)"
    tried = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "--"),
            *("mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"),
        ],
        capture_output=True,
        check=False,
    )
    if tried.returncode != 0:
        return "this kernel has no binfmt_misc for a user namespace (Linux 6.7 has)"
    return None


@dataclass(frozen=True, slots=True)
class Machine:
    """A folder's programs with a layer for what they write.

    Args:
        rootfs: the folder below, never written.
        folder: for the layer; one machine at a time runs in it.
    """

    rootfs: Rootfs
    folder: Path

    @classmethod
    def make(cls, rootfs: Rootfs, folder: Path) -> Machine:
        """Prepare the layer; a folder that was used before keeps its files and its identity."""
        machine = cls(rootfs, folder.absolute())
        for name in ("lower", "upper", "work", "root"):
            (machine.folder / name).mkdir(parents=True, exist_ok=True)
        (machine.folder / "cpuinfo").write_text(_CPUINFO)
        for name in _CORE_LISTS:
            machine.path(name).write_text(f"0-{_CORES - 1}\n")
        identity = machine.path("etc/machine-id")
        if not identity.exists():
            identity.write_text(secrets.token_hex(16) + "\n")
        return machine

    def path(self, inside: str) -> Path:
        """Where this host finds, or may put, a file of the layer while the machine is off."""
        path = self.folder / "upper" / inside.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, argv: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program in the machine, as its first process: with it, all others end.

        Args:
            argv: the program and its arguments, as paths inside.
            log: takes what it prints.

        Raises:
            DeviceUnreachable: if this kernel does not let us in.
        """
        rule = _RULE.format(qemu=shutil.which(_QEMU))
        process = subprocess.Popen(
            [
                *("unshare", "--user", "--", "sh", "-c", _AS_ROOT, "sh", _GO_IN, "sh"),
                *(str(self.rootfs.path), str(self.folder), rule, *argv),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            _map_users(process)
        except (OSError, DeviceUnreachable):
            process.kill()
            process.wait()
            raise
        return process


def _map_users(process: subprocess.Popen[bytes]) -> None:
    """Let the waiting process be every user that this machine's root can be."""
    if process.stdout is None or process.stdin is None or process.stdout.readline() != b"\n":
        raise DeviceUnreachable("this kernel gives no user namespace")
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{kind}").write_text("0 0 65536\n")
    process.stdin.write(b"go\n")
    process.stdin.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a machine: its first process, and with it all that ran there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
