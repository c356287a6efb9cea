"""The store on a device stays within its limit, and nothing in use is removed for that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import push
from devices.push import RemoteStore
from devices.transport.base import Completed
from devices.transport.local import LocalTransport
from profiles.errors import DeviceFull

UNIT = 10_000


class Counting(LocalTransport):
    """The local transport, counting its commands."""

    commands = 0

    def run(self, argv, *, deadline_s, on_line=None) -> Completed:
        self.commands += 1
        return super().run(argv, deadline_s=deadline_s, on_line=on_line)


def make(folder: Path, number: int, units: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.bin"
    path.write_bytes(bytes([number]) * (units * UNIT))
    return path


def ensure(home: Path, *files: Path, limit: int) -> list[Path]:
    """A visit of its own: nothing of earlier ones is in use."""
    store = RemoteStore(LocalTransport(home), "root", limit_bytes=limit * UNIT)
    where = store.ensure(files)
    return [home / where[path] for path in files]


def stored(home: Path) -> set[int]:
    return {path.read_bytes()[0] for path in (home / "root" / "store").iterdir()}


@given(visits=st.lists(st.integers(0, 5), min_size=1, max_size=10), limit=st.integers(3, 12))
@settings(max_examples=15)
def test_the_least_recently_used_go_first(visits, limit):
    """Against a model: file n takes n + 1 units; the one used last is at the end."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model: list[int] = []
        for number in visits:
            path = make(home / "host", number, number + 1)
            if number + 1 > limit:
                with pytest.raises(DeviceFull):
                    ensure(home, path, limit=limit)
                assert stored(home) == set(model)
                continue
            ensure(home, path, limit=limit)
            if number in model:
                model.remove(number)
            else:
                while sum(model) + len(model) + number + 1 > limit:
                    model.pop(0)
            model.append(number)
            assert stored(home) == set(model)


@contextmanager
def user_of(path: Path, how: str) -> Iterator[None]:
    """A process on the device that uses a file."""
    program = {
        "open": "import sys; held = open(sys.stdin.readline().strip())",
        "mapped": """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
with open(sys.stdin.readline().strip()) as stream:  # Python's own mmap keeps the file open
    held = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED,
                     stream.fileno(), ctypes.c_long(0))
""",
        "named": "import sys; sys.stdin.readline()",
    }[how]
    argv = [sys.executable, "-S", "-E", "-c", program + "\nprint('ready', flush=True)"]
    argv[-1] += "\nsys.stdin.readline()"
    if how == "named":
        argv.append(str(path))
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc on this machine")
@pytest.mark.parametrize("how", ["open", "mapped", "named"])
def test_what_a_process_uses_stays(tmp_path, how):
    files = [make(tmp_path / "host", number, 2) for number in range(3)]
    oldest = ensure(tmp_path, files[0], limit=4)[0]
    ensure(tmp_path, files[1], limit=4)
    with user_of(oldest, how):
        ensure(tmp_path, files[2], limit=4)
        assert stored(tmp_path) == {0, 2}
    ensure(tmp_path, files[1], limit=4)
    assert stored(tmp_path) == {1, 2}


def test_what_this_visit_asked_for_stays(tmp_path):
    files = [make(tmp_path / "host", number, 2) for number in range(3)]
    store = RemoteStore(LocalTransport(tmp_path), "root", limit_bytes=4 * UNIT)
    store.ensure([files[0]])
    store.ensure([files[1]])
    with pytest.raises(DeviceFull, match="limit of 40000") as caught:
        store.ensure([files[2]])
    assert "limit" in caught.value.hint
    assert stored(tmp_path) == {0, 1}
    store.ensure(files[:2])


def test_nothing_is_removed_for_a_file_that_cannot_fit(tmp_path):
    ensure(tmp_path, make(tmp_path / "host", 0, 2), limit=4)
    with pytest.raises(DeviceFull):
        ensure(tmp_path, make(tmp_path / "host", 1, 5), limit=4)
    assert stored(tmp_path) == {0}


def test_a_strangers_file_in_the_folder_is_left_alone(tmp_path):
    ensure(tmp_path, make(tmp_path / "host", 0, 1), limit=4)
    stranger = tmp_path / "root" / "store" / "notes of mine.txt"
    stranger.write_bytes(bytes(2 * UNIT))
    os.utime(stranger, (0, 0))
    with pytest.raises(DeviceFull):
        ensure(tmp_path, make(tmp_path / "host", 1, 3), limit=4)
    ensure(tmp_path, make(tmp_path / "host", 2, 2), limit=4)
    assert stranger.exists()
    assert len(list(stranger.parent.iterdir())) == 2


def test_programs_may_be_started_from_the_store_by_their_owner_alone(tmp_path):
    program = tmp_path / "host"
    program.mkdir()
    (program / "agent").write_text("#!/bin/sh\necho it runs\n")
    (remote,) = ensure(tmp_path, program / "agent", limit=4)
    assert remote.stat().st_mode & 0o777 == 0o700
    done = LocalTransport(tmp_path).run([str(remote)], deadline_s=30)
    assert done.stdout == b"it runs\n"


def test_more_files_than_a_command_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(push, "_BATCH", 4)
    files = [make(tmp_path / "host", number, 1) for number in range(10)]
    ensure(tmp_path, *files, limit=100)
    transport = Counting(tmp_path)
    store = RemoteStore(transport, "root")
    where = store.ensure(files)
    assert [(tmp_path / where[path]).read_bytes()[0] for path in files] == list(range(10))
    assert transport.commands == 3


def test_five_hundred_files_are_asked_for_in_one_command(tmp_path):
    """The longest a command may be on Linux is 128 KiB, whatever quoting adds to it."""
    names = [f"{number:064x}.executorch" for number in range(push._BATCH)]
    store = RemoteStore(LocalTransport(tmp_path), "a folder of this length is not rare, is it?")
    assert store._ask(names).stored == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "edgeloop-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_made_room_on_once(small_disk, tmp_path):
    old = [make(tmp_path / "host", number, 25) for number in range(3)]
    for path in old:
        ensure(small_disk, path, limit=1000)
    ensure(small_disk, make(tmp_path / "host", 7, 50), limit=1000)
    assert stored(small_disk) == {2, 7}
    assert list((small_disk / "root" / "incoming").iterdir()) == []


def test_a_disk_full_of_what_is_in_use(small_disk, tmp_path):
    store = RemoteStore(LocalTransport(small_disk), "root")
    store.ensure([make(tmp_path / "host", 1, 60)])
    with pytest.raises(DeviceFull, match=r"2\.bin \(600000 bytes\)"):
        store.ensure([make(tmp_path / "host", 2, 60)])
    assert stored(small_disk) == {1}
    assert list((small_disk / "root" / "incoming").iterdir()) == []


def test_a_disk_that_fills_while_the_device_hashes(small_disk, tmp_path):
    with pytest.raises(DeviceFull):
        ensure(small_disk, make(tmp_path / "host", 2, 600), limit=1000)
    assert list((small_disk / "root" / "incoming").iterdir()) == []
