"""``devices lease``, ``release`` and ``who``: devices held by people, and by whom at all."""

from __future__ import annotations

import contextlib
import datetime
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import UsageError
from tools.device_lab.output import complain, print_json, print_table
from tools.device_lab.running import AsJson
from tools.device_lab.stages import Inventory

if TYPE_CHECKING:
    from devices.holder import Holder
    from devices.lab import Lab
    from devices.lease import Lease

_CHECK_EVERY_S = 2.0
_TERMINATE_S = 10.0
_SECONDS = {"s": 1, "m": 60, "h": 3600}

DeviceName = Annotated[str, typer.Argument(metavar="ID", help="Id or serial of the device.")]


def lease(
    device: DeviceName,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="After --: runs while the device is held."),
    ] = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="End after 90s, 30m or 2h.")
    ] = None,
    purpose: Annotated[str, typer.Option(help="Shown to others who want the device.")] = "by hand",
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="Wait so long for another holder to finish.")
    ] = "0s",
    inventory: Inventory = Path("devices.yaml"),
) -> None:
    """Hold a device for yourself, until Ctrl-C, a time or the end of a command.

    Example: device-lab devices lease pi5 --for 30m --purpose "a new fan"
    """
    from devices.lab import Lab
    from devices.lease import lease as take

    lasts_s = None if for_ is None else seconds(for_)
    lab = Lab()
    serial = _serial(lab, device, inventory)
    ends_utc = None if lasts_s is None else _in_utc(lasts_s)
    with (
        _ended_by_signals(),
        take(lab, serial, device, purpose, seconds(wait), by_hand=True, ends_utc=ends_utc) as held,
    ):
        code = _hold(held, lasts_s, command or [])
    raise typer.Exit(code)


def release(
    device: DeviceName,
    force: Annotated[
        bool,
        typer.Option("--force", help="Take it away, whoever holds it; its results are rejected."),
    ] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Let a mended device out of quarantine.")
    ] = False,
    inventory: Inventory = Path("devices.yaml"),
) -> None:
    """End a lease taken with "devices lease", any lease by force, or a quarantine.

    Example: device-lab devices release pi5 --force
    """
    from devices.holder import ask_to_end, holder
    from devices.lab import Lab
    from devices.lease import take_away

    lab = Lab()
    serial = _serial(lab, device, inventory)
    if quarantine:
        lab.release_quarantine(serial)
        print(f"{device} is out of quarantine")
        return
    found = holder(lab, serial)
    if found is None:
        print(f"{device} is held by nobody")
        return
    if force:
        take_away(lab, serial, device)
    else:
        ask_to_end(lab, found)
    print(f"{device} is free; it was {found.describe()}")


def who(as_json: AsJson = False) -> None:
    """Show the devices that were seen from this host, and who holds them.

    Example: device-lab devices who
    """
    from devices.lab import Lab

    rows = _who(Lab())
    if as_json:
        print_json(rows)
        return
    columns = ("device", "serial", "state", "holder", "pid", "purpose", "since", "expires", "fence")
    print_table("", columns, [[_cell(row, column) for column in columns] for row in rows])


def seconds(text: str) -> float:
    """A time span as people write it: ``90s``, ``30m``, ``1.5h``.

    Raises:
        UsageError: if it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise UsageError(f"{text!r} is no time span", "write 90s, 30m or 2h")
    return float(found[1]) * _SECONDS[found[2]]


def _serial(lab: Lab, name: str, inventory: Path) -> str:
    """The hardware behind an id of the inventory, or an id or serial that the lab knows."""
    from devices.holder import holders
    from devices.inventory import load_inventory
    from devices.visit import identify

    try:
        return identify(load_inventory(inventory).find(name), lab)
    except UsageError:
        held = {each.device_id: each.serial for each in holders(lab)}
        known = {device.serial for device in lab.devices()} | set(held.values())
        serial = lab.serial_of(name) or held.get(name) or (name if name in known else None)
        if serial is None:
            raise
        return serial


def _hold(held: Lease, lasts_s: float | None, command: list[str]) -> int:
    """Keep a device until its time is over, its command has ended or somebody says so.

    Returns:
        The exit code: the command's, where there is one.
    """
    ends = None if lasts_s is None else time.monotonic() + lasts_s
    child = None
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        child = stack.enter_context(_running(command)) if command else None
        complain(
            f"{held.device_id} is yours (fence {held.fence}){'' if child else '; Ctrl-C ends it'}"
        )
        while ends is None or time.monotonic() < ends:
            left_s = _CHECK_EVERY_S if ends is None else ends - time.monotonic()
            if _ended(child, max(0.0, min(_CHECK_EVERY_S, left_s))):
                break
            held.check()
    if child is None:
        return 0
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _ended(child: subprocess.Popen[bytes] | None, within_s: float) -> bool:
    if child is None:
        time.sleep(within_s)
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(within_s)
    return child.returncode is not None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the lease as Ctrl-C does."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has ended when the block has: asked first, then killed."""
    # The terminal sends Ctrl-C to the command too: a shell takes it without ending, from its first
    # moment on.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    child = None
    try:
        child = subprocess.Popen(command)
        yield child
    except OSError as error:
        if child is not None:
            raise
        raise UsageError(f"{command[0]!r} cannot be run: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGINT, before)
        if child is not None and child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_TERMINATE_S)
            child.kill()
            child.wait()


def _who(lab: Lab) -> list[dict[str, Any]]:
    from devices.holder import holders
    from devices.lab import DeviceState

    held = {each.serial: each for each in holders(lab)}
    known = {each.serial: each for each in lab.devices()}
    rows = []
    for serial in [*known, *(held.keys() - known.keys())]:
        device, holder = known.get(serial), held.get(serial)
        rows.append(
            {
                "device": (device and device.id) or (holder and holder.device_id),
                "serial": serial,
                "state": str(device.state if device else lab.state_of(serial)),
                "reason": device.reason if device else "",
                "holder": holder and f"{holder.user}@{holder.host}",
                "pid": holder and holder.pid,
                "purpose": holder and holder.purpose,
                "since_utc": holder and holder.since_utc,
                "ends_utc": holder and holder.ends_utc,
                "expires_s": holder and _expires_s(holder),
                "fence": holder and holder.fence,
            }
        )
        if holder and holder.expired:
            rows[-1]["reason"] = "its holder is stopped: whoever wants it gets it"
        elif rows[-1]["state"] == DeviceState.LEASED:
            rows[-1]["reason"] = ""
    return rows


def _expires_s(holder: Holder) -> float | None:
    """Seconds from now; ``None`` for what is on another host's clock."""
    from devices.lab_database import this_boot

    return round(holder.expires - time.monotonic(), 1) if holder.boot == this_boot() else None


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "state":
        return f"{row['state']} ({row['reason']})" if row["reason"] else row["state"]
    if column == "since":
        return _local(row["since_utc"])
    if column == "expires":
        if row["ends_utc"] or row["expires_s"] is None:
            return _local(row["ends_utc"])
        return f"in {row['expires_s']:.0f} s, or renewed"
    value = row[column]
    return "-" if value is None else str(value)


def _local(utc: str | None) -> str:
    if utc is None:
        return "-"
    return datetime.datetime.fromisoformat(utc).astimezone().strftime("%d %b %H:%M:%S")


def _in_utc(after_s: float) -> str:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=after_s)
    return then.isoformat(timespec="seconds")
