"""A real OpenSSH server on loopback: this machine as an SSH board, for demos and tests.

It runs as the calling user, listens on 127.0.0.1 only, accepts one key made for the occasion and
no password, and is ended by its process id.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devices.endpoints.processes import free_port, serving
from profiles.errors import DeviceUnreachable

# SHLVL keeps bash from reading a heavy start-up file before each command.
CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey "{folder}/host_key"
PidFile "{folder}/sshd.pid"
AuthorizedKeysFile "{folder}/authorized_keys"
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
SetEnv SHLVL=1
"""


def find_sshd() -> str | None:
    """The OpenSSH server's program, or ``None`` where it is not installed."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class LoopbackServer:
    """A running server: how to reach it, and its process."""

    port: int
    user: str
    key_file: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]

    def inventory_entry(self, device_id: str, root: str) -> dict[str, str]:
        """This server as a device of ``devices.yaml``, with this Python as the agent's."""
        return {
            "id": device_id,
            "profile": f"linux-{os.uname().machine}",
            "address": f"ssh://{self.user}@127.0.0.1:{self.port}",
            "key_file": str(self.key_file),
            "known_hosts": str(self.known_hosts),
            "python": sys.executable,
            "root": root,
        }


@contextmanager
def serve(folder: Path) -> Iterator[LoopbackServer]:
    """Start the server, and end it on any way out.

    Args:
        folder: for its keys and configuration; made if needed.

    Raises:
        DeviceUnreachable: if no server is installed or it does not come up.
    """
    program = find_sshd()
    if program is None:
        raise DeviceUnreachable(
            "no OpenSSH server on this machine", "apt-get install openssh-server"
        )
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    port = free_port()
    make_keys(folder, port)
    config = folder / "sshd_config"
    config.write_text(CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation insists on it
    argv = [program, "-D", "-e", "-f", str(config)]
    with serving(argv, port, folder / "sshd.log") as process:
        yield LoopbackServer(
            port, getpass.getuser(), folder / "user_key", folder / "known_hosts", process
        )


def make_keys(folder: Path, port: int) -> None:
    """See that a folder holds a host key, a user's key, and the files that name them."""
    for name in ("host_key", "user_key"):
        if not (folder / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name],  # noqa: S607
                check=True,
            )
    shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
