"""The ADB transport, against a real adbd and against an adb server that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.endpoints.processes import free_port, listening, serving
from devices.transport import adb as adb_module
from devices.transport import adb_wire
from devices.transport.adb import AdbTransport, Attached, adb_program, discover
from devices.transport.adb_wire import Conversation
from profiles.errors import (
    AuthenticationError,
    ConnectionLost,
    DeviceError,
    DeviceUnreachable,
    EdgeError,
)
from tests.processes import eventually

PROMPTLY_S = 10.0


@contextmanager
def refused(kind: type[EdgeError]) -> Iterator[pytest.ExceptionInfo[EdgeError]]:
    """The block ends with exactly this class of error."""
    with pytest.raises(EdgeError) as caught:
        yield caught
    assert type(caught.value) is kind, repr(caught.value)


class ScriptedServer:
    """An adb server whose answers are written down: per request the bytes to send for it.

    The word that the transport asks the shell to end with stands in answers as ``WORD``.
    """

    def __init__(self, answers: Mapping[str, bytes | Sequence[bytes]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer, contextlib.suppress(OSError):
                    while self._answer(peer):
                        pass  # the connection goes on to its next request

    def _answer(self, peer: socket.socket) -> bool:
        length = peer.recv(4, socket.MSG_WAITALL)
        if len(length) < 4:
            return False
        request = peer.recv(int(length, 16), socket.MSG_WAITALL).decode()
        self.asked.append(request)
        found = next(key for key in self.answers if request.startswith(key))
        answer = self.answers[found]
        word = request.rpartition("echo ")[2].partition("$")[0].encode()
        for piece in [answer] if isinstance(answer, bytes) else answer:
            peer.sendall(piece.replace(b"WORD", word))
        return found == "host:transport:" and answer == b"OKAY"


@contextmanager
def scripted(answers: Mapping[str, bytes | Sequence[bytes]]) -> Iterator[ScriptedServer]:
    with contextlib.closing(ScriptedServer(answers)) as server:
        yield server


def fail(reason: str) -> bytes:
    return b"FAIL%04x" % len(reason) + reason.encode()


def said(text: str) -> bytes:
    return b"OKAY%04x" % len(text) + text.encode()


def packet(kind: int, data: bytes) -> bytes:
    return struct.pack("<BI", kind, len(data)) + data


def ended(stdout: bytes, stderr: bytes = b"WORD0\n") -> bytes:
    """What a shell says from its start to its end; WORD is 32 characters once it is there."""
    length = len(stderr.replace(b"WORD", bytes(32)))
    error = struct.pack("<BI", 2, length) + stderr
    return b"OKAY" + packet(1, stdout) + error + packet(3, b"\0")


# Finding devices


def test_the_devices_of_a_server_are_listed_with_their_states():
    rows = "28291FDH2000AB\tdevice\n192.0.2.7:5555\toffline\nR5\tunauthorized\n"
    with scripted({"host:devices": said(rows)}) as server:
        assert discover(server.address) == [
            Attached("28291FDH2000AB", "device"),
            Attached("192.0.2.7:5555", "offline"),
            Attached("R5", "unauthorized"),
        ]


def test_a_server_without_devices_lists_none():
    with scripted({"host:devices": said("")}) as server:
        assert discover(server.address) == []


def test_a_connected_phone_is_discovered(phone):
    AdbTransport(phone.serial, phone.server).close()
    assert discover(phone.server) == [Attached(phone.serial, "device")]


def test_without_a_server_it_says_how_to_start_one():
    port = free_port()
    with refused(DeviceUnreachable) as caught:
        discover(("127.0.0.1", port))
    assert f"adb -P {port} start-server" in caught.value.hint


# Connecting


@pytest.mark.parametrize(
    ("reason", "kind", "advice"),
    [
        ("device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", None, "accept"),
        ("device still authorizing", None, "accept"),
        ("device offline", DeviceUnreachable, "adb devices"),
        ("device 'R5' not found", DeviceUnreachable, "adb devices"),
        ("insufficient permissions for device: user in plugdev group", DeviceUnreachable, "udev"),
    ],
)
def test_a_phone_that_cannot_be_worked_with(reason, kind, advice):
    with (
        scripted({"host:transport:": fail(reason)}) as server,
        refused(kind or AuthenticationError) as caught,
    ):
        AdbTransport("R5", server.address)
    assert "R5" in caught.value.message
    assert "\n" not in caught.value.message
    assert advice in caught.value.hint


def test_without_a_server_no_phone_is_to_blame():
    with refused(DeviceUnreachable) as caught:
        AdbTransport("R5", ("127.0.0.1", free_port()))
    assert "no adb server" in caught.value.message
    assert "start-server" in caught.value.hint


def test_an_old_android_is_told_apart():
    """Before Android 7 there is one stream for both outputs, and no exit code."""
    answers = {"host:transport:": b"OKAY", "shell,v2": fail("closed")}
    with scripted(answers) as server, refused(DeviceUnreachable) as caught:
        AdbTransport("R5", server.address)
    assert "Android 7" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("failed to connect to '127.0.0.1:1': Connection refused", DeviceUnreachable),
        ("failed to authenticate to 127.0.0.1:1", AuthenticationError),
    ],
)
def test_the_text_of_a_connection_counts_and_not_its_success(text, kind):
    with scripted({"host:connect:": said(text)}) as server, refused(kind):
        AdbTransport("127.0.0.1:1", server.address)
    assert server.asked == ["host:connect:127.0.0.1:1"]


def test_a_serial_that_nobody_has(phone):
    with refused(DeviceUnreachable) as caught:
        AdbTransport("nobody", phone.server)
    assert "not found" in caught.value.message


def test_something_else_than_adb_listens_there():
    with (
        scripted({"host:": b"HTTP/1.1 400 Bad Request\r\n\r\n"}) as server,
        refused(DeviceUnreachable),
    ):
        AdbTransport("R5", server.address)


def test_a_phone_that_came_back_is_reached_at_once(own_phone, tmp_path):
    """Left to itself the server tries again after ten seconds."""
    AdbTransport(own_phone.serial, own_phone.server).close()
    own_phone.adbd.kill()
    own_phone.adbd.wait()
    port = int(own_phone.serial.rpartition(":")[2])
    env = {"PATH": os.environ["PATH"], "ADBD_LISTEN": f"tcp:localhost:{port}"}
    with serving(own_phone.adbd.args, port, tmp_path / "again.log", env=env) as again:
        assert [address for address, _ in listening(again.pid)] == ["127.0.0.1"]
        start = time.monotonic()
        transport = AdbTransport(own_phone.serial, own_phone.server)
        assert transport.run(["echo", "back"], deadline_s=10).stdout == b"back\n"
        assert time.monotonic() - start < 8


def test_a_connection_that_is_dead_and_called_a_device_is_made_anew(monkeypatch):
    """The first shell never answers; after a new connection it does."""
    monkeypatch.setattr(adb_module, "CONNECT_TIMEOUT_S", 1.0)
    answers: dict[str, bytes | Sequence[bytes]] = {
        "host:connect:": said("already connected to p:1"),
        "host:disconnect:": said("disconnected p:1"),
        "host:transport:": fail("device offline"),
    }
    with scripted(answers) as server, refused(DeviceUnreachable):
        AdbTransport("p:1", server.address)
    assert [question.split(":")[1] for question in server.asked] == [
        *("connect", "transport", "disconnect", "connect", "transport"),
    ]


# The server


@pytest.fixture
def private_user(tmp_path, monkeypatch) -> Iterator[int]:
    """A user whose own adb server would be on a port of this test's; it is ended afterwards."""
    port = free_port()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    for name in ("ADB_USB", "ADB_EMU", "ADB_MDNS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5553")
    yield port
    subprocess.run([adb_program(), "-P", str(port), "kill-server"], check=False)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_the_users_own_server_is_started_if_need_be(phone, private_user):
    assert not listens(private_user)
    assert discover() == []
    assert listens(private_user)
    with contextlib.closing(AdbTransport(phone.serial)) as transport:
        assert transport.run(["echo", "hi"], deadline_s=10).stdout == b"hi\n"


