"""``devices``: which there are, and whether they can measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tools.device_lab import leases
from tools.device_lab.output import complain, print_json, print_table, progress
from tools.device_lab.running import AsJson
from tools.device_lab.stages import Inventory

app = typer.Typer(help="The devices of an inventory.", no_args_is_help=True)
app.command("lease")(leases.lease)
app.command("release")(leases.release)
app.command("who")(leases.who)


@app.command("list")
def list_(inventory: Inventory = Path("devices.yaml"), as_json: AsJson = False) -> None:
    """List the devices of an inventory.

    Example: device-lab devices list --inventory lab/devices.yaml
    """
    from devices.inventory import load_inventory

    found = load_inventory(inventory).devices
    if as_json:
        print_json([device.model_dump(mode="json") for device in found])
        return
    rows = [[d.id, d.profile, d.address, "yes" if d.emulated else "no"] for d in found]
    print_table("", ["device", "profile", "address", "emulated"], rows)


@app.command()
def doctor(
    device: Annotated[list[str] | None, typer.Argument(help="Ids; all if none is named.")] = None,
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
                ["ok" if check.ok else "MISSING", check.name, check.detail, check.remedy]
                for check in report.checks
            ]
            print_table(report.device, ["", "check", "finding", "what to do"], rows)
    if not all(report.healthy for report in reports):
        complain("some checks failed")
        raise typer.Exit(1)
