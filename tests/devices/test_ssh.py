"""SSH against real servers that are strangers, dead, frozen, full, or not quite well behaved."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

import devices.transport.ssh as ssh_module
from devices.endpoints.sshd import LoopbackServer
from devices.transport.ssh import SshTransport
from profiles.errors import (
    AuthenticationError,
    ConnectionLost,
    DeadlineExceeded,
    DeviceFull,
    DeviceUnreachable,
    EdgeError,
    HostKeyError,
)
from tests.builders import ssh
from tests.processes import freeze, kill_connections, thaw

PROMPTLY_S = 8.0


def connect(server: LoopbackServer, **changes: object) -> SshTransport:
    given = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key_file": server.key_file,
        "known_hosts": server.known_hosts,
        **changes,
    }
    return SshTransport(**given)


@contextmanager
def refused(kind: type[EdgeError]) -> Iterator[pytest.ExceptionInfo[EdgeError]]:
    """The connection is refused with exactly this class of error."""
    with pytest.raises(EdgeError) as caught:
        yield caught
    assert type(caught.value) is kind, repr(caught.value)


# Connecting


def test_an_unknown_host_is_refused_with_the_way_to_add_it(loopback, tmp_path):
    (tmp_path / "empty").write_text("")
    with refused(HostKeyError) as caught:
        connect(loopback, known_hosts=tmp_path / "empty")
    assert f"ssh-keyscan -p {loopback.port} 127.0.0.1" in caught.value.hint
    assert not caught.value.retryable


def test_without_a_known_hosts_file_every_host_is_unknown(loopback, tmp_path):
    with refused(HostKeyError):
        connect(loopback, known_hosts=tmp_path / "missing")


def test_a_changed_host_key_is_refused(loopback, tmp_path):
    other = loopback.key_file.with_suffix(".pub").read_text().split()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{loopback.port} {other[0]} {other[1]}\n")
    with refused(HostKeyError) as caught:
        connect(loopback, known_hosts=known)
    assert "another host key" in str(caught.value)
    assert not caught.value.retryable


def test_refusing_a_host_leaves_known_hosts_alone(loopback, tmp_path):
    known = tmp_path / "known"
    known.write_text("# mine\n")
    with refused(HostKeyError):
        connect(loopback, known_hosts=known)
    assert known.read_text() == "# mine\n"


def test_a_broken_line_in_known_hosts_is_explained(loopback, tmp_path):
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{loopback.port} ssh-ed25519 AAAAB3Nza*not-base64\n")
    with refused(HostKeyError) as caught:
        connect(loopback, known_hosts=known)
    assert str(known) in str(caught.value)


def test_a_key_that_is_not_accepted(loopback):
    stranger = loopback.key_file.with_name("host_key")
    with refused(AuthenticationError) as caught:
        connect(loopback, key_file=stranger)
    assert str(stranger) in str(caught.value)
    assert "ssh-copy-id" in caught.value.hint
    assert not caught.value.retryable


def test_a_key_with_a_passphrase_is_not_blamed_on_the_board(loopback, tmp_path):
    key = tmp_path / "locked"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", key], check=True
    )
    with refused(AuthenticationError) as caught:
        connect(loopback, key_file=key)
    assert "has a passphrase" in str(caught.value)


def test_a_file_that_is_no_key_is_not_worth_a_retry(loopback, tmp_path):
    (tmp_path / "no-key").write_text("hello\n")
    with refused(AuthenticationError) as caught:
        connect(loopback, key_file=tmp_path / "no-key")
    assert "no-key" in str(caught.value)


def test_nothing_listens_there(loopback):
    with socket.socket() as bound:  # bound and not listening: refuses
        bound.bind(("127.0.0.1", 0))
        with refused(DeviceUnreachable) as caught:
            connect(loopback, port=bound.getsockname()[1])
    assert caught.value.retryable
    assert "sshd" in caught.value.hint


def test_a_frozen_server_is_unreachable_in_time(own_sshd, monkeypatch):
    monkeypatch.setattr(ssh_module, "CONNECT_TIMEOUT_S", 0.5)
    freeze(own_sshd)
    start = time.monotonic()
    try:
        with refused(DeviceUnreachable):
            connect(own_sshd)
    finally:
        thaw(own_sshd)
    assert time.monotonic() - start < PROMPTLY_S


def test_something_else_than_ssh_listens_there(loopback, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with refused(DeviceUnreachable):
            connect(loopback, port=server.getsockname()[1])
        thread.join()


def test_a_failed_connection_prints_no_traceback(tmp_path):
    """paramiko logs its tracebacks, and Python prints logged errors where nobody asked for logs."""
    program = f"""