def test_a_server_that_was_named_is_not_ours_to_start(private_user):
    with refused(DeviceUnreachable):
        AdbTransport("R5", ("127.0.0.1", private_user))
    assert not listens(private_user)


def test_without_an_adb_program_it_says_so(private_user, monkeypatch):
    monkeypatch.setattr(adb_module, "adb_program", lambda: "/no/such/adb")
    with refused(DeviceUnreachable) as caught:
        discover()
    assert "does not start" in caught.value.message


# Commands


@pytest.mark.parametrize(
    "broken",
    [
        b"OKAY" + packet(1, b"half of") + packet(3, b"\0"),
        ended(b"half of", b""),
        ended(b"half of", b"WORD"),
        ended(b"half of", b"WORD0"),
        ended(b"half of", b"0\n"),
        b"OKAY" + packet(1, b"half of"),
        b"OKAY" + packet(1, b"half of")[:7],
        b"OKAY" + packet(1, b"half of") + packet(2, b"x" * 30 + b"0\n"),
        ended(b"half of")[: -len(packet(3, b"\0"))],
        b"OKAY",
        b"",
    ],
)
def test_success_without_the_last_word_is_no_success(broken):
    """As when the device dies in mid command: the server ends the conversation politely."""
    with scripted({"host:transport:": b"OKAY", "shell,v2": ended(b"/data\n")}) as server:
        transport = AdbTransport("R5", server.address)
        assert transport.home == "/data"
        server.answers = {"host:transport:": b"OKAY", "shell,v2": broken}
        with refused(ConnectionLost):
            transport.run(["true"], deadline_s=10)


