"""Each kind of power sensor by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from devices.meter.android import odpm
from devices.meter.base import Meter
from devices.meter.battery import power_supply
from devices.meter.pmic import pmic
from devices.meter.sysfs import hwmon, iio, powercap
from devices.meter.wanted import Wanted
from profiles.catalog.profile import MeterKind
from profiles.errors import MeterError

Entry = Mapping[str, Any]

_OF_ONE: Mapping[MeterKind, Callable[[Entry, Wanted], Meter]] = {
    "hwmon": hwmon,
    "iio": iio,
    "odpm": odpm,
    "pmic": pmic,
    "power_supply": power_supply,
}


def build(entries: Sequence[Entry], wanted: Wanted) -> Meter:
    """The meter of one entry of a device's facts, or of all zones of powercap.

    Raises:
        MeterError: as its kind says, or if the login may not read it.
    """
    kind = entries[0]["kind"]
    if kind == "powercap":
        meter: Meter = powercap(entries, wanted)
    else:
        meter = _OF_ONE[kind](entries[0], wanted)
    if any(entry.get("unreadable") for entry in entries):
        raise MeterError(
            f"{meter.about.title} may not be read by this login",
            "log in as root, or have it made readable when the device starts",
        )
    return meter