import socket, threading
from pathlib import Path
from devices.transport.ssh import SshTransport
from profiles.errors import DeviceUnreachable
server = socket.create_server(("127.0.0.1", 0))
def answer():
    peer, _ = server.accept()
    peer.sendall(b"HTTP/1.1 400 Bad Request\\r\\n\\r\\n")
    peer.close()
threading.Thread(target=answer).start()
try:
    SshTransport("127.0.0.1", server.getsockname()[1], "me", None, Path({str(tmp_path)!r}) / "k")
except DeviceUnreachable:
    print("as it should be")
"""
    (tmp_path / "k").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("as it should be\n", "")


def test_nagles_algorithm_is_off(loopback):
    with contextlib.closing(ssh(loopback)) as transport:
        sock = transport._transport.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_the_fast_ciphers_are_asked_for_first_and_no_other_is_given_up(loopback):
    usual = paramiko.Transport._preferred_ciphers
    with contextlib.closing(ssh(loopback)) as transport:
        assert transport._transport.local_cipher == "aes128-gcm@openssh.com"
        assert sorted(transport._transport.preferred_ciphers) == sorted(usual)


# A server that dies


@pytest.mark.parametrize("attempt", range(6))
def test_killed_in_mid_command(own_sshd, attempt):
    """Never a result: paramiko reports a dead connection as exit status -1 and no output."""
    seen: list[str] = []

    def on_line(text: str) -> None:
        seen.append(text)
        kill_connections(own_sshd)

    start = time.monotonic()
    with contextlib.closing(ssh(own_sshd)) as transport, refused(ConnectionLost) as caught:
        transport.run(["sh", "-c", "echo started; exec sleep 30"], deadline_s=60, on_line=on_line)
    assert time.monotonic() - start < PROMPTLY_S
    assert seen == ["started"]
    assert caught.value.retryable


def test_killed_between_commands(own_sshd):
    with contextlib.closing(ssh(own_sshd)) as transport:
        transport.run(["true"], deadline_s=10)
        kill_connections(own_sshd)
        with refused(ConnectionLost):
            transport.run(["true"], deadline_s=30)
        with refused(ConnectionLost):  # and it stays so
            transport.run(["true"], deadline_s=30)


def test_killed_in_mid_push(own_sshd, tmp_path):
    """The source is a pipe, so that the kill falls between two blocks of the file."""
    source = tmp_path / "source"
    os.mkfifo(source)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), source.open("wb") as sink:
            sink.write(bytes(3_000_000))
            sink.flush()
            kill_connections(own_sshd)
            sink.write(bytes(30_000_000))

    feeder = threading.Thread(target=feed)
    feeder.start()
    start = time.monotonic()
    with contextlib.closing(ssh(own_sshd)) as transport, refused(ConnectionLost):
        transport.push(source, str(tmp_path / "target"), deadline_s=60)
    feeder.join()
    assert time.monotonic() - start < PROMPTLY_S


def test_killed_in_mid_pull_leaves_no_file(own_sshd, tmp_path):
    source = tmp_path / "source"
    os.mkfifo(source)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), source.open("wb") as sink:
            sink.write(bytes(1_000_000))
            sink.flush()
            kill_connections(own_sshd)
            sink.write(bytes(1_000_000))

    feeder = threading.Thread(target=feed)
    feeder.start()
    (tmp_path / "here").mkdir()
    with contextlib.closing(ssh(own_sshd)) as transport, refused(ConnectionLost):
        transport.pull(str(source), tmp_path / "here" / "target", deadline_s=60)
    feeder.join()
    assert list((tmp_path / "here").iterdir()) == []


# A server that freezes


@contextmanager
def frozen_on_exit(server: LoopbackServer) -> Iterator[Callable[[str], None]]:
    """Freezes the server at the first line of output, and thaws it in the end."""
    try:
        yield lambda _text: freeze(server)
    finally:
        thaw(server)


def test_frozen_in_mid_command(own_sshd):
    with frozen_on_exit(own_sshd) as freeze_now:
        transport = ssh(own_sshd)
        start = time.monotonic()
        with refused(DeadlineExceeded):
            transport.run(
                ["sh", "-c", "echo started; exec sleep 30"], deadline_s=2, on_line=freeze_now
            )
        transport.close()
        assert time.monotonic() - start < PROMPTLY_S


def test_frozen_between_commands(own_sshd):
    with frozen_on_exit(own_sshd):
        transport = ssh(own_sshd)
        freeze(own_sshd)
        start = time.monotonic()
        with refused(DeadlineExceeded):
            transport.run(["true"], deadline_s=1)
        transport.close()
        assert time.monotonic() - start < PROMPTLY_S


@pytest.mark.parametrize("send_buffer_bytes", [None, 4096], ids=["wide", "narrow"])
def test_frozen_in_mid_push(own_sshd, tmp_path, send_buffer_bytes):
    """Also where the kernel's buffer is full before SSH's own window is: a slow radio link."""
    source = tmp_path / "source"
    source.write_bytes(bytes(40_000_000))
    with frozen_on_exit(own_sshd):
        transport = ssh(own_sshd)
        if send_buffer_bytes:
            transport._transport.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes
            )
        timer = threading.Timer(0.1, freeze, [own_sshd])
        timer.start()
        start = time.monotonic()
        # A pipe that never ends: the freeze is certain to fall into the push.
        endless = tmp_path / "endless"
        os.mkfifo(endless)

        def feed() -> None:
            with contextlib.suppress(BrokenPipeError), endless.open("wb") as sink:
                while True:
                    sink.write(bytes(65_536))

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            with refused(DeadlineExceeded):
                transport.push(endless, "/dev/null", deadline_s=2)
            transport.close()
            assert time.monotonic() - start < PROMPTLY_S
        finally:
            timer.join()
            feeder.join(5)


def test_an_endless_file_ends_by_its_deadline_and_leaves_nothing(loopback, tmp_path):
    (tmp_path / "here").mkdir()
    start = time.monotonic()
    with contextlib.closing(ssh(loopback)) as transport, refused(DeadlineExceeded):
        transport.pull("/dev/zero", tmp_path / "here" / "zeros", deadline_s=0.5)
    assert time.monotonic() - start < PROMPTLY_S
    assert list((tmp_path / "here").iterdir()) == []


class _NeverRunsACommand(paramiko.ServerInterface):
    """Opens channels and leaves every request for a command unanswered."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.let_go.wait(20)
        return False


