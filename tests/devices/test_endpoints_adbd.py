"""The phone on loopback is private, whole or not there at all, and gone when its block is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from devices.endpoints import adbd as adbd_module
from devices.endpoints import debian, processes
from devices.endpoints.adbd import adbd_files, build_shim, serve_adb_server, serve_phone
from devices.endpoints.processes import free_port, listening, serving
from devices.inventory import load_inventory
from devices.transport.adb import AdbTransport, discover
from profiles.errors import DeviceUnreachable
from tests.processes import alive, eventually


class Interruption(Exception):
    pass


def connect(phone):
    return contextlib.closing(AdbTransport(phone.serial, phone.server))


# Serving


def test_adbd_and_its_server_listen_on_loopback_only(phone):
    adbd_port = int(phone.serial.rpartition(":")[2])
    assert listening(phone.adbd.pid) == [("127.0.0.1", adbd_port)]
    assert listening(phone.adb_server.pid) == [phone.server]


def test_what_listens_everywhere_is_seen_to(tmp_path):
    """The check above would notice: this server listens on every address of both kinds."""
    program = """
import socket, sys, time
every = socket.create_server(("", int(sys.argv[1])))
six = socket.create_server(("::", 0), family=socket.AF_INET6)
time.sleep(60)
"""
    port = free_port()
    argv = [sys.executable, "-S", "-E", "-c", program, str(port)]
    with serving(argv, port, tmp_path / "server.log") as process:
        assert eventually(lambda: len(listening(process.pid)) == 2)
        assert {address for address, _ in listening(process.pid)} == {"0.0.0.0", "::"}


def test_adbd_that_listens_everywhere_is_ended(_adbd, tmp_path, monkeypatch):
    monkeypatch.setattr(adbd_module, "listening", lambda pid: started.append(pid) or [("::", 1)])
    started: list[int] = []
    with pytest.raises(DeviceUnreachable, match="beyond loopback"), serve_phone(tmp_path / "phone"):
        pytest.fail("it was served")
    assert not alive(started[0])


def test_adbd_does_not_start_without_its_shim(_adbd, tmp_path, monkeypatch):
    """The loader would only warn; adbd would then listen on every address."""
    (tmp_path / "no.so").write_bytes(b"no library")
    monkeypatch.setattr(adbd_module, "build_shim", lambda **_: tmp_path / "no.so")
    monkeypatch.setattr(adbd_module, "serving", lambda *_, **__: pytest.fail("it was started"))
    with (
        pytest.raises(DeviceUnreachable, match=r"no\.so cannot be preloaded"),
        serve_phone(tmp_path / "phone"),
    ):
        pytest.fail("it was served")


def test_the_shim_ends_an_adbd_that_was_told_no_address(_adbd):
    done = subprocess.run(
        adbd_files().command(build_shim()),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "ADBD_LISTEN" in done.stderr
    assert "listening" not in done.stderr


def test_it_ends_on_any_way_out_and_can_start_again(_adbd, tmp_path):
    seen = []
    for _ in range(2):
        with pytest.raises(Interruption), serve_phone(tmp_path / "phone") as phone:
            with connect(phone) as transport:
                assert transport.run(["echo", "hi"], deadline_s=10).stdout == b"hi\n"
            seen += [phone.adbd.pid, phone.adb_server.pid]
            raise Interruption
    assert not any(alive(pid) for pid in seen)


def test_it_ends_even_when_it_is_frozen(_adbd, tmp_path):
    with serve_phone(tmp_path / "phone") as phone:
        for process in (phone.adbd, phone.adb_server):
            process.send_signal(signal.SIGSTOP)
    assert phone.adbd.returncode is not None
    assert phone.adb_server.returncode is not None


@pytest.mark.parametrize("frozen", [False, True])
def test_it_ends_with_whoever_started_it(_adbd, tmp_path, frozen):
    program = f"""
