"""A file on the device is whole or not there, and is sent once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.push import RemoteStore
from devices.transport.adb import AdbTransport
from devices.transport.base import Completed, Transport
from devices.transport.local import LocalTransport
from profiles.canonical import file_sha256
from profiles.errors import ConnectionLost, DeviceError, DeviceFull, IntegrityError
from tests.builders import ssh


class Spy:
    """A transport that counts what passes, and may be told to damage or to break a transfer."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.name = inner.name
        self.runs = 0
        self.pushed: list[str] = []
        self.damage = lambda content: content
        self.break_off = False
        self.after_push = lambda: None

    def run(self, argv, *, deadline_s, on_line=None) -> Completed:
        self.runs += 1
        return self.inner.run(argv, deadline_s=deadline_s, on_line=on_line)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        self.pushed.append(source.name)
        sent = source.with_name("sent")
        sent.write_bytes(self.damage(source.read_bytes()))
        self.inner.push(sent, target, deadline_s=deadline_s, offset=offset)
        sent.unlink()
        self.after_push()
        if self.break_off:
            raise ConnectionLost("in mid push")

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        self.inner.pull(source, target, deadline_s=deadline_s)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(
    params=[
        "local",
        pytest.param("ssh", marks=pytest.mark.sshd),
        pytest.param("adb", marks=pytest.mark.adbd),
    ]
)
def spy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spy]:
    if request.param == "ssh":
        inner: Transport = ssh(request.getfixturevalue("loopback"))
    elif request.param == "adb":
        phone = request.getfixturevalue("phone")
        inner = AdbTransport(phone.serial, phone.server)
    else:
        inner = LocalTransport(tmp_path)
    yield Spy(inner)
    inner.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def make(folder: Path, name: str, content: bytes = b"some bytes") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def stored(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "store").iterdir()}


def incoming(root: Path) -> list[Path]:
    return list((root / "incoming").iterdir())


def test_files_arrive_under_their_own_hash(spy, root, tmp_path):
    contents = {"model.onnx": random.Random(0).randbytes(300_000), "empty.bin": b""}
    files = [make(tmp_path / "host", name, content) for name, content in contents.items()]
    where = RemoteStore(spy, str(root)).ensure(files)
    assert list(where) == files
    for path in files:
        assert Path(where[path]) == root / "store" / f"{file_sha256(path)}{path.suffix}"
        assert Path(where[path]).read_bytes() == contents[path.name]
    assert incoming(root) == []


def test_what_is_there_is_not_sent_again_and_costs_one_round_trip(spy, root, tmp_path):
    files = [make(tmp_path / "host", f"{i}.bin", bytes([i])) for i in range(5)]
    first = RemoteStore(spy, str(root)).ensure(files)
    assert len(spy.pushed) == 5
    spy.pushed, spy.runs = [], 0
    assert RemoteStore(spy, str(root)).ensure(files) == first
    assert (spy.pushed, spy.runs) == ([], 1)


def test_only_what_is_missing_is_sent(spy, root, tmp_path):
    old, new = make(tmp_path / "host", "old", b"old"), make(tmp_path / "host", "new", b"new")
    store = RemoteStore(spy, str(root))
    store.ensure([old])
    store.ensure([old, new])
    assert spy.pushed == ["old", "new"]


def test_the_same_bytes_are_sent_once_whatever_they_are_called(spy, root, tmp_path):
    one, two = make(tmp_path / "host", "one.bin"), make(tmp_path / "host", "two.bin")
    where = RemoteStore(spy, str(root)).ensure([one, two])
    assert where[one] == where[two]
    assert len(spy.pushed) == 1


def test_a_changed_file_of_the_same_name_and_size_is_sent(spy, root, tmp_path):
    store = RemoteStore(spy, str(root))
    before = store.ensure([make(tmp_path / "host", "m.onnx", b"version 1")])
    after = store.ensure([make(tmp_path / "host", "m.onnx", b"version 2")])
    assert before != after
    assert sorted(stored(root).values()) == [b"version 1", b"version 2"]


@pytest.mark.parametrize("cut", [0, 5, 50])
def test_a_truncated_or_grown_file_on_the_device_is_sent_again(spy, root, tmp_path, cut):
    path = make(tmp_path / "host", "model.onnx", b"exactly 16 bytes")
    store = RemoteStore(spy, str(root))
    remote = Path(store.ensure([path])[path])
    os.truncate(remote, cut)
    assert Path(store.ensure([path])[path]).read_bytes() == b"exactly 16 bytes"
    assert len(spy.pushed) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:10] + bytes([content[10] ^ 1]) + content[11:],
        lambda content: content + b"\n",
    ],
    ids=["cut", "emptied", "bit flipped", "line end added"],
)
def test_what_was_damaged_on_the_way_is_never_adopted(spy, root, tmp_path, damage):
    path = make(tmp_path / "host", "model.onnx", b"precious weights")
    store = RemoteStore(spy, str(root))
    spy.damage = damage
    with pytest.raises(IntegrityError, match=r"model\.onnx") as caught:
        store.ensure([path])
    assert file_sha256(path)[:12] in str(caught.value)
    assert (stored(root), incoming(root)) == ({}, [])
    spy.damage = lambda content: content
    assert Path(store.ensure([path])[path]).read_bytes() == b"precious weights"