def test_a_request_that_is_never_answered_ends_by_its_deadline(loopback, tmp_path):
    """paramiko waits for the answer to an exec request without any timeout."""
    folder = loopback.key_file.parent
    host_key = paramiko.Ed25519Key.from_private_key_file(str(folder / "host_key"))
    behaviour = _NeverRunsACommand()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
        sessions: list[paramiko.Transport] = []

        def answer() -> None:
            session = paramiko.Transport(server.accept()[0])
            sessions.append(session)
            session.add_server_key(host_key)
            session.start_server(server=behaviour)

        thread = threading.Thread(target=answer)
        thread.start()
        transport = connect(loopback, port=port, known_hosts=known)
        thread.join()
        start = time.monotonic()
        try:
            with refused(DeadlineExceeded):
                transport.run(["true"], deadline_s=1)
            assert time.monotonic() - start < PROMPTLY_S
        finally:
            behaviour.let_go.set()
            transport.close()
            sessions[0].close()


# A server that is not quite well behaved


def force(server: LoopbackServer, command: str) -> None:
    """Have the server run this in place of each command, which is in $SSH_ORIGINAL_COMMAND."""
    keys = server.key_file.with_name("authorized_keys")
    escaped = command.replace("\\", "\\\\").replace('"', '\\"')
    keys.write_text(f'command="{escaped}" {server.key_file.with_suffix(".pub").read_text()}')


def test_a_full_disk_is_recognised_on_a_board_that_speaks_german(own_sshd, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cat").write_text(
        """#!/bin/sh
if [ "$LC_ALL" = C ]
then echo "cat: write error: No space left on device" >&2
else echo "cat: Schreibfehler: Auf dem Gerät ist kein Speicherplatz mehr verfügbar" >&2
fi
exit 1
"""
    )
    (programs / "cat").chmod(0o755)
    force(own_sshd, f'PATH={programs}:$PATH; export PATH; eval "$SSH_ORIGINAL_COMMAND"')
    (tmp_path / "source").write_bytes(b"x")
    with contextlib.closing(ssh(own_sshd)) as transport, refused(DeviceFull):
        transport.push(tmp_path / "source", str(tmp_path / "target"), deadline_s=30)


def test_a_peer_that_goes_while_its_words_are_taken_is_lost():
    """Taking them tells it that there is room again, which fails with an error of its own."""

    def gone(count: int) -> bytes:
        raise EOFError

    channel: Any = SimpleNamespace(recv_ready=lambda: True, recv=gone)
    with pytest.raises(ConnectionLost):
        ssh_module._receive(channel, time.monotonic() + 5, io.BytesIO(), None)
