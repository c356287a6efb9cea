"""``devices``: which there are, what state they are in, and whether they can measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.device_lab.leases import lease, release, who
from tools.device_lab.meters import calibrate_meter
from tools.device_lab.output import complain, print_json, print_table, progress
from tools.device_lab.running import AsJson
from tools.device_lab.stages import Inventory
from tools.device_lab.stock import stock

if TYPE_CHECKING:
    from devices.inventory import Device
    from devices.lab import Lab

app = typer.Typer(help="The devices of an inventory, and who holds them.", no_args_is_help=True)
app.command()(lease)
app.command()(release)
app.command()(who)
app.command()(stock)
app.command()(calibrate_meter)

DeviceIds = Annotated[list[str] | None, typer.Argument(help="Ids; all if none is named.")]


@app.command("list")
def list_(
    inventory: Inventory = Path("devices.yaml"),
    probe: Annotated[
        bool, typer.Option("--probe", help="Ask each device for a sign of life.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the devices of an inventory, and the state each was last in.

    Example: device-lab devices list --probe
    """
    from devices.inventory import load_inventory
    from devices.lab import Lab

    with progress() as show:
        lab, found = Lab(), []
        for device in load_inventory(inventory).devices:
            show(f"probe: {device.id}") if probe else None
            found.append(_state(device, lab, probe))
    if as_json:
        print_json(found)
        return
    rows = [
        [d["id"], d["profile"], _where(d), _why(d), d["serial"], _answer(d["answers_in_s"])]
        for d in found
    ]
    print_table("", ["device", "profile", "address", "state", "serial", ">answers in"], rows)


def _where(row: dict[str, Any]) -> str:
    return f"{row['address']} (emulated)" if row["emulated"] else str(row["address"])


def _why(row: dict[str, Any]) -> str:
    return f"{row['state']}: {row['reason']}" if row["reason"] else str(row["state"])


def _answer(taken_s: float | None) -> str:
    return "-" if taken_s is None else f"{1000 * taken_s:.1f} ms"


def _state(device: Device, lab: Lab, probe: bool) -> dict[str, Any]:
    from devices.lab import DeviceState
    from devices.visit import sign_of_life
    from profiles import units
    from profiles.errors import DeviceError

    taken_s, trouble = None, ""
    if probe:
        try:
            taken_s = sign_of_life(device, lab)
        except DeviceError as error:
            trouble = error.message
    serial = device.known_serial or lab.serial_of(device.id)
    seen = {known.serial: known for known in lab.devices()}.get(serial or "")
    return {
        "id": device.id,
        "profile": device.profile,
        "address": device.address,
        "emulated": device.is_emulated,
        "serial": serial or units.UNKNOWN,
        "state": seen.state if seen else DeviceState.ABSENT,
        "reason": trouble or (seen.reason if seen else "never seen"),
        "last_seen_utc": seen.last_seen_utc if seen else None,
        "answers_in_s": taken_s,
    }


@app.command()
def discover(
    server: Annotated[
        str | None, typer.Option("--adb-server", help="HOST:PORT; your own if none is named.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find attached phones, and print their entries, which go to the end of a devices.yaml.

    Example: device-lab devices discover >> devices.yaml
    """
    import textwrap

    import yaml

    from devices.discovery import attached
    from devices.inventory import adb_server

    with progress() as show:
        show("discover: asking the adb server")
        found = attached(adb_server(server) if server else None)
    if as_json:
        print_json(found)
        return
    for one in found:
        if one.entry is None:
            complain(f"{one.serial} is {one.state}: {one.remedy}")
    entries = [dict(one.entry) for one in found if one.entry is not None]
    if entries:
        print(textwrap.indent(yaml.safe_dump(entries, sort_keys=False), "  "), end="")
        complain("to a file that is new or empty, write the line 'devices:' first")
    else:
        complain("no phone was found: is USB debugging on, and the cable one for data?")
        raise typer.Exit(1)


@app.command()
def doctor(
    device: DeviceIds = None,
    inventory: Inventory = Path("devices.yaml"),
    as_json: AsJson = False,
) -> None:
    """Check devices: reachable, agent runs, runtimes work; and what to do where not.

    Example: device-lab devices doctor pi5
    """
    from devices.doctor import examine
    from devices.inventory import load_inventory

    known = load_inventory(inventory)
    chosen = [known.find(name) for name in device] if device else known.devices
    reports = []
    with progress() as show:
        for one in chosen:
            show(f"doctor: {one.id}")
            reports.append(examine(one))
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            rows = [
                [check.verdict, check.name, check.detail, check.remedy] for check in report.checks
            ]
            print_table(report.device, ["", "check", "finding", "what to do"], rows)
    if not all(report.healthy for report in reports):
        complain("some checks failed")
        raise typer.Exit(1)
