"""Power sensors: which one a device has, what to read of it, and what the readings mean.

:func:`find_meter` picks the sensor; its :class:`~devices.meter.base.Sampling` goes to the agent;
:func:`understood` turns what the agent brought into a curve of energy.
"""

from __future__ import annotations

from devices.meter.base import About, Meter, Sampling
from devices.meter.selection import find_meter
from devices.meter.understanding import understood

__all__ = ["About", "Meter", "Sampling", "find_meter", "understood"]
