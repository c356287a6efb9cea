"""The loopback server is private, and gone when its block is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from devices.endpoints import sshd as loopback_module
from devices.endpoints.sshd import find_sshd, serve
from devices.inventory import load_inventory
from profiles.errors import DeviceUnreachable
from tests.builders import ssh
from tests.processes import alive


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Interruption(Exception):
    pass


@pytest.mark.sshd
@pytest.mark.skipif(find_sshd() is None, reason="no OpenSSH server on this machine")
def test_it_ends_on_any_way_out_and_can_start_again(tmp_path):
    ports = []
    for _ in range(2):
        with pytest.raises(Interruption), serve(tmp_path / "board") as server:
            assert listens(server.port)
            with contextlib.closing(ssh(server)) as transport:
                assert transport.run(["echo", "hi"], deadline_s=10).stdout == b"hi\n"
            ports.append((server.port, server.process.pid))
            raise Interruption
    assert not any(listens(port) or alive(pid) for port, pid in ports)


def test_it_listens_on_loopback_only(loopback):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f"{loopback.port:04X}"
    listening = [row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"]
    assert listening == [f"0100007F:{port}"]
    with pytest.raises(OSError):
        socket.create_connection(("::1", loopback.port), 1)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")
def test_nobody_comes_in_without_the_key(loopback, tmp_path):
    done = subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(loopback.port), "-o", "IdentityFile=none"),
            *("-o", "IdentitiesOnly=yes", "-o", "NumberOfPasswordPrompts=1"),
            *("-o", f"UserKnownHostsFile={loopback.known_hosts}"),
            *(f"{loopback.user}@127.0.0.1", "true"),
        ],
        env={**os.environ, "SSH_ASKPASS": "/bin/echo", "SSH_ASKPASS_REQUIRE": "force"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_keys_are_for_their_owner_alone(loopback):
    assert loopback.key_file.stat().st_mode & 0o077 == 0
    assert loopback.key_file.parent.stat().st_mode & 0o077 == 0


def test_its_inventory_entry_is_a_device(loopback, tmp_path):
    entry = loopback.inventory_entry("demo", str(tmp_path / "root"))
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": [entry]}))
    found = load_inventory(tmp_path / "devices.yaml").find("demo")
    assert (found.transport_name, found.python) == ("ssh", sys.executable)
    with contextlib.closing(found.connect()) as transport:
        assert transport.run(["true"], deadline_s=10).exit_code == 0


def test_without_a_server_program_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(loopback_module, "find_sshd", lambda: None)
    with (
        pytest.raises(DeviceUnreachable, match="apt-get install openssh-server"),
        serve(tmp_path / "board"),
    ):
        pass


@pytest.mark.sshd
@pytest.mark.skipif(find_sshd() is None, reason="no OpenSSH server on this machine")
def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(loopback_module, "CONFIG", loopback_module.CONFIG + "NoSuchOption yes\n")
    with pytest.raises(DeviceUnreachable, match="did not start"), serve(tmp_path / "board"):
        pass
