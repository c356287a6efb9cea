"""Which of a device's power sensors is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devices.inventory import Device
from devices.meter.base import Meter
from profiles.errors import MeterError


def find_meter(device: Device, facts: Mapping[str, Any]) -> Meter:
    """The power sensor of a device.

    Args:
        device: of the inventory.
        facts: what it says of itself.

    Raises:
        MeterError: it has none, or none that can be read and is calibrated.
    """
    raise MeterError("it shows no power meter", "energy stays unknown", device.id)
