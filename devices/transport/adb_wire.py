"""The adb server's protocol: requests, shell packets and file transfers on a socket of our own.

adbutils brings the adb program, but its sockets would not do here: opening one starts an adb
server where none answers, closing one sleeps for 10 ms, and its pushes go in pieces of 4 KiB.

*Source*: the protocol documents beside adb's source: OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT, and
shell_protocol.h.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from profiles.errors import ConnectionLost

Server = tuple[str, int]

_CHUNK_BYTES = 1 << 18
# In pieces of 64 KiB 50 MB took a quarter longer; beyond 1 MiB nothing is won.
# Source: own measurement, adb 29.0.6 and adbd 34.0.5 on loopback.
_FEED_BYTES = 1 << 20
_HEADER = struct.Struct("<BI")
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = 0, 1, 2, 3, 4  # shell_protocol.h


class Refused(Exception):
    """The adb server, or the device, said FAIL, and why."""


class Conversation:
    """One connection to an adb server, for one service.

    Args:
        server: host and port of the adb server.
        deadline: ``time.monotonic()`` by which all is over; every method raises ``TimeoutError``
            once it has passed, and ``ConnectionLost`` when the other side goes away.

    Raises:
        ConnectionLost: if no adb server answers there.
    """

    def __init__(self, server: Server, deadline: float) -> None:
        self._deadline = deadline
        self._buffer = bytearray()
        try:
            self._socket = socket.create_connection(server, self._left())
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionLost(
                f"no adb server at {server[0]}:{server[1]}: {error.strerror or error}"
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, whatever the other side is at."""
        self._socket.close()

    def request(self, service: str) -> None:
        """Ask for a service.

        Raises:
            Refused: with the server's reason.
        """
        payload = encode(service)
        self.send(b"%04x" % len(payload) + payload)
        answer = self.read(4)
        if answer == b"FAIL":
            raise Refused(self.read_text())
        if answer != b"OKAY":
            raise ConnectionLost(f"what answers is no adb server: it says {answer!r}")

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        with self._steps():
            self._socket.sendall(data)

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        while len(self._buffer) < count:
            with self._steps():
                chunk = self._socket.recv(_CHUNK_BYTES)
            if not chunk:
                raise ConnectionLost("the adb server closed the connection")
            self._buffer += chunk
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken

    def read_text(self) -> str:
        """A text behind its length in four hexadecimal digits."""
        return self.read(int(self.read(4), 16)).decode(errors="replace")

    def spoken_to(self) -> bool:
        """Whether something is there to be read."""
        return bool(self._buffer) or bool(select.select([self._socket], [], [], 0)[0])

    @contextlib.contextmanager
    def _steps(self) -> Iterator[None]:
        """Bound what is done by the deadline, and call every broken socket by one name."""
        self._socket.settimeout(self._left())
        try:
            yield
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionLost(f"the connection to the adb server broke: {error}") from error

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def encode(text: str) -> bytes:
    """Text for the device, where file names are bytes."""
    return text.encode(errors="surrogateescape")


def feed(talk: Conversation, source: BinaryIO) -> None:
    """Send a file to a shell's standard input, and its end; stops early if the shell speaks."""
    frame = bytearray(_HEADER.size + _FEED_BYTES)
    view = memoryview(frame)
    while chunk := source.read(_FEED_BYTES):
        _HEADER.pack_into(frame, 0, _STDIN, len(chunk))
        view[_HEADER.size : _HEADER.size + len(chunk)] = chunk
        talk.send(view[: _HEADER.size + len(chunk)])
        if talk.spoken_to():
            return  # a copy has nothing to say but that it failed
    talk.send(_HEADER.pack(_CLOSE_STDIN, 0))


def receive(talk: Conversation, on_stdout: Callable[[bytes], None]) -> bytes:
    """Take a shell's output until it says that it has ended; standard error is returned."""
    stderr: list[bytes] = []
    while True:
        kind, length = _HEADER.unpack(talk.read(_HEADER.size))
        data = talk.read(length)
        if kind == _STDOUT:
            on_stdout(data)
        elif kind == _STDERR:
            stderr.append(data)
        elif kind == _EXIT:
            return b"".join(stderr)


def receive_file(talk: Conversation, path: bytes, sink: BinaryIO) -> None:
    """Read a file on the device.

    Raises:
        Refused: with the device's reason.
    """
    talk.send(struct.pack("<4sI", b"RECV", len(path)) + path)
    while True:
        answer, length = struct.unpack("<4sI", talk.read(8))
        if answer == b"DONE":
            return
        data = talk.read(length)
        if answer == b"FAIL":
            raise Refused(data.decode(errors="replace"))
        if answer != b"DATA":
            raise ConnectionLost(f"the device answers a request for a file with {answer!r}")
        sink.write(data)