@settings(max_examples=25)
@given(data=st.data())
def test_packets_come_in_any_pieces(data):
    stdout = data.draw(st.lists(st.binary(max_size=60), max_size=5))
    stderr = data.draw(st.lists(st.binary(max_size=60), max_size=5))
    parts = [packet(1, chunk) for chunk in stdout] + [packet(2, chunk) for chunk in stderr]
    stream = b"OKAY" + b"".join(data.draw(st.permutations(parts))) + packet(3, b"\0")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    taken: list[bytes] = []
    with scripted({"shell": pieces}) as server, Conversation(server.address, _soon()) as talk:
        talk.request("shell,v2,raw:true")
        error = adb_wire.receive(talk, taken.append)
    assert sorted(taken) == sorted(stdout)
    assert sorted(error) == sorted(b"".join(stderr))


def _soon() -> float:
    return time.monotonic() + PROMPTLY_S


def test_a_shell_killed_in_mid_command_is_no_result(phone):
    """adbd says 137 for its own shell; who killed that cannot know what the command did."""
    with (
        contextlib.closing(AdbTransport(phone.serial, phone.server)) as transport,
        refused(ConnectionLost),
    ):
        transport.run(["sh", "-c", "echo half; kill -KILL $PPID; sleep 1"], deadline_s=10)


def test_what_is_left_in_the_background_may_complain_later(phone):
    """The command's own end comes first, and both complaints are kept, in order."""
    with contextlib.closing(AdbTransport(phone.serial, phone.server)) as transport:
        done = transport.run(
            ["sh", "-c", "{ sleep 0.3; echo late >&2; } & echo now >&2; exit 6"], deadline_s=10
        )
    assert (done.stdout, done.stderr, done.exit_code) == (b"", b"now\nlate\n", 6)


def test_a_missing_home_is_a_complaint_and_not_another_folder(own_phone, tmp_path):
    transport = AdbTransport(own_phone.serial, own_phone.server)
    transport.home = str(tmp_path / "gone")
    done = transport.run(["pwd"], deadline_s=10)
    assert done.exit_code != 0
    assert done.stdout == b""
    assert "gone" in done.complaint()