def test_a_file_has_its_name_only_when_it_is_whole(spy, root, tmp_path):
    """After the last byte has arrived, and before the device has hashed it, there is no file."""
    path = make(tmp_path / "host", "model.onnx", random.Random(0).randbytes(2_000_000))
    seen: list[dict[str, bytes]] = []
    spy.after_push = lambda: seen.append(stored(root))
    RemoteStore(spy, str(root)).ensure([path])
    assert seen == [{}]
    assert list(stored(root).values()) == [path.read_bytes()]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_broken_transfer_leaves_no_file_and_may_be_repeated(spy, root, tmp_path, share):
    path = make(tmp_path / "host", "model.onnx", bytes(range(200)))
    store = RemoteStore(spy, str(root))
    spy.damage, spy.break_off = lambda content: content[: int(share * 200)], True
    with pytest.raises(ConnectionLost):
        store.ensure([path])
    assert stored(root) == {}
    spy.damage, spy.break_off = lambda content: content, False
    store.ensure([path])
    assert list(stored(root).values()) == [bytes(range(200))]


def test_two_hosts_may_send_the_same_file_at_once(root, tmp_path):
    content = random.Random(0).randbytes(1_000_000)
    errors: list[BaseException] = []

    def send(number: int) -> None:
        try:
            path = make(tmp_path / f"host{number}", "model.onnx", content)
            RemoteStore(LocalTransport(tmp_path), str(root)).ensure([path])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(stored(root).values()) == [content]
    assert incoming(root) == []


@pytest.mark.parametrize(
    "name",
    [
        "two words",
        "$(touch pwned)",
        "; touch pwned",
        "quote ' and \"",
        "back\\slash\\n",
        "new\nline",
        "größe",
        "-rf",
        "*",
    ],
    ids=repr,
)
def test_hostile_folder_names(spy, tmp_path, name):
    path = make(tmp_path / "host", "model.onnx")
    where = RemoteStore(spy, str(tmp_path / name)).ensure([path])
    assert Path(where[path]).read_bytes() == b"some bytes"
    assert (Path(where[path]).parent.parent, incoming(tmp_path / name)) == (tmp_path / name, [])
    assert not list(tmp_path.rglob("pwned"))


def test_a_relative_folder_is_in_the_logins_home(tmp_path):
    path = make(tmp_path / "host", "model.onnx")
    where = RemoteStore(LocalTransport(tmp_path), "cache/store of models").ensure([path])
    assert (tmp_path / where[path]).read_bytes() == b"some bytes"


def test_a_device_without_sha256sum_is_not_called_corrupt(tmp_path, root, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "mkdir", "wc", "rm", "mv"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    path = make(tmp_path / "host", "model.onnx")
    with pytest.raises(DeviceError, match=r"sha256sum.*not found") as caught:
        RemoteStore(LocalTransport(tmp_path), str(root)).ensure([path])
    assert not isinstance(caught.value, IntegrityError)
    assert (stored(root), incoming(root)) == ({}, [])


@pytest.mark.parametrize(
    "name",
    [
        "model.two words",
        "model.$(touch pwned)",
        "model.a\nb",
        "model.a\\tb",
        "no-suffix",
        ".hidden",
    ],
    ids=repr,
)
def test_hostile_file_names(spy, root, tmp_path, name):
    path = make(tmp_path / "host", name)
    store = RemoteStore(spy, str(root))
    assert Path(store.ensure([path])[path]).read_bytes() == b"some bytes"
    assert store.ensure([path])
    assert spy.pushed == [name]
    assert not list(tmp_path.rglob("pwned"))


def test_a_folder_that_cannot_be_made(spy, tmp_path):
    make(tmp_path, "in-the-way")
    path = make(tmp_path / "host", "model.onnx")
    with pytest.raises(DeviceError, match="in-the-way") as caught:
        RemoteStore(spy, str(tmp_path / "in-the-way" / "root")).ensure([path])
    assert type(caught.value) is DeviceError
    assert spy.pushed == []


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


def test_a_full_disk(spy, small_disk, tmp_path):
    store = RemoteStore(spy, str(small_disk / "root"))
    small = make(tmp_path / "host", "small.onnx", bytes(1000))
    large = make(tmp_path / "host", "large.onnx", bytes(3_000_000))
    with pytest.raises(DeviceFull, match=r"large\.onnx \(3000000 bytes\)") as caught:
        store.ensure([large])
    assert str(small_disk) in caught.value.hint
    assert (stored(small_disk / "root"), incoming(small_disk / "root")) == ({}, [])
    assert Path(store.ensure([small])[small]).read_bytes() == bytes(1000)
