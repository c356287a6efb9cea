"""A battery's own gauge: ``power_supply``.

Its power is the device's only while nothing charges it.  By the ABI its current is in µA and
negative while it discharges; makers break both, so that sign and scale are calibrated (see
:mod:`devices.meter.calibrate`) and never guessed.

*Source*: Linux, Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from devices.facts.supplies import is_online
from devices.meter.base import About, Sampling, Texts
from devices.meter.curve import clock, from_power, number, numbers
from devices.meter.wanted import Wanted
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples

CALIBRATE = "device-lab devices calibrate-meter {device}"
#: Chosen, by no document: gauges differ, and what is slower shows in the readings.
_UPDATE_NS = 1_000_000_000
#: A battery's voltage lies between these: what does not is in another unit than µV.  Chosen.
_VOLTAGES_UV = (1e6, 1e8)


@dataclass(frozen=True, slots=True)
class Battery:
    """A battery.

    Args:
        files: its readings first: ``power_now``, or ``current_now`` and ``voltage_now``; then
            whether it is charged: ``status`` where it has one, and each charger's ``online``.
        readings: how many of them are its readings.
        status: whether ``status`` is among them.
        sign: what they are multiplied by to be positive while it discharges.
        current_ua: µA that a number in ``current_now`` stands for.
    """

    about: About
    files: tuple[str, ...]
    readings: int
    status: bool
    sign: int
    current_ua: int

    def sampling(self) -> Sampling:
        """See :class:`devices.meter.base.Meter`."""
        return Sampling.of(self.about.update_ns, self.files)

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        power_uw = numbers(self.about.title, values, self._power_uw)
        return from_power(clock(at_ns), power_uw, self.about.update_ns)

    def _power_uw(self, texts: Sequence[str]) -> float | None:
        first = number(texts[0])
        if first is None or self.readings == 1:
            return None if first is None else self.sign * first
        voltage_uv = number(texts[1])
        if voltage_uv is None or not _VOLTAGES_UV[0] <= voltage_uv <= _VOLTAGES_UV[1]:
            return None
        return self.sign * self.current_ua * first * voltage_uv / 1e6

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return tuple(texts[: self.readings])

    def charging(self, values: Texts) -> bool:
        """Unless the battery says that it discharges, and no charger that it is there.

        Raises:
            MeterError: if neither said anything in all these readings.
        """
        told = [[text.strip() for text in texts[self.readings :]] for texts in values]
        if not any(map(any, told)):
            raise MeterError(
                f"{self.about.title} was read, but not whether it is charged: its current may be"
                " another's",
                "may this login read its status and its charger's online?",
            )
        return any(map(self._charged, told))

    def _charged(self, words: Sequence[str]) -> bool:
        if self.status and words and words[0] not in ("Discharging", ""):
            return True
        return any(map(is_online, words[1:] if self.status else words))


def power_supply(entry: Mapping[str, Any], wanted: Wanted) -> Battery:
    """A battery whose sign and scale are known.

    Raises:
        MeterError: if they are not, or it is no battery.
    """
    name, files = entry["name"], entry["files"]
    if entry.get("texts", {}).get("type", "Battery") != "Battery":
        raise MeterError(
            f"{name} is no battery: what it tells is what a charger may give",
            "name another sensor under 'meter:'",
        )
    watts = "power_now" in files and "current_now" not in files
    if not watts and not {"current_now", "voltage_now"} <= set(files):
        raise MeterError(f"{name} does not tell both current and voltage")
    chargers = list(entry.get("chargers", ()))
    if "status" not in files and not chargers:
        raise MeterError(f"{name} does not say whether it is charged: its current may be another's")
    if wanted.current_sign is None or (wanted.current_ua is None and not watts):
        raise MeterError(
            f"sign and scale of {name}'s current are its maker's own, and not calibrated",
            f"run {CALIBRATE.format(device='DEVICE')}",
        )
    own = ["power_now"] if watts else ["current_now", "voltage_now"]
    own_files = [f"{entry['path']}/{file}" for file in own]
    status = [f"{entry['path']}/status"] if "status" in files else []
    calibration = {"current_sign": wanted.current_sign, "current_ua": wanted.current_ua}
    about = wanted.about(
        entry,
        "current times voltage by the trapezoidal rule over the device's own clock",
        _UPDATE_NS,
        documented=False,
        calibration=calibration,
    )
    return Battery(
        about if wanted.covers else replace(about, covers="the whole device, on its battery"),
        (*own_files, *status, *chargers),
        len(own),
        bool(status),
        wanted.current_sign,
        wanted.current_ua or 1,
    )
