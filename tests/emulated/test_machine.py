"""A folder of aarch64 programs runs here, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.endpoints.emulated import EmulatedBoard, serve_board
from devices.endpoints.machine import Machine, end
from devices.endpoints.processes import listening
from devices.endpoints.rootfs import Rootfs
from devices.transport.ssh import SshTransport

pytestmark = [pytest.mark.emulated, pytest.mark.root]

# A host process that starts a board, says how to find it, and never ends it.
_HOST = """
import sys, time
from pathlib import Path
from devices.endpoints.emulated import serve_board
from devices.endpoints.rootfs import rootfs
with serve_board(rootfs(), Path(sys.argv[1])) as board:
    print(board.port, board.process.pid, flush=True)
    time.sleep(600)
"""


def connect(board: EmulatedBoard) -> SshTransport:
    return SshTransport("127.0.0.1", board.port, "root", board.key_file, board.known_hosts)


def first_process(process: subprocess.Popen[bytes]) -> int:
    """The host's number of what is process 1 inside."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def within(seconds: float, holds) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_its_programs_are_of_another_machine(arm_board):
    transport = connect(arm_board)
    try:
        done = transport.run(["uname", "-m"], deadline_s=60)
        python = transport.run(
            [Rootfs.python(), "-c", "import platform; print(platform.machine())"], deadline_s=60
        )
    finally:
        transport.close()
    assert done.stdout == python.stdout == b"aarch64\n"


@pytest.mark.skipif(
    Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists(),
    reason="this machine runs aarch64 itself",
)
def test_this_machine_learns_nothing_from_it(arm_rootfs, arm_board):
    """Only inside are aarch64 programs started by qemu."""
    assert answers(arm_board.port)
    with pytest.raises(OSError, match="Exec format error"):
        subprocess.run([arm_rootfs.path / "usr/bin/true"], check=False)


def test_it_listens_on_loopback_alone(arm_board):
    assert {address for address, _ in listening(first_process(arm_board.process))} == {"127.0.0.1"}


def test_the_shared_folder_is_never_written(arm_rootfs, tmp_path):
    with serve_board(arm_rootfs, tmp_path / "board") as board:
        transport = connect(board)
        done = transport.run(["sh", "-c", "echo mine > /usr/bin/env && cat /usr/bin/env"],
                             deadline_s=60)  # fmt: skip
        transport.close()
    assert done.stdout == b"mine\n"
    assert (arm_rootfs.path / "usr/bin/env").read_bytes()[:4] == b"\x7fELF"


def test_what_was_written_and_who_it_is_outlast_a_restart(arm_rootfs, tmp_path):
    seen = []
    for _ in range(2):
        with serve_board(arm_rootfs, tmp_path / "board") as board:
            transport = connect(board)
            script = "echo once >> /root/log; cat /root/log /etc/machine-id"
            seen.append(transport.run(["sh", "-c", script], deadline_s=60).stdout.split())
            transport.close()
    assert seen[1] == [b"once", *seen[0]]
    other = Machine.make(arm_rootfs, tmp_path / "other").path("etc/machine-id").read_bytes()
    assert other.strip() != seen[0][-1]


def test_everything_in_it_ends_with_it(arm_rootfs, tmp_path):
    machine = Machine.make(arm_rootfs, tmp_path / "machine")
    with (tmp_path / "log").open("wb") as log:
        process = machine.start(["sh", "-c", "setsid sleep 600 & echo $! >&2; wait"], log)
    assert within(30, lambda: (tmp_path / "log").read_text().strip())
    inside = Path(f"/proc/{first_process(process)}/root")
    end(process)
    assert within(10, lambda: not inside.exists())
    # The sleep had a session of its own: only the end of the whole machine reaches it.
    mark = str(machine.folder)
    assert within(10, lambda: not any(mark in text for text in mount_tables()))


def mount_tables() -> list[str]:
    tables = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            tables.append((process / "mounts").read_text())
        except OSError:
            continue
    return tables


def test_it_ends_with_the_process_that_started_it(arm_rootfs, tmp_path):
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert host.stdout is not None
    port, pid = map(int, host.stdout.readline().split())
    inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert answers(port)
    assert inside
    os.kill(host.pid, signal.SIGKILL)
    host.wait()
    host.stdout.close()
    assert within(10, lambda: not answers(port))
    assert within(10, lambda: not any(Path(f"/proc/{one}").exists() for one in [pid, *inside]))
