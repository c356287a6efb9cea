"""This machine as a device: commands are child processes."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from devices.transport.base import Completed, LineSink, LineSplitter, echo, quote, written_aside
from profiles.errors import DeadlineExceeded, DeviceError, DeviceFull

_CHUNK_BYTES = 1 << 16
_NO_SPACE = 28  # errno.ENOSPC


class LocalTransport:
    """Run commands here, each in a process group of its own.

    Args:
        home: where relative paths start; the user's home folder where none is named.
    """

    name = "local"

    def __init__(self, home: Path | None = None) -> None:
        self._home = home or Path.home()

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """See :class:`devices.transport.base.Transport`."""
        deadline = time.monotonic() + deadline_s
        process = subprocess.Popen(
            ["/bin/sh", "-c", quote(argv)],
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = _drain(process, deadline, LineSplitter(on_line))
            exit_code = process.wait(max(deadline - time.monotonic(), 0))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise DeadlineExceeded(f"{argv[0]} did not end within {deadline_s:g} s") from None
        finally:
            _end(process)
        return Completed(stdout, stderr, exit_code)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        """See :class:`devices.transport.base.Transport`; a local copy needs no deadline."""
        _copy(source, self._home / target, offset)

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        """See :class:`devices.transport.base.Transport`; a local copy needs no deadline."""
        with written_aside(target) as aside:
            _copy(self._home / source, aside)

    def probe(self, *, deadline_s: float) -> float:
        """See :class:`devices.transport.base.Transport`."""
        return echo(self, deadline_s)

    def close(self) -> None:
        """Nothing is held open."""


def _copy(source: Path, target: Path, offset: int = 0) -> None:
    try:
        if offset == 0:
            shutil.copyfile(source, target)
            return
        # To its place and not to the end: see devices.transport.base.WRITE_FROM.
        go_on = os.open(target, os.O_WRONLY | os.O_CREAT, 0o666)
        with source.open("rb") as bytes_in, os.fdopen(go_on, "wb") as bytes_out:
            bytes_in.seek(offset)
            bytes_out.seek(offset)
            shutil.copyfileobj(bytes_in, bytes_out, _CHUNK_BYTES)
    except OSError as error:
        kind = DeviceFull if error.errno == _NO_SPACE else DeviceError
        raise kind(f"{source} cannot be copied to {target}: {error.strerror}") from error


def _drain(
    process: subprocess.Popen[bytes], deadline: float, lines: LineSplitter
) -> tuple[bytes, bytes]:
    assert process.stdout and process.stderr  # noqa: S101 - Popen was given both pipes
    collected: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        while selector.get_map():
            left = deadline - time.monotonic()
            # Looked at first: a command that never stops talking is always ready.
            if left <= 0 or not (ready := selector.select(left)):
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                collected[key.data].append(chunk)
                if key.data == "stdout":
                    lines.feed(chunk)
    lines.finish()
    return b"".join(collected["stdout"]), b"".join(collected["stderr"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the command's process group, and close its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
