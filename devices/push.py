"""Content-addressed files on a device.

A file's name on the device is the sha256 of its bytes, and it gets that name only after the device
itself has hashed what arrived.  So a file that is there is whole, and is never sent again.

A push that breaks off leaves its part in ``incoming``, and the next one goes on from there.  Every
push has a file of its own there: one that goes on takes the part over by a rename.  Where the
former owner still lives and writes, both write the same bytes to the same places.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from devices import push_scripts
from devices.transport.base import Completed, Transport
from profiles.canonical import file_sha256, settled_sha256
from profiles.errors import DeviceError, DeviceFull, IntegrityError

COMMAND_DEADLINE_S = 30.0
VERIFY_DEADLINE_S = 900.0
#: Slower than any link worth measuring over; a silent peer is noticed far earlier on short files.
MINIMUM_BYTES_PER_S = 50_000
#: What the store may hold if nobody says otherwise: a few hundred models for a phone.
LIMIT_BYTES = 4 << 30
#: From here on the device hashes while it still receives; for less another command costs more.
FOLLOW_FROM_BYTES = 4 << 20
#: Of one file; other hosts may take over what is being sent, and that is no damage.
_TRIES = 6
#: Names in one command: some 90 bytes each, and Linux allows 128 KiB for an argument.
_BATCH = 500
_NAME = re.compile(r"[0-9a-f]{64}(\.\w+)?", re.ASCII)


@dataclass(slots=True)
class _Seen:
    """What a device says of some files: sizes in bytes by name, parts of them, what all take."""

    stored: dict[str, int] = field(default_factory=dict)
    partials: dict[str, tuple[int, str]] = field(default_factory=dict)
    used_bytes: int | None = None


class RemoteStore:
    """The content-addressed folder on one device.

    For a file of some megabytes it runs a command on the device while the push still goes on, in
    a thread of its own.

    Args:
        transport: the connection to it.
        root: folder on the device; relative to the login's home unless absolute.
        limit_bytes: before the files take more than this, the least recently used ones go; never
            those that this object was asked for, or that a process on the device uses.
    """

    def __init__(self, transport: Transport, root: str, limit_bytes: int = LIMIT_BYTES) -> None:
        self._transport = transport
        self._root = PurePosixPath(root)
        self._limit_bytes = limit_bytes
        self._in_use: set[str] = set()

    def ensure(self, files: Iterable[Path]) -> dict[Path, str]:
        """See that these files are on the device; send those that are not.

        One round trip if all are there.

        Returns:
            For each file its path on the device.

        Raises:
            IntegrityError: what arrived is not what was sent, twice.
            DeviceFull: there is no space; nothing of the file is left behind.
            DeviceError: the folder cannot be written, or the device cannot hash.
            ConnectionLost, DeadlineExceeded: what has arrived stays, for the next try.
        """
        names = {path: _name(path) for path in files}
        sources = {name: path for path, name in names.items()}
        sizes = {name: path.stat().st_size for name, path in sources.items()}
        self._in_use |= sources.keys()
        seen = self._ask(list(sources))
        missing = [name for name in sources if seen.stored.get(name) != sizes[name]]
        if missing:
            self._keep_within_limit(seen, sum(sizes[name] for name in missing))
        for name in missing:
            self._send(sources[name], name, seen.partials.get(name))
        return {path: str(self._root / "store" / name) for path, name in names.items()}

    def verify(self, *, deadline_s: float = VERIFY_DEADLINE_S) -> tuple[str, ...]:
        """Hash everything in the store on the device, and remove what has changed there.

        Returns:
            The names of the files that had gone bad.

        Raises:
            DeviceError: the store cannot be read or hashed.
        """
        done = self._run(push_scripts.HASHES, deadline_s=deadline_s)
        if done.exit_code != 0:
            raise self._unusable(done)
        pairs = [line.split() for line in done.stdout.decode().splitlines()]
        hashes = {pair[1].lstrip("*"): pair[0] for pair in pairs if len(pair) == 2}
        bad = [
            name
            for name, sha256 in sorted(hashes.items())
            if _NAME.fullmatch(name) and name.partition(".")[0] != sha256
        ]
        self._remove([f"store/{name}" for name in bad])
        return tuple(bad)

    def _ask(self, names: Sequence[str]) -> _Seen:
        seen = _Seen()
        for start in range(0, len(names), _BATCH):
            done = self._run(push_scripts.ASK, *names[start : start + _BATCH])
            if done.exit_code != 0:
                raise self._unusable(done)
            _read_listing(done.stdout.decode(errors="replace"), seen)
        return seen

    def _send(self, path: Path, name: str, partial: tuple[int, str] | None) -> None:
        """Go on with a part of the file, or start; if the device then has other bytes, start."""
        size = path.stat().st_size
        arrived = "nothing"
        begun = self._claim(name, partial) if partial and partial[0] <= size else None
        damaged = 0
        for attempt in range(_TRIES):
            offset, aside = begun if begun and attempt == 0 else _fresh(name)
            if self._push(path, aside, name, offset):
                return
            done = self._hashed(push_scripts.ADOPT, aside, name, size)
            if done.exit_code == 0:
                return
            arrived = done.stdout.decode(errors="replace").strip() or arrived
            if done.exit_code == 5:
                raise DeviceError(
                    f"the device has nothing to hash {path.name} with: {done.complaint()}",
                    "install coreutils, busybox or openssl there",
                )
            if done.exit_code not in (3, 4):
                raise DeviceError(f"{path.name} cannot be stored: {done.complaint()}")
            damaged += done.exit_code == 3
            if damaged == 2:
                break
        sha256 = name.partition(".")[0]
        if file_sha256(path) != sha256:
            raise IntegrityError(
                f"{path.name} has changed: its bytes are not those of {sha256[:12]}",
                "make it again; a file that is named by its hash never changes",
            )
        raise IntegrityError(
            f"{path.name}: sent {sha256[:12]}, arrived {arrived[:12]}, twice",
            "is the device's memory or storage, or the link to it, damaged?",
        )

    def _claim(self, name: str, partial: tuple[int, str]) -> tuple[int, str] | None:
        """Take over what an earlier push has left, unless another host has been quicker."""
        offset, theirs = partial
        _, ours = _fresh(name)
        done = self._run(push_scripts.CLAIM, theirs, ours)
        return (offset, ours) if done.exit_code == 0 else None

    def _push(self, path: Path, aside: str, name: str, offset: int) -> bool:
        """Send a file from ``offset`` on; on a full disk make room, once.

        Returns:
            Whether the device has hashed it, found it right and given it its name already.
        """
        size = path.stat().st_size
        try:
            return self._push_and_hash(path, aside, name, offset)
        except DeviceFull as error:
            full = error
        self._remove([f"incoming/{aside}"])
        if self._evict(size, self._idle(*self._list())):
            try:
                return self._push_and_hash(path, aside, name, 0)
            except DeviceFull as error:
                full = error
            self._remove([f"incoming/{aside}"])
        raise DeviceFull(
            f"no space on the device for {path.name} ({size} bytes)",
            f"free some, or name another folder as 'root' (now {self._root})",
        ) from full

    def _push_and_hash(self, path: Path, aside: str, name: str, offset: int) -> bool:
        size = path.stat().st_size
        target = str(self._root / "incoming" / aside)
        if size - offset < FOLLOW_FROM_BYTES:
            self._transport.push(path, target, deadline_s=_deadline_s(size), offset=offset)
            return False
        with ThreadPoolExecutor(max_workers=1) as beside:
            following = beside.submit(self._hashed, push_scripts.FOLLOW, aside, name, size)
            try:
                self._transport.push(path, target, deadline_s=_deadline_s(size), offset=offset)
            except DeviceError as error:
                if not error.retryable:
                    self._remove([f"incoming/{aside}"])  # which ends the command beside, too
                raise
            return following.result().exit_code == 0

    def _hashed(self, script: str, aside: str, name: str, size: int) -> Completed:
        sha256 = name.partition(".")[0]
        return self._run(script, aside, name, sha256, str(size), deadline_s=_deadline_s(size))

    def _keep_within_limit(self, seen: _Seen, more_bytes: int) -> None:
        if seen.used_bytes is not None and seen.used_bytes + more_bytes <= self._limit_bytes:
            return
        files, used = self._list()
        excess = sum(files.values()) + more_bytes - self._limit_bytes
        idle = self._idle(files, used)
        if sum(idle.values()) < excess:
            raise DeviceFull(
                f"{more_bytes} bytes more would pass the store's limit of {self._limit_bytes}, "
                f"and only {sum(idle.values())} there are in nobody's use",
                "raise the limit, or measure fewer files at a time",
            )
        self._evict(excess, idle)

    def _evict(self, bytes_: int, idle: dict[str, int]) -> bool:
        """Remove the first of these files until ``bytes_`` are free; whether any was removed."""
        freed, gone = 0, []
        for name, size in idle.items():
            if freed >= bytes_:
                break
            gone.append(f"store/{name}")
            freed += size
        self._remove(gone)
        return bool(gone)

    def _idle(self, files: dict[str, int], used: Collection[str]) -> dict[str, int]:
        """Those that nobody uses, in their order."""
        busy = self._in_use.union(used)
        ours = {name: size for name, size in files.items() if _NAME.fullmatch(name)}
        return {name: size for name, size in ours.items() if name not in busy}

    def _list(self) -> tuple[dict[str, int], set[str]]:
        """All files with their sizes, the least recently used first; and those in use there."""
        done = self._run(push_scripts.LIST)
        listing, _, used = done.stdout.decode(errors="replace").partition("\nused\n")
        if done.exit_code != 0:
            raise self._unusable(done)
        return dict(_files(listing)), set(used.split())

    def _remove(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _BATCH):
            self._run(push_scripts.REMOVE, *names[start : start + _BATCH])

    def _run(
        self, script: str, *arguments: str, deadline_s: float = COMMAND_DEADLINE_S
    ) -> Completed:
        root = self._root if self._root.is_absolute() else f"./{self._root}"
        return self._transport.run(
            ["sh", "-c", script, "sh", str(root), *arguments], deadline_s=deadline_s
        )

    def _unusable(self, done: Completed) -> DeviceError:
        kind = DeviceFull if b"No space left" in done.stderr else DeviceError
        return kind(f"the folder {self._root} cannot be used: {done.complaint()}")


def _fresh(name: str) -> tuple[int, str]:
    """Nothing yet, in a file that nobody else writes to."""
    return 0, f"{name}.{secrets.token_hex(4)}"


def _deadline_s(size: int) -> float:
    return COMMAND_DEADLINE_S + size / MINIMUM_BYTES_PER_S


def _read_listing(text: str, seen: _Seen) -> None:
    partials, _, stored = text.rpartition("stored\n")
    for file, size in _files(partials):
        name = file.rpartition(".")[0]
        seen.partials[name] = max((size, file), seen.partials.get(name, (0, file)))
    seen.stored.update(_files(stored))
    if used := re.search(r"^used (\d+)$", stored, re.MULTILINE):
        seen.used_bytes = int(used[1]) * 1024


def _files(listing: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files in the output of ``ls -ln``, in its order."""
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 8 and words[0].startswith("-") and words[4].isdigit():
            yield words[-1], int(words[4])


def _name(path: Path) -> str:
    """The hash and, where it is a plain word, the ending, which some programs go by."""
    ending = path.suffix if re.fullmatch(r"\.\w+", path.suffix, re.ASCII) else ""
    named = re.fullmatch(r"[0-9a-f]{64}", path.stem)  # as artifacts are, by their hash
    return f"{path.stem if named else settled_sha256(path)}{ending}"
