"""When an energy run ends: from the raw readings to numbers that anybody can compute with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from devices.meter.base import Meter, Texts
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples


def understood(meter: Meter, details: Mapping[str, Any]) -> dict[str, Any]:
    """A run's details with what its readings mean.

    Args:
        meter: that was read.
        details: with ``power``: ``at_ns`` and ``values``.

    Returns:
        The same with ``meter`` (``name``, ``kind``, ``covers``, ``method``, ``calibration``,
        ``update_ns``, ``trouble``) and ``trace`` (``at_ns``, ``energy_uj``, ``covered``,
        ``charging``), plain data for :func:`profiles.energy.energy_of_run`.  Readings that cannot
        be understood are told in ``trouble``; their trace is empty.
    """
    about, power = meter.about, details["power"]
    at_ns, values = np.array(power["at_ns"], dtype=np.int64), power["values"]
    try:
        trace, charging, trouble = meter.trace(at_ns, values), meter.charging(values), ""
    except MeterError as error:
        nothing = np.zeros(0)
        trace = Trace(nothing.astype(np.int64), nothing, nothing.astype(np.bool_))
        charging, trouble = False, error.message
    return {
        **details,
        "meter": {
            "name": about.title,
            "kind": about.kind,
            "covers": about.covers,
            "method": about.method,
            "calibration": dict(about.calibration),
            "update_ns": _update_ns(meter, at_ns, values),
            "trouble": trouble,
        },
        "trace": {
            "at_ns": trace.at_ns.tolist(),
            "energy_uj": trace.energy_uj.tolist(),
            "covered": trace.covered.tolist(),
            "charging": charging,
        },
    }


def _update_ns(meter: Meter, at_ns: Samples, values: Texts) -> int:
    """How often the sensor has something new; where nobody says so, its readings do."""
    about = meter.about
    return (
        about.update_ns if about.update_known else max(about.update_ns, seen(meter, at_ns, values))
    )


def seen(meter: Meter, at_ns: Samples, values: Texts) -> int:
    """Nanoseconds from one new value to the next, by what was read; 0 without readings.

    The median over all changes; a value that hardly ever changes is taken for one that is hardly
    ever renewed, which asks for more rather than less.
    """
    if len(at_ns) < 2:
        return 0
    told = [meter.telling(texts) for texts in values]
    new = [at for at, now, last in zip(at_ns[1:], told[1:], told, strict=False) if now != last]
    return int(np.median(np.diff([at_ns[0], *new, at_ns[-1]])))
