"""``devices calibrate-meter``: what the numbers of a power sensor stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.device_lab.output import complain, print_json, print_table, progress
from tools.device_lab.running import AsJson
from tools.device_lab.stages import Inventory

if TYPE_CHECKING:
    from devices.meter.calibrate import Calibration

DeviceId = Annotated[str, typer.Argument(metavar="ID", help="Id of the device.")]


def calibrate_meter(
    device: DeviceId,
    reference_mw: Annotated[
        float | None,
        typer.Option(
            min=1.0, help="What a bench meter at the battery shows in mW while all cores are busy."
        ),
    ] = None,
    seconds: Annotated[
        int, typer.Option(min=2, help="Left alone, busy, left alone: so long each.")
    ] = 30,
    inventory: Inventory = Path("devices.yaml"),
    as_json: AsJson = False,
) -> None:
    """Find sign and scale of a battery's current by a load on all cores, or compare a sensor.

    Example: device-lab devices calibrate-meter pixel --reference-mw 4100
    """
    from devices.inventory import load_inventory
    from devices.meter.calibrate import calibrate
    from devices.visit import visit

    chosen = load_inventory(inventory).find(device)
    with progress() as show:
        show(f"calibrate-meter: {device}, {3 * seconds} s, all cores busy in the middle of it")
        with visit(chosen, purpose="calibrate-meter") as session:
            found = calibrate(session, seconds=seconds, reference_mw=reference_mw)
    if as_json:
        print_json(found)
        return
    print_table(device, ["", "finding"], _rows(found))
    for remark in found.remarks:
        complain(remark)
    if found.entry:
        print(found.entry)


def _rows(found: Calibration) -> list[list[str]]:
    scale = "unknown" if found.current_ua is None else f"{found.current_ua} µA a unit"
    unit = "mW" if found.current_sign is None or found.current_ua else "mW, were its unit µA"
    rows = [
        ["sensor", f"{found.meter}: {found.covers}"],
        ["left alone", f"{found.idle_mw:.4g} {unit}"],
        ["busy", f"{found.loaded_mw:.4g} {unit}"],
        ["spread", f"chance alone moves the difference by {found.noise_mw:.2g} {unit}"],
        ["readings", f"{found.readings} in 3 x {found.seconds} s"],
    ]
    if found.current_sign is not None:
        rows.append(["sign", f"{found.current_sign:+d}, by the load"])
        rows.append(["scale", f"{scale}, by {found.scale_from}" if found.scale_from else scale])
    if found.off is not None:
        rows.append(["reference", f"the sensor says {100 * found.off:+.1f} % of it"])
    return rows
