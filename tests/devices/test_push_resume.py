"""A push that breaks off is gone on with; whatever happens, a file is right or not there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.push import RemoteStore
from devices.transport.base import Completed, Transport
from devices.transport.local import LocalTransport
from profiles.canonical import file_sha256
from profiles.errors import ConnectionLost, DeviceError, IntegrityError
from tests.builders import ssh
from tests.processes import kill_connections

LARGE = 6_000_000  # enough for the device to hash while it receives


class Link:
    """A transport that loses its connection after so many bytes, or before an answer arrives.

    Args:
        cuts: for each push in turn, after how many bytes it breaks; ``None`` or no more: it works.
        lost_answers: numbers of the commands that are done but never answered.
    """

    name = "link"

    def __init__(self, home: Path, cuts=(), lost_answers=()) -> None:
        self.inner = LocalTransport(home)
        self.cuts = list(cuts)
        self.lost_answers = set(lost_answers)
        self.commands = 0
        self.sent: list[tuple[int, int]] = []  # offset and bytes of each push
        self.damage: Callable[[bytes], bytes] = lambda content: content

    def run(self, argv, *, deadline_s, on_line=None) -> Completed:
        self.commands += 1
        done = self.inner.run(argv, deadline_s=deadline_s, on_line=on_line)
        if self.commands in self.lost_answers:
            raise ConnectionLost("before the answer")
        return done

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        cut = self.cuts.pop(0) if self.cuts else None
        content = self.damage(source.read_bytes())
        end = len(content) if cut is None else min(offset + cut, len(content))
        part = source.with_name("part")
        part.write_bytes(content[:end])
        self.sent.append((offset, end - offset))
        self.inner.push(part, target, deadline_s=deadline_s, offset=offset)
        if cut is not None:
            raise ConnectionLost("in mid push")

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        self.inner.pull(source, target, deadline_s=deadline_s)

    def probe(self, *, deadline_s: float) -> float:
        return self.inner.probe(deadline_s=deadline_s)

    def close(self) -> None:
        self.inner.close()


def make(folder: Path, content: bytes, name: str = "model.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def stored(home: Path) -> dict[str, bytes]:
    folder = home / "root" / "store"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def incoming(home: Path) -> list[Path]:
    return list((home / "root" / "incoming").iterdir())


def until_it_works(link: Transport, path: Path, check: Callable[[], None], tries: int = 50) -> Path:
    for _ in range(tries):
        with contextlib.suppress(ConnectionLost):
            return Path(RemoteStore(link, "root").ensure([path])[path])
        check()
    raise AssertionError(f"not there after {tries} tries")


# On from where it broke


def test_a_broken_push_goes_on_where_it_broke(tmp_path):
    content = random.Random(0).randbytes(100_000)
    path = make(tmp_path / "host", content)
    link = Link(tmp_path, cuts=[40_000, 0, 30_000])
    until_it_works(link, path, lambda: None)
    assert link.sent == [(0, 40_000), (40_000, 0), (40_000, 30_000), (70_000, 30_000)]
    assert list(stored(tmp_path).values()) == [content]
    assert incoming(tmp_path) == []


def test_what_broke_off_is_kept_under_the_files_hash(tmp_path):
    path = make(tmp_path / "host", bytes(1000))
    with pytest.raises(ConnectionLost):
        RemoteStore(Link(tmp_path, cuts=[300]), "root").ensure([path])
    (left,) = incoming(tmp_path)
    assert left.name.startswith(f"{file_sha256(path)}.onnx")
    assert left.stat().st_size == 300


@given(
    size=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    lost_answers=st.sets(st.integers(1, 12), max_size=3),
)
@settings(max_examples=40)
def test_it_is_whole_or_absent_and_nothing_is_sent_twice(size, cuts, lost_answers):
    content = random.Random(size).randbytes(size)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        path = make(home / "host", content)
        link = Link(home, cuts, lost_answers)

        def check() -> None:
            assert list(stored(home).values()) in ([], [content])

        remote = until_it_works(link, path, check)
        assert (home / remote).read_bytes() == content
        assert sum(count for _, count in link.sent) == size
        assert incoming(home) == []


@given(
    cuts=st.lists(st.integers(0, LARGE), max_size=3),
    lost=st.sets(st.integers(1, 8), max_size=2),
)
@settings(max_examples=6)
def test_so_is_a_file_that_is_hashed_while_it_arrives(cuts, lost):
    content = random.Random(1).randbytes(LARGE)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        path = make(home / "host", content)
        link = Link(home, cuts, lost)
        remote = until_it_works(link, path, lambda: None)
        assert (home / remote).read_bytes() == content
        assert sum(count for _, count in link.sent) == LARGE
        assert incoming(home) == []


@pytest.mark.parametrize("size", [10_000, LARGE])
def test_a_part_of_other_bytes_is_dropped_and_the_file_sent_from_the_start(tmp_path, size):
    content = random.Random(0).randbytes(size)
    path = make(tmp_path / "host", content)
    link = Link(tmp_path, cuts=[4000])
    with pytest.raises(ConnectionLost):
        RemoteStore(link, "root").ensure([path])
    (part,) = incoming(tmp_path)
    part.write_bytes(bytes(4000))
    where = RemoteStore(link, "root").ensure([path])
    assert link.sent == [(0, 4000), (4000, size - 4000), (0, size)]
    assert (tmp_path / where[path]).read_bytes() == content
    assert incoming(tmp_path) == []


def test_a_part_longer_than_the_file_is_not_gone_on_with(tmp_path):
    path = make(tmp_path / "host", b"short")
    folder = tmp_path / "root" / "incoming"
    folder.mkdir(parents=True)
    (folder / f"{file_sha256(path)}.onnx.01234567").write_bytes(bytes(100))
    link = Link(tmp_path)
    where = RemoteStore(link, "root").ensure([path])
    assert (tmp_path / where[path]).read_bytes() == b"short"
    assert link.sent == [(0, 5)]


@pytest.mark.parametrize("size", [10_000, LARGE])
def test_a_link_that_always_damages_is_an_error_after_two_tries(tmp_path, size):
    path = make(tmp_path / "host", random.Random(0).randbytes(size))
    link = Link(tmp_path)
    link.damage = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(IntegrityError, match="twice"):
        RemoteStore(link, "root").ensure([path])
    assert link.sent == [(0, size)] * 2
    assert (stored(tmp_path), incoming(tmp_path)) == ({}, [])


def test_an_artifact_that_is_not_what_its_name_says_is_the_hosts_fault(tmp_path):
    path = make(tmp_path / "host", b"changed since", name=f"{'a' * 64}.onnx")
    with pytest.raises(IntegrityError, match="has changed"):
        RemoteStore(LocalTransport(tmp_path), "root").ensure([path])
    assert stored(tmp_path) == {}


def test_a_large_file_takes_three_calls_the_device_hashes_while_it_receives(tmp_path):
    path = make(tmp_path / "host", random.Random(0).randbytes(LARGE))
    link = Link(tmp_path)
    RemoteStore(link, "root").ensure([path])
    assert (link.commands, len(link.sent)) == (2, 1)


@pytest.mark.parametrize("size", [50_000, LARGE])
def test_a_half_dead_writer_does_no_harm(tmp_path, size):
    """One that appends to the part while the file is gone on with: its connection hangs yet."""
    content = random.Random(0).randbytes(size)
    path = make(tmp_path / "host", content)
    link = Link(tmp_path, cuts=[size // 2])
    with pytest.raises(ConnectionLost):
        RemoteStore(link, "root").ensure([path])
    (part,) = incoming(tmp_path)
    stop = threading.Event()

    def write() -> None:
        with part.open("ab") as stream:
            opened.set()
            while not stop.is_set():
                stream.write(b"late bytes")
                stream.flush()
                time.sleep(0.001)

    opened = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    opened.wait()
    try:
        where = RemoteStore(link, "root").ensure([path])
        time.sleep(0.05)
        assert (tmp_path / where[path]).read_bytes() == content
    finally:
        stop.set()
        writer.join()


def test_parts_that_nobody_asks_for_are_swept_after_some_days(tmp_path):
    path = make(tmp_path / "host", bytes(1000))
    with pytest.raises(ConnectionLost):
        RemoteStore(Link(tmp_path, cuts=[300]), "root").ensure([path])
    (asked_for,) = incoming(tmp_path)
    for name, days in (("f" * 64 + ".bin.00000000", 3), ("e" * 64 + ".bin.00000000", 0)):
        (tmp_path / "root" / "incoming" / name).write_bytes(b"part")
        os.utime(asked_for.with_name(name), times=(time.time() - days * 86400,) * 2)
    os.utime(asked_for, times=(0, 0))
    link = Link(tmp_path)
    RemoteStore(link, "root").ensure([path])
    assert link.sent == [(300, 700)]
    assert [part.name for part in incoming(tmp_path)] == ["e" * 64 + ".bin.00000000"]


def test_two_hosts_that_go_on_with_the_same_part(tmp_path):
    content = random.Random(0).randbytes(500_000)
    with pytest.raises(ConnectionLost):
        RemoteStore(Link(tmp_path, cuts=[200_000]), "root").ensure(
            [make(tmp_path / "first", content)]
        )
    errors: list[BaseException] = []

    def send(number: int) -> None:
        try:
            path = make(tmp_path / f"host{number}", content)
            RemoteStore(LocalTransport(tmp_path), "root").ensure([path])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (list(stored(tmp_path).values()), incoming(tmp_path)) == ([content], [])


# Over a real connection


def test_a_server_killed_in_mid_push_and_gone_on_with(own_sshd, tmp_path):
    content = random.Random(0).randbytes(40_000_000)
    path = make(tmp_path / "host", content)
    folder = tmp_path / "root" / "incoming"
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                if any(part.stat().st_size > 5_000_000 for part in folder.iterdir()):
                    kill_connections(own_sshd)
                    return
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with contextlib.closing(ssh(own_sshd)) as transport, pytest.raises(ConnectionLost):
            RemoteStore(transport, str(tmp_path / "root")).ensure([path])
    finally:
        done.set()
        killer.join()
    assert stored(tmp_path) == {}
    offsets: list[int] = []

    class Watched:
        def __init__(self, inner: Transport) -> None:
            self.name, self.run, self.close = inner.name, inner.run, inner.close
            self._push = inner.push

        def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
            offsets.append(offset)
            self._push(source, target, deadline_s=deadline_s, offset=offset)

    with contextlib.closing(ssh(own_sshd)) as transport:
        RemoteStore(Watched(transport), str(tmp_path / "root")).ensure([path])
    assert len(offsets) == 1
    assert offsets[0] > 5_000_000
    assert (list(stored(tmp_path).values()), incoming(tmp_path)) == ([content], [])


# On every shell that devices have

ANDROID = ["cat", "chmod", "du", "find", "grep", "ls", "mkdir", "mv", "rm", "sha256sum"]
ANDROID += ["sleep", "sort", "touch", "tr", "wc", "xargs"]


@pytest.fixture(params=["system", "busybox", "android"])
def device(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Path:
    """A folder whose commands are those of a desktop, of a small board, or of a phone."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if request.param == "busybox":
        if not (busybox := shutil.which("busybox")):
            pytest.skip("no busybox on this machine (apt-get install busybox)")
        subprocess.run([busybox, "--install", "-s", programs], check=True)
        monkeypatch.setenv("PATH", str(programs))
    elif request.param == "android":
        mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
        if not (mksh and toybox):
            pytest.skip("no mksh or no toybox on this machine (apt-get install mksh toybox)")
        (programs / "sh").symlink_to(mksh)
        for name in ANDROID:
            (programs / name).symlink_to(toybox)
        monkeypatch.setenv("PATH", str(programs))
    return tmp_path


