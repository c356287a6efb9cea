"""One suite for every connection that can break: peers that die, freeze or refuse."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devices.endpoints.adbd import Phone
from devices.endpoints.sshd import LoopbackServer
from devices.transport import adb as adb_module
from devices.transport import ssh as ssh_module
from devices.transport.adb import AdbTransport
from devices.transport.base import Transport
from devices.transport.ssh import SshTransport
from profiles.errors import ConnectionLost, DeadlineExceeded, DeviceUnreachable
from tests.builders import ssh
from tests.processes import freeze, kill_connections, thaw

PROMPTLY_S = 10.0


@dataclass
class Victim:
    """A peer of this test's own, and what can happen to it."""

    connect: Callable[[], Transport]
    die: Callable[[], None]
    freeze: Callable[[], None]
    thaw: Callable[[], None]


def _ssh_victim(server: LoopbackServer) -> Victim:
    return Victim(
        lambda: ssh(server),
        lambda: kill_connections(server),
        lambda: freeze(server),
        lambda: thaw(server),
    )


def _adb_victim(phone: Phone, pid: int) -> Victim:
    return Victim(
        lambda: AdbTransport(phone.serial, phone.server),
        lambda: os.kill(pid, signal.SIGKILL),
        lambda: os.kill(pid, signal.SIGSTOP),
        lambda: os.kill(pid, signal.SIGCONT),
    )


@pytest.fixture(
    params=[
        pytest.param("ssh", marks=pytest.mark.sshd),
        pytest.param("adbd", marks=pytest.mark.adbd),
        pytest.param("adb-server", marks=pytest.mark.adbd),
    ]
)
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    if request.param == "ssh":
        made = _ssh_victim(request.getfixturevalue("own_sshd"))
    else:
        phone = request.getfixturevalue("own_phone")
        process = phone.adbd if request.param == "adbd" else phone.adb_server
        made = _adb_victim(phone, process.pid)
    yield made
    with contextlib.suppress(ProcessLookupError):
        made.thaw()


@contextlib.contextmanager
def ends_promptly(kind: type[Exception]) -> Iterator[None]:
    """The block ends with exactly this class of error, and soon."""
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind, repr(caught.value)
    assert time.monotonic() - start < PROMPTLY_S


@contextlib.contextmanager
def pipe(path: Path, happens: Callable[[], None], before: int = 3_000_000) -> Iterator[Path]:
    """A pipe to copy from: something happens after ``before`` bytes, and more bytes follow."""
    os.mkfifo(path)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as sink:
            sink.write(bytes(before))
            sink.flush()
            happens()
            sink.write(bytes(30_000_000))

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    yield path
    feeder.join(PROMPTLY_S)
    assert not feeder.is_alive()


# Dying


@pytest.mark.parametrize("attempt", range(3))
def test_dies_in_mid_command(victim: Victim, attempt: int):
    """Never a result: adb reports success for a device that is gone."""
    seen: list[str] = []

    def on_line(text: str) -> None:
        seen.append(text)
        victim.die()

    transport = victim.connect()
    with contextlib.closing(transport), ends_promptly(ConnectionLost):
        transport.run(["sh", "-c", "echo 1; exec sleep 20"], deadline_s=60, on_line=on_line)
    assert seen == ["1"]


def test_dies_between_commands(victim: Victim):
    with contextlib.closing(victim.connect()) as transport:
        transport.run(["true"], deadline_s=10)
        victim.die()
        with ends_promptly(ConnectionLost):
            transport.run(["true"], deadline_s=30)
        with ends_promptly(ConnectionLost):  # and it stays so
            transport.probe(deadline_s=30)


def test_dies_in_mid_push_and_what_arrived_stays(victim: Victim, tmp_path: Path):
    """A later push goes on from there."""
    target = tmp_path / "target"

    def die_when_something_arrived() -> None:
        deadline = time.monotonic() + PROMPTLY_S
        while time.monotonic() < deadline and not (target.exists() and target.stat().st_size):
            time.sleep(0.01)
        victim.die()

    with (
        contextlib.closing(victim.connect()) as transport,
        pipe(tmp_path / "source", die_when_something_arrived) as source,
        ends_promptly(ConnectionLost),
    ):
        transport.push(source, str(target), deadline_s=60)
    time.sleep(0.2)  # what is at the other end has noticed by now
    assert target.stat().st_size > 0


def test_dies_in_mid_pull_and_leaves_no_file(victim: Victim, tmp_path: Path):
    (tmp_path / "here").mkdir()
    with (
        contextlib.closing(victim.connect()) as transport,
        pipe(tmp_path / "source", victim.die) as source,
        ends_promptly(ConnectionLost),
    ):
        transport.pull(str(source), tmp_path / "here" / "target", deadline_s=60)
    assert list((tmp_path / "here").iterdir()) == []


# Freezing


def test_freezes_in_mid_command(victim: Victim):
    seen: list[str] = []

    def on_line(text: str) -> None:
        seen.append(text)
        victim.freeze()

    transport = victim.connect()
    with ends_promptly(DeadlineExceeded):
        transport.run(["sh", "-c", "echo 1; exec sleep 20"], deadline_s=2, on_line=on_line)
    transport.close()
    assert seen == ["1"]


def test_freezes_between_commands(victim: Victim):
    transport = victim.connect()
    victim.freeze()
    with ends_promptly(DeadlineExceeded):
        transport.run(["true"], deadline_s=1)
    transport.close()


def test_a_frozen_peer_does_not_answer_a_probe(victim: Victim):
    transport = victim.connect()
    victim.freeze()
    with ends_promptly(DeadlineExceeded):
        transport.probe(deadline_s=1)
    transport.close()


def test_freezes_in_mid_push(victim: Victim, tmp_path: Path):
    with (
        contextlib.closing(victim.connect()) as transport,
        pipe(tmp_path / "source", victim.freeze) as source,
        ends_promptly(DeadlineExceeded),
    ):
        transport.push(source, str(tmp_path / "target"), deadline_s=2)


def test_freezes_in_mid_pull(victim: Victim, tmp_path: Path):
    (tmp_path / "here").mkdir()
    source = tmp_path / "source"
    with source.open("wb") as sink:
        sink.truncate(1 << 40)  # takes no space, and longer than the deadline
    with contextlib.closing(victim.connect()) as transport:
        timer = threading.Timer(0.3, victim.freeze)
        timer.start()
        with ends_promptly(DeadlineExceeded):
            transport.pull(str(source), tmp_path / "here" / "target", deadline_s=1)
        timer.join()
    assert list((tmp_path / "here").iterdir()) == []


def test_a_frozen_peer_is_unreachable_in_time(victim: Victim, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssh_module, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(adb_module, "CONNECT_TIMEOUT_S", 0.5)
    victim.freeze()
    with ends_promptly(DeviceUnreachable):
        victim.connect()


# Refusing


@pytest.mark.parametrize(
    "kind", ["ssh", "adb-server", pytest.param("adbd", marks=pytest.mark.adbd)]
)
def test_refuses(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    with socket.socket() as bound:  # bound and not listening: refuses
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with ends_promptly(DeviceUnreachable):
            if kind == "ssh":
                SshTransport("127.0.0.1", port, "me", None, tmp_path / "known_hosts")
            elif kind == "adbd":
                AdbTransport(f"127.0.0.1:{port}", request.getfixturevalue("phone").server)
            else:
                AdbTransport("serial", ("127.0.0.1", port))
