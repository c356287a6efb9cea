"""``python -m tools.endpoints``: a lab for anyone to try, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.endpoints.adbd import adbd_files, build_shim
from devices.endpoints.sshd import find_sshd
from profiles.errors import DeviceUnreachable
from tests.projects import device_lab

pytestmark = [pytest.mark.sshd, pytest.mark.adbd]


@dataclass(frozen=True)
class RunningLab:
    process: subprocess.Popen[str]
    inventory: Path

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in yaml.safe_load(self.inventory.read_text())["devices"]}

    @property
    def ports(self) -> list[int]:
        phone = self.entries["phone"]
        texts = (self.entries["board"]["address"], phone["address"], phone["adb_server"])
        return [int(text.rpartition(":")[2]) for text in texts]

    def descendants(self) -> list[int]:
        """What it has started."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.process.pid:
                found.append(int(stat.parent.name))
        return found


@pytest.fixture(scope="module")
def _able() -> None:
    if find_sshd() is None:
        pytest.skip("no OpenSSH server on this machine (apt-get install openssh-server)")
    try:
        adbd_files()
        build_shim()
    except DeviceUnreachable as error:
        pytest.skip(f"no adbd on this machine: {error}")


def start(folder: Path) -> RunningLab:
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.endpoints", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return RunningLab(process, folder / "devices.yaml")


@pytest.fixture
def running(_able: None, tmp_path: Path) -> Iterator[RunningLab]:
    started = start(tmp_path / "lab")
    assert started.process.stderr is not None
    try:
        # It says what to try once everything runs.
        assert started.process.stderr.readline().startswith("try: device-lab devices list")
        yield started
    finally:
        started.process.terminate()
        started.process.communicate()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def gone(running: RunningLab, processes: list[int]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        left = [pid for pid in processes if Path(f"/proc/{pid}/cwd").exists()]
        if not left and not any(map(answers, running.ports)):
            return True
        time.sleep(0.05)
    return False


def test_it_prints_the_inventory_it_wrote(running):
    os.kill(running.process.pid, signal.SIGINT)
    said, _ = running.process.communicate(timeout=60)
    assert yaml.safe_load(said) == yaml.safe_load(running.inventory.read_text())
    assert list(running.entries) == ["board", "phone"]
    assert running.entries["phone"]["emulated"] is True


def test_its_devices_are_there_to_be_measured(running):
    asked = ("--inventory", running.inventory)
    for name in ("board", "phone"):
        done = device_lab("devices", "doctor", name, *asked)
        assert done.returncode == 0, done.stdout + done.stderr
    done = device_lab("devices", "list", *asked, "--json")
    listed = {row["id"]: row for row in json.loads(done.stdout)}
    assert {name: row["state"] for name, row in listed.items()} == {
        "board": "ready",
        "phone": "ready",
    }
    assert (listed["board"]["emulated"], listed["phone"]["emulated"]) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running(running, number):
    processes = running.descendants()
    assert len(processes) == 3
    assert all(map(answers, running.ports))
    os.kill(running.process.pid, number)
    code = running.process.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert gone(running, processes)


def test_a_folder_holds_one_lab_at_a_time(running):
    done = subprocess.run(
        [sys.executable, "-m", "tools.endpoints", "--folder", str(running.inventory.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is in use by another lab" in done.stderr
    assert all(map(answers, running.ports))
