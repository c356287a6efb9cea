"""The rails of a Raspberry Pi 5's power chip, which its firmware tells.

``vcgencmd pmic_read_adc`` prints two lines a rail::

    3V7_WL_SW_A current(0)=0.09954640A
    3V7_WL_SW_V volt(8)=3.72230300V

EXT5V and BATT have a voltage only.

*Source*: public listings; Raspberry Pi documentation, vcgencmd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devices.meter.base import About, Sampling, Texts
from devices.meter.curve import clock, from_power, numbers, pace_ns
from devices.meter.wanted import Wanted
from profiles.energy import Trace
from profiles.records import Samples

_COMMAND = ("vcgencmd", "pmic_read_adc")
_LINE = re.compile(
    r"^\s*(\S{1,40})_([AV]) (?:current|volt)\([0-9]+\)=(-?[0-9]{1,6}(?:\.[0-9]{1,12})?)([AV])\s*$",
    re.ASCII | re.MULTILINE,
)
#: Chosen, not measured: the chip is asked anew each time, and what the command takes shows in the
#: readings.
_UPDATE_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class Pmic:
    """All rails that count, summed up."""

    about: About
    rails: tuple[str, ...]

    def sampling(self) -> Sampling:
        """See :class:`devices.meter.base.Meter`."""
        return Sampling.of(self.about.update_ns, command=_COMMAND)

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        power_uw = numbers(self.about.title, values, self._power_uw)
        times = clock(at_ns)
        # The chip is asked by each reading: what the command takes is the sensor's own period.
        return from_power(times, power_uw, self.about.update_ns, pace_ns(times))

    def _power_uw(self, texts: Sequence[str]) -> float | None:
        watts = rails(texts[0])
        if any(rail not in watts for rail in self.rails):
            return None
        return 1e6 * sum(watts[rail] for rail in self.rails)

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return texts[0] if texts else ""

    def charging(self, values: Texts) -> bool:
        """A board has no battery, and its rails are behind whatever feeds it."""
        return False


def rails(text: str) -> dict[str, float]:
    """The power in W of each rail of which both current and voltage are told."""
    told = {(m[1], m[2]): float(m[3]) for m in _LINE.finditer(text) if m[2] == m[4]}
    return {
        rail: amperes * told[rail, "V"]
        for (rail, unit), amperes in told.items()
        if unit == "A" and (rail, "V") in told
    }


def pmic(entry: Mapping[str, Any], wanted: Wanted) -> Pmic:
    """A Raspberry Pi's power chip; its rails do not contain each other.

    Raises:
        MeterError: if one is asked for that it does not tell.
    """
    chosen = wanted.of_all(entry, entry.get("rails", ()))
    method = "current times voltage, by the trapezoidal rule over the device's own clock"
    about = wanted.about(entry, method, _UPDATE_NS, documented=False)
    return Pmic(about, chosen)
