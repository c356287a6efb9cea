"""Folders and images are whole or not there; nothing foreign is run or fetched here."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from devices.endpoints import image, rootfs
from devices.endpoints.image import Entry, archive
from devices.endpoints.power_board import X86_64
from devices.endpoints.rootfs import System
from profiles.errors import DeviceUnreachable


@pytest.fixture(autouse=True)
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "missing", lambda: None)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "rootfs").iterdir() if path.suffix != ".lock"]


def test_it_is_built_once(tmp_path, monkeypatch):
    built: list[Path] = []

    def build(system: System, root: Path) -> None:
        root.mkdir()
        (root / "file").write_text("whole")
        built.append(root)

    monkeypatch.setattr(rootfs, "_build", build)
    first, second = rootfs.rootfs(tmp_path), rootfs.rootfs(tmp_path)
    assert first == second
    assert (first.path / "file").read_text() == "whole"
    assert len(built) == 1
    assert leftovers(tmp_path) == [first.path.name]


def test_each_system_has_a_folder_of_its_own(tmp_path, monkeypatch):
    built: list[System] = []

    def build(system: System, root: Path) -> None:
        root.mkdir()
        built.append(system)

    monkeypatch.setattr(rootfs, "_build", build)
    found = [rootfs.rootfs(tmp_path, system) for system in (rootfs.AARCH64, X86_64)]
    assert built == [rootfs.AARCH64, X86_64]
    assert [one.system for one in found] == built
    assert found[0].path != found[1].path


def test_many_who_want_it_at_once_build_it_once_and_see_it_whole(tmp_path, monkeypatch):
    built: list[Path] = []
    seen: list[str] = []
    barrier = threading.Barrier(4)

    def build(system: System, root: Path) -> None:
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
    def fail(system: System, root: Path) -> None:
        root.mkdir()
        (root / "half").touch()
        raise DeviceUnreachable("the archive is away")

    monkeypatch.setattr(rootfs, "_build", fail)
    with pytest.raises(DeviceUnreachable, match="the archive is away"):
        rootfs.rootfs(tmp_path)
    assert leftovers(tmp_path) == []


def test_what_a_killed_builder_left_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(rootfs, "_build", lambda system, root: root.mkdir())
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


def test_the_memory_disk_says_which_drivers_to_load_and_how(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"program")
    folder = tmp_path / "lib/modules/6.1"
    folder.mkdir(parents=True)
    for name, depends in {"bus": "", "i2c-stub": "bus", "other": ""}.items():
        driver(folder, name, depends)
    entries = {
        entry.name: entry.content
        for entry in image._memory_disk(tmp_path, ["i2c_stub chip_addr=0x40,0x0b", "bus"])
    }
    order = [line.split() for line in entries["drivers/order"].decode().splitlines()]
    assert order == [["bus.ko"], ["i2c_stub.ko", "chip_addr=0x40,0x0b"]]
    assert {"drivers/bus.ko", "drivers/i2c_stub.ko"} < set(entries)
    assert "drivers/other.ko" not in entries


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
