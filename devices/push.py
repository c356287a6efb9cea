"""Content-addressed files on a device.

A file's name on the device is the sha256 of its bytes, and it gets that name only after the device
itself has hashed what arrived.  So a file that is there is whole, and is never sent again.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from devices.transport.base import Transport
from profiles.canonical import file_sha256
from profiles.errors import DeviceError, DeviceFull, IntegrityError

COMMAND_DEADLINE_S = 30.0
#: Slower than any link worth measuring over; a silent peer is noticed far earlier on short files.
MINIMUM_BYTES_PER_S = 50_000

# Of each (name, size) pair that is not there in full, print the name.
_MISSING = """
LC_ALL=C; export LC_ALL
root=$1; shift
mkdir -p "$root/store" "$root/incoming" || exit 1
while [ $# -gt 0 ]; do
  [ -f "$root/store/$1" ] && [ "$(wc -c < "$root/store/$1")" -eq "$2" ] || echo "$1"
  shift 2
done
"""
# Hash what arrived, and only then give it its name.
_ADOPT = """
line=$(sha256sum < "$1") || { rm -f "$1"; exit 1; }
if [ "${line%% *}" = "$3" ]; then mv -f "$1" "$2"; else rm -f "$1"; echo "${line%% *}"; exit 3; fi
"""


class RemoteStore:
    """The content-addressed folder on one device.

    Args:
        transport: the connection to it.
        root: folder on the device; relative to the login's home unless absolute.
    """

    def __init__(self, transport: Transport, root: str) -> None:
        self._transport = transport
        self._root = PurePosixPath(root)

    def ensure(self, files: Iterable[Path]) -> dict[Path, str]:
        """See that these files are on the device; send those that are not.

        One round trip if all are there.

        Returns:
            For each file its path on the device.

        Raises:
            IntegrityError: what arrived is not what was sent.
            DeviceFull: there is no space; nothing of the file is left behind.
            DeviceError: the folder cannot be written.
        """
        names = {path: _name(path) for path in files}
        missing = self._missing(names)
        for path, name in names.items():
            if name in missing:
                self._send(path, name)
                missing.discard(name)
        return {path: str(self._root / "store" / name) for path, name in names.items()}

    def _missing(self, names: dict[Path, str]) -> set[str]:
        pairs = [part for path, name in names.items() for part in (name, str(path.stat().st_size))]
        done = self._transport.run(
            ["sh", "-c", _MISSING, "sh", str(self._root), *pairs], deadline_s=COMMAND_DEADLINE_S
        )
        if done.exit_code != 0:
            kind = DeviceFull if b"No space left" in done.stderr else DeviceError
            raise kind(f"the folder {self._root} cannot be used: {done.complaint()}")
        return set(done.stdout.decode().split())

    def _send(self, path: Path, name: str) -> None:
        aside = str(self._root / "incoming" / f"{name}.{secrets.token_hex(4)}")
        deadline_s = COMMAND_DEADLINE_S + path.stat().st_size / MINIMUM_BYTES_PER_S
        try:
            self._transport.push(path, aside, deadline_s=deadline_s)
        except DeviceFull as error:
            with contextlib.suppress(DeviceError):
                self._transport.run(["rm", "-f", aside], deadline_s=COMMAND_DEADLINE_S)
            raise DeviceFull(
                f"no space on the device for {path.name} ({path.stat().st_size} bytes)",
                f"free some, or name another folder as 'root' (now {self._root})",
            ) from error
        sha256 = name.partition(".")[0]
        target = str(self._root / "store" / name)
        done = self._transport.run(
            ["sh", "-c", _ADOPT, "sh", aside, target, sha256], deadline_s=deadline_s
        )
        if done.exit_code == 3:
            arrived = done.stdout.decode().strip() or "nothing"
            raise IntegrityError(f"{path.name}: sent {sha256[:12]}, arrived {arrived[:12]}")
        if done.exit_code != 0:
            raise DeviceError(f"{path.name} cannot be stored: {done.complaint()}")


def _name(path: Path) -> str:
    """The hash and, where it is a plain word, the ending, which some programs go by."""
    ending = path.suffix if re.fullmatch(r"\.\w+", path.suffix, re.ASCII) else ""
    return f"{file_sha256(path)}{ending}"
