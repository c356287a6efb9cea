"""The aarch64 folder and image are whole or not there; nothing foreign is run or fetched here."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from devices.endpoints import image, rootfs
from devices.endpoints.image import Entry, archive
from profiles.errors import DeviceUnreachable


@pytest.fixture(autouse=True)
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "missing", lambda: None)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "rootfs").iterdir() if path.suffix != ".lock"]


def test_it_is_built_once(tmp_path, monkeypatch):
    built: list[Path] = []

    def build(root: Path) -> None:
        root.mkdir()
        (root / "file").write_text("whole")
        built.append(root)

    monkeypatch.setattr(rootfs, "_build", build)
    first, second = rootfs.rootfs(tmp_path), rootfs.rootfs(tmp_path)
    assert first == second
    assert (first.path / "file").read_text() == "whole"
    assert len(built) == 1
    assert leftovers(tmp_path) == [first.path.name]


def test_many_who_want_it_at_once_build_it_once_and_see_it_whole(tmp_path, monkeypatch):
    built: list[Path] = []
    seen: list[str] = []
    barrier = threading.Barrier(4)

    def build(root: Path) -> None:
        root.mkdir()
        built.append(root)
        threading.Event().wait(0.2)  # others come while it is half there
        (root / "file").write_text("whole")

    def want() -> None:
        barrier.wait()
        seen.append((rootfs.rootfs(tmp_path).path / "file").read_text())

    monkeypatch.setattr(rootfs, "_build", build)
    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(built), seen) == (1, ["whole"] * 4)


def test_what_cannot_be_finished_is_not_there(tmp_path, monkeypatch):
    def fail(root: Path) -> None:
        root.mkdir()
        (root / "half").touch()
        raise DeviceUnreachable("the archive is away")

    monkeypatch.setattr(rootfs, "_build", fail)
    with pytest.raises(DeviceUnreachable, match="the archive is away"):
        rootfs.rootfs(tmp_path)
    assert leftovers(tmp_path) == []


def test_what_a_killed_builder_left_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(rootfs, "_build", lambda root: root.mkdir())
    key = rootfs.rootfs(tmp_path).path.name
    (tmp_path / "rootfs" / key).rmdir()
    half = tmp_path / "rootfs" / f".{key}-abcd" / "root"
    half.mkdir(parents=True)
    assert rootfs.rootfs(tmp_path).path.name == key
    assert leftovers(tmp_path) == [key]


def test_it_says_why_it_cannot_be_built(tmp_path, monkeypatch):
    monkeypatch.setattr(rootfs, "missing", lambda: "only root may")
    with pytest.raises(DeviceUnreachable, match="cannot be built: only root may"):
        rootfs.rootfs(tmp_path)


def driver(folder: Path, name: str, depends: str) -> Path:
    path = folder / f"{name}.ko"
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0")
    return path


def test_drivers_come_after_those_they_need(tmp_path):
    needs = {"net": "failover,base", "failover": "base", "base": "", "other": ""}
    drivers = {name: driver(tmp_path, name, depends) for name, depends in needs.items()}
    assert image._with_dependencies(["net"], drivers) == ["base", "failover", "net"]
    with pytest.raises(DeviceUnreachable, match="no driver gone"):
        image._with_dependencies(["gone"], drivers)


def test_an_archive_reads_back():
    entries = [
        Entry("dev", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
    ]
    assert read_archive(archive(entries)) == entries


def read_archive(content: bytes) -> list[Entry]:
    """Member by member, as the kernel's text on the format says."""
    found, at = [], 0
    while True:
        assert at % 4 == 0
        assert content[at : at + 6] == b"070701"
        words = [int(content[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, device, length = words[1], words[6], (words[9], words[10]), words[11]
        name = content[at + 110 : at + 110 + length].rstrip(b"\0").decode()
        at += (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found.append(Entry(name, mode, content[at : at + size], device))
        at += (size + 3) // 4 * 4
