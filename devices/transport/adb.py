"""A phone or board behind ADB, through the adb server.

A relative path starts at ``/data/local/tmp``, the one folder of a phone where its shell may write
and start programs; where there is none (a Linux board with adbd), at the login's home folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.transport import adb_wire
from devices.transport.adb_wire import Conversation, Refused, Server
from devices.transport.base import (
    WRITE_FROM,
    Completed,
    LineSink,
    LineSplitter,
    echo,
    quote,
    written_aside,
)
from profiles.errors import (
    AuthenticationError,
    ConnectionLost,
    DeadlineExceeded,
    DeviceError,
    DeviceFull,
    DeviceUnreachable,
)

CONNECT_TIMEOUT_S = 10.0
_SERVER_START_S = 20.0
_DEFAULT_PORT = 5037
_MAX_SERVICE_BYTES = 32_000  # the length of a request has four hexadecimal digits
_FIND_HOME = (
    'for home in /data/local/tmp "$HOME" .; do [ -w "$home" ] && cd "$home" && break; done; pwd'
)


@dataclass(frozen=True, slots=True)
class Attached:
    """A device that an adb server knows: ``state`` is ``device`` if it can be worked with."""

    serial: str
    state: str


def discover(
    server: Server | None = None, *, deadline_s: float = CONNECT_TIMEOUT_S
) -> list[Attached]:
    """The devices an adb server knows, as ``adb devices`` shows them.

    Args:
        server: host and port; ``None`` for the user's own server, which is started if need be.
        deadline_s: seconds by which the server must have answered.

    Raises:
        DeviceUnreachable: if it does not answer.
    """
    answer = _ask_server(server or _own_server(), "host:devices", time.monotonic() + deadline_s)
    rows = (line.split("\t", 1) for line in answer.splitlines() if "\t" in line)
    return [Attached(serial, state.strip()) for serial, state in rows]


class AdbTransport:
    """One device of an adb server; each call is a connection of its own to that server.

    Args:
        serial: the device's serial as ``adb devices`` shows it, or ``host:port`` for one that is
            reached over the network: the server is then told to connect to it.
        server: host and port of the adb server; ``None`` for the user's own, which is started if
            it does not run. One that was named is not ours to start.

    Attributes:
        home: the folder on the device where commands and relative paths start.

    Raises:
        AuthenticationError: the device has not allowed this computer.
        DeviceUnreachable: there is no such server or device, or it does not answer.
    """

    name = "adb"

    def __init__(self, serial: str, server: Server | None = None) -> None:
        self._serial = serial
        self._server = server or _own_server()
        self.home = "."
        self.home = self._attach()

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """See :class:`devices.transport.base.Transport`."""
        sink, lines = io.BytesIO(), LineSplitter(on_line)

        def take(chunk: bytes) -> None:
            sink.write(chunk)
            lines.feed(chunk)

        with _by(deadline_s, argv[0] if argv else "") as deadline:
            stderr, code = self._shell(f"({quote(argv)}) </dev/null", deadline, take)
        lines.finish()
        return Completed(sink.getvalue(), stderr, code)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        """See :class:`devices.transport.base.Transport`.

        Through ``cat``: it is as fast as ADB's own file transfer, of which adbd removes what had
        arrived when the connection breaks, so that nothing could go on where it broke off.
        """
        path = os.fsdecode(self._absolute(target))
        command = f"env LC_ALL=C cat > {quote([path])}"
        if offset:
            command = quote(["env", "LC_ALL=C", "sh", "-c", WRITE_FROM, "sh", path, str(offset)])
        with _by(deadline_s, "a copy") as deadline, source.open("rb") as stream:
            if offset:
                stream.seek(offset)
            stderr, code = self._shell(command, deadline, lambda _: None, stream)
        if code != 0:
            complaint = Completed(b"", stderr, code).complaint()
            kind = DeviceFull if b"No space left" in stderr else DeviceError
            raise kind(f"{target} cannot be written: {complaint}")

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        """See :class:`devices.transport.base.Transport`."""
        with (
            written_aside(target) as aside,
            _by(deadline_s, "a copy") as deadline,
            aside.open("wb") as sink,
            self._open("sync:", deadline) as talk,
        ):
            try:
                adb_wire.receive_file(talk, self._absolute(source), sink)
            except Refused as error:
                raise DeviceError(f"{source} cannot be read: {error}") from error

    def probe(self, *, deadline_s: float) -> float:
        """See :class:`devices.transport.base.Transport`."""
        return echo(self, deadline_s)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _absolute(self, path: str) -> bytes:
        return adb_wire.encode(posixpath.join(self.home, path))

    def _shell(
        self,
        command: str,
        deadline: float,
        on_stdout: Callable[[bytes], None],
        source: io.BufferedReader | io.BytesIO | None = None,
    ) -> tuple[bytes, int]:
        """Have the device's shell run a line; standard error and the exit code.

        A word that nobody can know beforehand follows the command's last word on standard error.
        Without it the command did not end, whatever adb says about its success.
        """
        word = secrets.token_hex(16)
        line = f"cd {quote([self.home])} && {command}; echo {word}$? >&2"
        if source is None and len(adb_wire.encode(line)) > _MAX_SERVICE_BYTES:
            line, source = 'eval "$(cat)"', io.BytesIO(adb_wire.encode(line))
        with self._open(f"shell,v2,raw:{line}", deadline) as talk:
            if source is not None:
                adb_wire.feed(talk, source)
            stderr = adb_wire.receive(talk, on_stdout)
        before, found, after = stderr.rpartition(word.encode())
        code, newline, late = after.partition(b"\n")
        if not (found and newline and code.isdigit()):
            raise ConnectionLost("the device's shell was ended in the middle of a command")
        return before + late, int(code)

    def _open(self, service: str, deadline: float) -> Conversation:
        talk = Conversation(self._server, deadline)
        try:
            talk.request(f"host:transport:{self._serial}")
            talk.request(service)
        except BaseException:
            talk.close()
            raise
        return talk

    def _attach(self) -> str:
        """Find the device and make sure that it answers: its home folder."""
        end = time.monotonic() + CONNECT_TIMEOUT_S
        if ":" not in self._serial:
            return self._find_home(end)
        self._connect(end)
        with contextlib.suppress(DeviceUnreachable):
            return self._find_home(time.monotonic() + CONNECT_TIMEOUT_S / 2)
        # The server keeps a broken connection for long, and calls it a device all the while.
        _ask_server(self._server, f"host:disconnect:{self._serial}", end)
        self._connect(end)
        return self._find_home(end)

    def _find_home(self, deadline: float) -> str:
        answer = bytearray()
        try:
            self._shell(_FIND_HOME, deadline, answer.extend)
        except Refused as error:
            raise _unreachable(self._serial, str(error)) from error
        except (TimeoutError, ConnectionLost) as error:
            raise _unreachable(self._serial, str(error) or "it does not answer") from error
        return os.fsdecode(bytes(answer).rstrip(b"\n"))

    def _connect(self, deadline: float) -> None:
        """Have the server connect to the device: it says OKAY even if it could not."""
        text = _ask_server(self._server, f"host:connect:{self._serial}", deadline)
        if not text.startswith(("connected to", "already connected to")):
            raise _unreachable(self._serial, text.strip())


def _ask_server(server: Server, question: str, deadline: float) -> str:
    """What an adb server answers, be it yes or no."""
    where = f"{server[0]}:{server[1]}"
    try:
        with Conversation(server, deadline) as talk:
            talk.request(question)
            return talk.read_text()
    except Refused as error:
        return str(error)
    except TimeoutError as error:
        raise DeviceUnreachable(
            f"the adb server at {where} does not answer {question}",
            "is the device on? else: adb kill-server; adb start-server",
        ) from error
    except ConnectionLost as error:
        raise DeviceUnreachable(error.message, f"adb -P {server[1]} start-server") from error


def _own_server() -> Server:
    """The user's own adb server, which any adb command would start as well."""
    server = ("127.0.0.1", int(os.environ.get("ANDROID_ADB_SERVER_PORT", _DEFAULT_PORT)))
    with contextlib.suppress(OSError), socket.create_connection(server, CONNECT_TIMEOUT_S):
        return server
    program = adb_program()
    try:
        subprocess.run(
            [program, "-P", str(server[1]), "start-server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SERVER_START_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceUnreachable(
            f"the adb server does not start: {error}", f"{program} start-server"
        ) from error
    return server


def adb_program() -> str:
    """The user's adb, or the one that adbutils brings along.

    Of two versions of adb the later to come ends the other's server: so the user's own goes first.
    """
    import adbutils  # type: ignore[import-untyped]

    return str(adbutils.adb_path())


@contextlib.contextmanager
def _by(deadline_s: float, what: str) -> Iterator[float]:
    """The deadline of a call, and the names of what can go wrong on the way."""
    try:
        yield time.monotonic() + deadline_s
    except TimeoutError:
        raise DeadlineExceeded(f"{what} did not end within {deadline_s:g} s") from None
    except Refused as error:
        raise ConnectionLost(f"the adb server has lost the device: {error}") from error


def _unreachable(serial: str, reason: str) -> DeviceError:
    """Why a device cannot be worked with, and what to do about it."""
    first = reason.splitlines()[0] if reason else "no reason given"
    if "authoriz" in reason or "failed to authenticate" in reason:
        return AuthenticationError(
            f"{serial} has not allowed this computer to use ADB",
            "unlock its screen and accept 'Allow USB debugging'; if it does not ask, take the "
            "cable out, revoke the authorisations in its developer options, and plug it in again",
        )
    hint = "adb devices shows what is attached; is the cable in, and USB debugging on?"
    if "permission" in reason:
        hint = (
            "apt-get install android-sdk-platform-tools-common for its udev rules, be in the "
            "group plugdev, and plug the phone in again"
        )
    elif first == "closed":
        first, hint = "it closes the shell at once", "Android 7 or newer is needed"
    elif first.startswith("no adb server"):
        hint = "adb start-server"
    elif ":" in serial:
        hint = "is the device on and in the same network, and adbd listening there?"
    return DeviceUnreachable(f"{serial} cannot be reached: {first}", hint)