def test_relative_paths_of_pulls_start_at_home(phone, tmp_path):
    transport = AdbTransport(phone.serial, phone.server)
    transport.home = str(tmp_path)
    (tmp_path / "here").write_bytes(b"content")
    transport.pull("here", tmp_path / "back", deadline_s=10)
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_phone_works_in_the_one_folder_that_lets_it(own_phone, monkeypatch, tmp_path):
    """/data/local/tmp goes before the home folder; where neither will do it is where adbd is."""
    there, here = tmp_path / "data local tmp", tmp_path / "own-phone"
    script = adb_module._FIND_HOME.replace("/data/local/tmp", f"'{there}'")
    monkeypatch.setattr(adb_module, "_FIND_HOME", script)
    there.mkdir()
    assert AdbTransport(own_phone.serial, own_phone.server).home == str(there)
    there.rmdir()
    script = script.replace('"$HOME"', "/no/such/home")
    monkeypatch.setattr(adb_module, "_FIND_HOME", script)
    assert AdbTransport(own_phone.serial, own_phone.server).home == str(here)


# Files


def test_a_pull_that_breaks_off_leaves_nothing(tmp_path):
    answers: dict[str, bytes | Sequence[bytes]] = {
        "host:transport:": b"OKAY",
        "shell,v2": ended(b"/data\n"),
        "sync:": b"OKAYDATA" + struct.pack("<I", 100) + b"only some",
    }
    with scripted(answers) as server:
        transport = AdbTransport("R5", server.address)
        with refused(ConnectionLost):
            transport.pull("file", tmp_path / "back", deadline_s=10)
    assert list(tmp_path.iterdir()) == []


def test_a_pull_that_the_device_ends_with_a_reason(tmp_path):
    reason = b"read failed: I/O error"
    answers: dict[str, bytes | Sequence[bytes]] = {
        "host:transport:": b"OKAY",
        "shell,v2": ended(b"/data\n"),
        "sync:": b"OKAYDATA"
        + struct.pack("<I", 4)
        + b"some"
        + b"FAIL"
        + struct.pack("<I", 22)
        + reason,
    }
    with scripted(answers) as server:
        transport = AdbTransport("R5", server.address)
        with refused(DeviceError) as caught:
            transport.pull("file", tmp_path / "back", deadline_s=10)
    assert "I/O error" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_not_made(phone, tmp_path):
    """adbd's own file transfer would make it."""
    (tmp_path / "source").write_bytes(b"x")
    with (
        contextlib.closing(AdbTransport(phone.serial, phone.server)) as transport,
        refused(DeviceError),
    ):
        transport.push(tmp_path / "source", str(tmp_path / "a" / "b"), deadline_s=10)
    assert not (tmp_path / "a").exists()


def test_a_push_that_broke_off_can_go_on(own_phone, tmp_path):
    """adbd's own file transfer would remove what had arrived when the connection broke."""
    content = os.urandom(20_000_000)
    (tmp_path / "whole").write_bytes(content)
    target = tmp_path / "target"
    os.mkfifo(tmp_path / "pipe")

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), (tmp_path / "pipe").open("wb") as sink:
            sink.write(content[:6_000_000])
            sink.flush()
            eventually(lambda: target.exists() and target.stat().st_size > 1_000_000)
            own_phone.adb_server.kill()
            sink.write(content[6_000_000:])

    feeder = threading.Thread(target=feed)
    feeder.start()
    with refused(ConnectionLost):
        AdbTransport(own_phone.serial, own_phone.server).push(
            tmp_path / "pipe", str(target), deadline_s=30
        )
    feeder.join()
    own_phone.adb_server.wait()
    port = own_phone.server[1]
    env = {**os.environ, "HOME": str(tmp_path), "ADB_USB": "0", "ADB_EMU": "0"}
    with serving(own_phone.adb_server.args, port, tmp_path / "again.log", env=env):
        transport = AdbTransport(own_phone.serial, own_phone.server)
        arrived = target.stat().st_size
        assert 1_000_000 < arrived < len(content)
        transport.push(tmp_path / "whole", str(target), deadline_s=30, offset=arrived)
    assert target.read_bytes() == content


def test_importing_the_transport_starts_nothing_heavy():
    program = "import sys, devices.transport.adb; print('adbutils' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
