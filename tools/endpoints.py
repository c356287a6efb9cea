"""A lab to try things on: this machine as an SSH board and as a phone, for as long as this runs.

    python -m tools.endpoints [--folder workspace/endpoints] [--emulated]

Starts an OpenSSH server and an adbd on loopback, writes and prints their ``devices.yaml``, and
waits for Ctrl-C; then it ends all it started.  The phone answers from recordings and is measured
by the native agent.  With ``--emulated`` there are an aarch64 board and an aarch64 phone as well,
which need root and, the first time, a minute.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from profiles.durable import write_whole
from profiles.errors import DeviceUnreachable, EdgeError, UsageError

Entry = dict[str, Any]
Start = Callable[[Path, ExitStack], Entry]


@contextmanager
def lab(folder: Path, emulated: bool = False) -> Iterator[Path]:
    """Run the endpoints while in context.

    What cannot run on this machine is left out, and said on standard error.

    Args:
        folder: for keys, logs, what the devices write, and ``devices.yaml``; made if needed.
        emulated: with the aarch64 board and phone too.

    Returns:
        The inventory's path.

    Raises:
        UsageError: if the folder is in use by another lab.
        DeviceUnreachable: if nothing at all can run here.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    starts: dict[str, Start] = {"board": _board, "phone": _phone}
    if emulated:
        starts |= {"arm-board": _arm_board, "arm-phone": _arm_phone}
    entries: list[Entry] = []
    with ExitStack() as running:
        try:
            running.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout as error:
            raise UsageError(f"{folder} is in use by another lab", "name another folder") from error
        for name, start in starts.items():
            try:
                entries.append(start(folder / name, running))
            except EdgeError as error:
                print(f"no {name}: {error}", file=sys.stderr)
        if not entries:
            raise DeviceUnreachable("none of the endpoints can run on this machine")
        path = folder / "devices.yaml"
        write_whole(path, yaml.safe_dump({"devices": entries}, sort_keys=False).encode())
        yield path


def _board(folder: Path, running: ExitStack) -> Entry:
    from devices.endpoints import sshd

    server = running.enter_context(sshd.serve(folder))
    return dict(server.inventory_entry(folder.name, str(folder / "device")))


def _phone(folder: Path, running: ExitStack) -> Entry:
    from devices.agent.native import runtime_libraries
    from devices.endpoints.adbd import serve_phone
    from devices.endpoints.phone import install_phone

    phone = running.enter_context(serve_phone(folder, install_phone(folder / "recorded")))
    entry = phone.inventory_entry(folder.name, str(folder / "device"))
    # ExecuTorch has no C library that the native agent could load.
    return {**entry, "python": sys.executable, **_as_phone(runtime_libraries())}


def _arm_board(folder: Path, running: ExitStack) -> Entry:
    from devices.endpoints.emulated import serve_board
    from devices.endpoints.rootfs import rootfs

    return running.enter_context(serve_board(rootfs(), folder)).inventory_entry(folder.name)


def _arm_phone(folder: Path, running: ExitStack) -> Entry:
    from devices.endpoints.emulated import serve_phone
    from devices.endpoints.rootfs import rootfs

    system = rootfs()
    phone = running.enter_context(serve_phone(system, folder))
    return {"id": folder.name, **phone, **_as_phone(system.libraries())}


def _as_phone(libraries: Mapping[str, Path]) -> Entry:
    """What the entries of both phones have in common."""
    return {
        "libraries": {runtime: str(path) for runtime, path in libraries.items()},
        # It shares this machine with whatever else runs here.
        "gates": {"max_foreign_load_cores": None},
        "emulated": True,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the lab until it is interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("workspace/endpoints"))
    parser.add_argument("--emulated", action="store_true", help="aarch64 endpoints too")
    options = parser.parse_args(arguments)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: done.set())
    try:
        with lab(options.folder, options.emulated) as inventory:
            print(inventory.read_text(), flush=True)
            tried = ["device-lab", "devices", "list", "--inventory", str(inventory)]
            print(f"try: {shlex.join(tried)}\nCtrl-C ends the lab", file=sys.stderr, flush=True)
            done.wait()
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
