"""The transport contract, and the one place where remote arguments are quoted."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from profiles.errors import ConnectionLost

LineSink = Callable[[str], None]

WRITE_FROM = """
exec 3<> "$1" || exit 1
dd bs=1 seek="$2" count=0 conv=notrunc < /dev/null >&3 2> /dev/null || exit 1
exec cat >&3
"""
"""Shell script: standard input goes into file ``$1`` from byte ``$2`` on.

Not appending: a writer whose connection is half dead may still hold the file, and two that write
the same bytes to the same places do each other no harm.
"""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended by itself: both streams, whole, and its exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int

    def complaint(self) -> str:
        """The last line of standard error, or of standard output, or the exit code."""
        for stream in (self.stderr, self.stdout):
            lines = stream.decode(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
        return f"exit code {self.exit_code}"


class Transport(Protocol):
    """A connection to one device.

    Used by one thread at a time, but that one ``run`` may go on in another while a ``push`` does.
    Every call ends by its deadline: with a result, or with
    ``DeadlineExceeded`` (the peer is silent) or ``ConnectionLost`` (it is gone).  After either,
    only :meth:`close` may be called.  Relative remote paths start at the login's home folder.
    """

    name: str

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """Run a command to its end.

        Args:
            argv: the program and its arguments; any text but NUL, passed through unchanged.
            deadline_s: seconds from now by which the command must have ended.
            on_line: called with each line of standard output as it arrives, without its newline.

        Raises:
            ConnectionLost, DeadlineExceeded: see above; lines seen so far were handed over.
        """

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        """Copy a local file to a path on the device, whose folder exists.

        The target may be left half-written on failure: callers write aside and rename.

        Args:
            offset: leave out so many bytes of the source, and write the rest there in the target.
            source, target, deadline_s: from where, to where, and by when.

        Raises:
            DeviceFull: no space on the device.
            DeviceError: the target cannot be written.
            ConnectionLost, DeadlineExceeded: see above.
        """

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        """Copy a file on the device to a local path, which is written whole or not at all.

        Raises:
            DeviceError: the source cannot be read.
            ConnectionLost, DeadlineExceeded: see above.
        """

    def probe(self, *, deadline_s: float) -> float:
        """Ask the device for an answer; the seconds it took.

        Raises:
            ConnectionLost, DeadlineExceeded: there was none.
        """

    def close(self) -> None:
        """Give the connection back; may be called again."""


def echo(transport: Transport, deadline_s: float) -> float:
    """Have the device repeat a word that nothing else can have said; the seconds it took.

    Raises:
        ConnectionLost: if the answer is another.
        DeadlineExceeded: if there is none.
    """
    word = secrets.token_hex(8)
    start = time.monotonic()
    done = transport.run(["echo", word], deadline_s=deadline_s)
    taken = time.monotonic() - start
    if done.stdout.decode(errors="replace").split() != [word]:
        raise ConnectionLost(f"the device answers a probe with {done.stdout[:80]!r}")
    return taken


def quote(argv: Sequence[str]) -> str:
    """One POSIX shell command line that passes ``argv`` unchanged.

    Raises:
        ValueError: for an empty command or an argument with a NUL character.
    """
    if not argv or any("\0" in argument for argument in argv):
        raise ValueError("a command has at least one word, and no NUL character")
    return shlex.join(argv)


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path next to ``target`` to write to; it takes that name only if the block ends well."""
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


class LineSplitter:
    """Hands complete lines of a byte stream to a sink, whatever the chunks are."""

    def __init__(self, sink: LineSink | None) -> None:
        self._sink = sink
        # In pieces: joining them at each chunk would take forever on a line of many megabytes.
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._sink is None:
            return
        ends, separator, rest = chunk.rpartition(b"\n")
        if separator:
            lines = b"".join([*self._rest, ends]).split(b"\n")
            self._rest = []
            for line in lines:
                self._sink(line.decode(errors="replace"))
        if rest:
            self._rest.append(rest)

    def finish(self) -> None:
        """The stream ended: hand over a last line that has no newline."""
        if self._sink is not None and self._rest:
            self._sink(b"".join(self._rest).decode(errors="replace"))
            self._rest = []
