"""A lock that the kernel gives back the moment its holder dies, however it dies.

It is an open-file-description lock (``F_OFD_SETLK`` of fcntl(2), Linux 3.15 and later), which is
like flock(2) but can also be asked about without being taken: a look at a lock never gets in the
way of somebody who wants it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from profiles.errors import DeviceError

#: ``struct flock`` of fcntl(2): type, whence, start, length (0: to the end), process id.
_FLOCK = "hhqqi"
#: What to do about files that another user of this host has made.
NOT_OURS = (
    "did another user make files there, as sudo does? Then chown the lab folder and all in it to"
    " yourself; or set EDGELOOP_LAB to a folder you may write"
)
#: Descriptors of locks that this process holds; a forked child must not keep them held.
_held: set[int] = set()


class KernelLock:
    """An exclusive lock on the file that a path names; made by :meth:`take`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        _held.add(descriptor)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Lock the file of that name, made where there is none; ``None`` if another has it.

        Raises:
            DeviceError: if the file cannot be used.
        """
        with _explained(path):
            return cls._take(path)

    @classmethod
    def _take(cls, path: Path) -> Self | None:
        while True:
            descriptor = open_shared(path)
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request())
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _names(path, descriptor):
                return cls(path, descriptor)
            os.close(descriptor)  # the name was given to another file meanwhile

    @classmethod
    def replace(cls, path: Path) -> Self | None:
        """Lock a new file under that name; whoever holds the old file's lock holds nothing."""
        with _explained(path):
            path.unlink(missing_ok=True)
        return cls.take(path)

    def release(self) -> None:
        """Let go, once; a forked child's copy of the lock is none."""
        # The number may be another lock's as soon as it is closed.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor in _held:
            _held.discard(descriptor)
            # Said aloud: a child that is being forked just now has a copy of the descriptor.
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK))
            os.close(descriptor)


def held(path: Path) -> bool:
    """Whether a living process holds the lock of the file that has this name now.

    Raises:
        DeviceError: if the file cannot be used.
    """
    with _explained(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _request())
        finally:
            os.close(descriptor)
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK


def open_shared(path: Path) -> int:
    """Open a file for reading and writing; the group of a folder may share what is in it.

    Returns:
        A descriptor that programs started by this one do not inherit.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    if path.parent.stat().st_mode & stat.S_IWGRP and found.st_uid == os.geteuid():
        os.fchmod(descriptor, 0o660)  # whatever the umask
    return descriptor


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(f"the lock {path} cannot be used: {error.strerror}", NOT_OURS) from error


def _request(kind: int = fcntl.F_WRLCK) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _names(path: Path, descriptor: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _let_go_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
