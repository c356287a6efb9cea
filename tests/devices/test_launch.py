"""Leftovers: an agent that outlived its host is gone before the next begins, on every shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.launch import _CLEAR, clear_leftovers, host_word
from devices.transport.local import LocalTransport
from profiles.errors import DeviceBusy
from tests.processes import alive

APPLETS = ("sh", "grep", "tr", "kill", "sleep", "rm", "mkdir")


@contextlib.contextmanager
def leftover(root: Path, host: str) -> Iterator[int]:
    """A Python agent that goes on for nobody; its process id."""
    (root / "store").mkdir(parents=True)
    agent = root / "store" / "agent.pyz"
    agent.write_text("import time; time.sleep(600)")
    process = subprocess.Popen([sys.executable, str(agent)])
    (root / "agent.pid").write_text(f"{process.pid} {host}\n")
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def shell(folder: Path, name: str) -> list[str]:
    """A shell with nothing but its own kind of tools."""
    boxes = {"dash": ("dash", None), "busybox": ("busybox", "busybox"), "mksh": ("mksh", "toybox")}
    program, box = boxes[name]
    for needed in filter(None, (program, box)):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed} on this machine (apt-get install {needed})")
    if box is None:
        return [program]
    for applet in APPLETS:
        (folder / applet).symlink_to(shutil.which(box) or "")
    inner = ["busybox", "sh"] if name == "busybox" else [shutil.which("mksh") or ""]
    return [shutil.which("env") or "", f"PATH={folder}:/usr/bin", *inner]


@pytest.mark.parametrize("name", ["dash", "busybox", "mksh"])
def test_what_is_left_is_ended_on_every_shell(tmp_path, name):
    (tmp_path / "bin").mkdir()
    with leftover(tmp_path / "root", host_word()) as pid:
        command = [*shell(tmp_path / "bin", name), "-c", _CLEAR, "sh", str(tmp_path / "root")]
        done = subprocess.run([*command, host_word()], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert not alive(pid)
    assert not (tmp_path / "root/agent.pid").exists()


def test_another_hosts_agent_is_left_alone(tmp_path):
    with leftover(tmp_path, "another-host") as pid:
        with pytest.raises(DeviceBusy, match=str(pid)):
            clear_leftovers(LocalTransport(), str(tmp_path))
        assert alive(pid)


def test_a_process_that_came_by_the_number_of_a_dead_agent_is_left_alone(tmp_path):
    (tmp_path / "agent.pid").write_text(f"{os.getpid()} {host_word()}\n")
    clear_leftovers(LocalTransport(), str(tmp_path))
    assert alive(os.getpid())


@pytest.mark.parametrize("text", ["", "\n", "rubbish", "0 x\n", "-1 x\n", "99999999 x\n"])
def test_whatever_the_note_says_nothing_else_is_hurt(tmp_path, text):
    (tmp_path / "agent.pid").write_text(text)
    clear_leftovers(LocalTransport(), str(tmp_path))