@pytest.fixture
def link(device: Path) -> Iterator[Link]:
    yield Link(device)


def test_every_shell_stores_resumes_and_finds(device, link):
    contents = [random.Random(i).randbytes(size) for i, size in enumerate((0, 5000, LARGE))]
    files = [make(device / "host", content, f"{i}.bin") for i, content in enumerate(contents)]
    link.cuts = [None, 2000, None, LARGE // 3]
    store = RemoteStore(link, "root")
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            store.ensure(files)
    where = store.ensure(files)
    assert [(device / where[path]).read_bytes() for path in files] == contents
    assert incoming(device) == []
    assert link.sent[-1] == (LARGE // 3, LARGE - LARGE // 3)
    link.commands, link.sent = 0, []
    store.ensure(files)
    assert (link.commands, link.sent) == (1, [])


def test_every_shell_evicts_what_was_not_used_for_longest(device, link):
    files = [make(device / "host", bytes([i]) * 100_000, f"{i}.bin") for i in range(4)]
    for path in files[:3]:
        RemoteStore(link, "root").ensure([path])
        time.sleep(1.05)  # busybox looks at whole seconds
    RemoteStore(link, "root").ensure([files[0]])
    RemoteStore(link, "root", limit_bytes=300_000).ensure([files[3]])
    left = {content[0] for content in stored(device).values()}
    assert left == {0, 2, 3}


def test_every_shell_finds_what_has_rotted(device, link):
    files = [make(device / "host", bytes([i]) * 1000, f"{i}.bin") for i in range(3)]
    store = RemoteStore(link, "root")
    assert store.verify() == ()
    where = store.ensure(files)
    assert store.verify() == ()
    with (device / where[files[1]]).open("r+b") as stream:
        stream.write(b"rot")
    assert store.verify() == (Path(where[files[1]]).name,)
    assert {content[0] for content in stored(device).values()} == {0, 2}
    store.ensure(files)
    assert store.verify() == ()


def test_every_shell_says_when_a_push_was_damaged(device, link):
    path = make(device / "host", bytes(1000))
    link.damage = lambda content: content[:-1]
    with pytest.raises(IntegrityError):
        RemoteStore(link, "root").ensure([path])
    assert (stored(device), incoming(device)) == ({}, [])


# The transports' own part in it


@pytest.mark.parametrize("kind", ["local", pytest.param("ssh", marks=pytest.mark.sshd)])
@pytest.mark.parametrize("offset", [1, 1000, 299_999, 300_000])
def test_a_push_from_an_offset(request, tmp_path, kind, offset):
    content = random.Random(0).randbytes(300_000)
    source, target = make(tmp_path / "host", content), tmp_path / "tar get"
    target.write_bytes(content[:offset])
    transport = LocalTransport(tmp_path)
    if kind == "ssh":
        transport = ssh(request.getfixturevalue("loopback"))
    with contextlib.closing(transport):
        transport.push(source, str(target), deadline_s=30, offset=offset)
        assert target.read_bytes() == content
        with pytest.raises(DeviceError, match=r"written|copied"):
            transport.push(source, str(tmp_path / "no" / "x"), deadline_s=30, offset=offset)