import time
from pathlib import Path
from devices.endpoints.adbd import serve_phone
with serve_phone(Path({str(tmp_path)!r}) / "phone") as phone:
    print(phone.adbd.pid, phone.adb_server.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    if frozen:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_programs_that_were_given_go_before_the_hosts(_adbd, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("getprop", "Pixel"), ("uname", "Android")):
        (programs / name).write_text(f"#!/bin/sh\necho {text}\n")
        (programs / name).chmod(0o755)
    with serve_phone(tmp_path / "phone", programs) as phone, connect(phone) as transport:
        assert transport.run(["getprop"], deadline_s=10).stdout == b"Pixel\n"
        assert transport.run(["uname"], deadline_s=10).stdout == b"Android\n"
        assert transport.run(["sh", "-c", "echo $(ls -d /)"], deadline_s=10).stdout == b"/\n"


def test_the_hosts_environment_does_not_leak_into_the_phone(_adbd, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/leaked")
    with serve_phone(tmp_path / "phone") as phone, connect(phone) as transport:
        assert b"leaked" not in transport.run(["env"], deadline_s=10).stdout


def test_its_inventory_entry_is_a_device(phone, tmp_path):
    entry = phone.inventory_entry("demo", str(tmp_path / "root"))
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": [entry]}))
    found = load_inventory(tmp_path / "devices.yaml").find("demo")
    assert found.transport_name == "adb"
    with contextlib.closing(found.connect()) as transport:
        assert transport.run(["true"], deadline_s=10).exit_code == 0


def test_a_private_server_knows_no_device_of_its_own_accord(tmp_path):
    with serve_adb_server(tmp_path) as (address, process):
        assert discover(address) == []
        assert listening(process.pid) == [address]
        key = tmp_path / ".android" / "adbkey"
        assert eventually(key.exists)


def test_a_port_that_another_server_has_taken_is_noticed(tmp_path, phone, monkeypatch):
    """Else a test would talk to somebody else's phone."""
    argv = [sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(processes, "_START_TIMEOUT_S", 0.5)
    with (
        pytest.raises(DeviceUnreachable, match="another server"),
        serving(argv, phone.server[1], tmp_path / "server.log"),
    ):
        pytest.fail("it was entered")


# Fetching


def _pretend(folder: Path) -> None:
    """As little of the packages as is looked at."""
    (folder / "usr/lib/x-linux-gnu").mkdir(parents=True)
    (folder / "usr/lib/x-linux-gnu/ld-linux-x.so.2").touch()


def test_two_that_ask_at_once_fetch_once(tmp_path, monkeypatch):
    fetched = []

    def unpack(packages, suite, architecture, folder):
        fetched.append((packages, architecture))
        time.sleep(0.2)
        _pretend(folder)

    monkeypatch.setattr(adbd_module, "unpack", unpack)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(adbd_files("arm64", tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [(["adbd"], "arm64")]
    assert len(found) == 4
    assert {files.loader for files in found} == {
        tmp_path / "arm64/usr/lib/x-linux-gnu/ld-linux-x.so.2"
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm64", "arm64.lock"]


def test_what_was_fetched_in_part_is_not_there(tmp_path, monkeypatch):
    def unpack(packages, suite, architecture, folder):
        _pretend(folder)
        raise DeviceUnreachable("the line is cut")

    monkeypatch.setattr(adbd_module, "unpack", unpack)
    for _ in range(2):
        with pytest.raises(DeviceUnreachable, match="cut"):
            adbd_files("arm64", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["arm64.lock"]


def test_what_one_who_was_killed_had_fetched_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(adbd_module, "unpack", lambda *given: _pretend(given[-1]))
    (tmp_path / ".arm64.part").mkdir()
    (tmp_path / ".arm64.part" / "half").touch()
    adbd_files("arm64", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm64", "arm64.lock"]
    assert not (tmp_path / "arm64" / "half").exists()


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(adbd_module.shutil, "which", lambda _: None)
    with pytest.raises(DeviceUnreachable, match="apt-get install g") as caught:
        build_shim("arm64", tmp_path)
    assert caught.value.hint == "apt-get install g++-aarch64-linux-gnu"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "_archive", lambda: "http://127.0.0.1:1/debian")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceUnreachable, match="no apt-get"):
        debian.unpack(["adbd"], "trixie", "amd64", tmp_path / "root")


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="no apt-get on this machine")
def test_an_offline_machine_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "_archive", lambda: "http://127.0.0.1:1/debian")
    with pytest.raises(DeviceUnreachable, match="cannot be fetched") as caught:
        debian.unpack(["adbd"], "trixie", "amd64", tmp_path / "root")
    assert "online" in caught.value.hint
    assert not (tmp_path / "root").exists()
