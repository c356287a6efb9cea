"""Power sensors whose units the kernel fixes: hwmon, IIO and powercap.

*Sources*: Linux, Documentation/hwmon/sysfs-interface.rst (mV, mA, µW),
Documentation/ABI/testing/sysfs-bus-iio (mV, mA, mW after offset and scale),
Documentation/power/powercap/powercap.rst (µJ, wraps after ``max_energy_range_uj``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from devices.meter.base import About, Sampling, Texts
from devices.meter.curve import clock, from_power, from_steps, number, numbers, summed
from devices.meter.wanted import Wanted
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples

#: *Source*: Linux, drivers/hwmon/ina2xx.c: an INA226 is set to average 16 conversions of 2.2 ms
#: (``INA226_CONFIG_DEFAULT``, ``INA226_TOTAL_CONV_TIME_DEFAULT``), 35 ms.  Chosen for its
#: relatives, too, of which no document was looked up; who sets one otherwise gives ``update_ms``.
_INA_UPDATE_NS = 40_000_000
#: *Source*: Intel, Software Developer's Manual 3B, "Package RAPL Domain" (14.9.3, in later editions
#: under another number): MSR_PKG_ENERGY_STATUS is updated every ~1 ms.  Taken for its like, too.
_RAPL_UPDATE_NS = 1_000_000
#: More than any processor package takes: what a counter seems to have grown by faster than this, it
#: has not; it began anew.  Chosen.
_MOST_OF_A_ZONE_UW = 2e9
_TRAPEZOID = "power by the trapezoidal rule over the device's own clock"


@dataclass(frozen=True, slots=True)
class Channel:
    """One power, told by itself or as voltage times current.

    Args:
        files: one or two, in the meter's folder.
        offsets: added to the number in each,
        scales: and then multiplied with it; what results, or its product, is in µW.
    """

    files: tuple[str, ...]
    offsets: tuple[float, ...]
    scales: tuple[float, ...]

    def power_uw(self, texts: Sequence[str]) -> float | None:
        """The power in these texts, one of each file."""
        power = 1.0
        for text, offset, scale in zip(texts, self.offsets, self.scales, strict=True):
            said = number(text)
            if said is None:
                return None
            power *= (said + offset) * scale
        return power


@dataclass(frozen=True, slots=True)
class Channels:
    """A meter whose channels are summed up."""

    about: About
    folder: str
    channels: tuple[Channel, ...]

    def sampling(self) -> Sampling:
        """See :class:`devices.meter.base.Meter`."""
        files = [f"{self.folder}/{file}" for each in self.channels for file in each.files]
        return Sampling.of(self.about.update_ns, files)

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        power_uw = numbers(self.about.title, values, self._power_uw)
        return from_power(clock(at_ns), power_uw, self.about.update_ns)

    def _power_uw(self, texts: Sequence[str]) -> float | None:
        total, begin = 0.0, 0
        for channel in self.channels:
            end = begin + len(channel.files)
            power_uw = channel.power_uw(texts[begin:end])
            if power_uw is None:
                return None
            total, begin = total + power_uw, end
        return total

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return tuple(texts)

    def charging(self, values: Texts) -> bool:
        """A sensor behind the battery sees what the device takes, whoever gives it."""
        return False


def hwmon(entry: Mapping[str, Any], wanted: Wanted) -> Channels:
    """INA219, INA226, INA3221 and their like.

    Raises:
        MeterError: if it is not clear which of its channels to sum up.
    """
    channels = dict(_hwmon_channels(entry))
    labels = wanted.of_some(entry, list(channels))
    about = wanted.about(entry, _TRAPEZOID, _INA_UPDATE_NS, documented=True)
    return Channels(about, str(entry["path"]), tuple(channels[label] for label in labels))


def _hwmon_channels(entry: Mapping[str, Any]) -> Iterator[tuple[str, Channel]]:
    """By label, or as ``power1`` where there is none; power is better than volts and amperes,
    which are read one after the other."""
    files, texts = set(entry["files"]), entry.get("texts", {})
    for number_ in _numbers_of(files, r"power([0-9]+)_(?:input|average)"):
        label = texts.get(f"power{number_}_label", f"power{number_}")
        kind = "input" if f"power{number_}_input" in files else "average"
        yield label, Channel((f"power{number_}_{kind}",), (0.0,), (1.0,))
    if any(file.startswith("power") for file in files):
        return
    for number_ in _numbers_of(files, r"curr([0-9]+)_input"):
        volts, amperes = f"in{number_}_input", f"curr{number_}_input"
        label = texts.get(f"in{number_}_label") or texts.get(f"curr{number_}_label")
        if volts in files and not _is_of_shunts(entry["name"], int(number_)):
            yield label or f"in{number_}", Channel((volts, amperes), (0.0, 0.0), (1.0, 1.0))


def _is_of_shunts(name: str, channel: int) -> bool:
    """*Source*: Linux, Documentation/hwmon/ina3221.rst: in4 to in6 are voltages over the shunts,
    in7 and curr4 their sums."""
    return name == "ina3221" and channel > 3


def iio(entry: Mapping[str, Any], wanted: Wanted) -> Channels:
    """Converters behind the kernel's industrial I/O.

    Raises:
        MeterError: if it is not clear which of its channels to sum up, or a scale is no number.
    """
    channels = dict(_iio_channels(entry))
    labels = wanted.of_some(entry, list(channels))
    about = wanted.about(entry, _TRAPEZOID, _INA_UPDATE_NS, documented=True)
    chosen = tuple(_iio_channel(entry, *channels[label]) for label in labels)
    return Channels(about, str(entry["path"]), chosen)


def _iio_channels(entry: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """By label: ``power``, or ``current`` where there are volts, too, and the channel's number."""
    files = set(entry["files"])
    powers = _numbers_of(files, r"in_power([0-9]*)_raw")
    for number_ in powers:
        yield _iio_label(entry, "power", number_), ("power", number_)
    for number_ in () if powers else _numbers_of(files, r"in_current([0-9]*)_raw"):
        if f"in_voltage{number_}_raw" in files:
            yield _iio_label(entry, "current", number_), ("current", number_)


def _iio_channel(entry: Mapping[str, Any], of: str, number_: str) -> Channel:
    if of == "power":
        offset, scale = _iio_scale(entry, "power", number_)
        return Channel((f"in_power{number_}_raw",), (offset,), (1000 * scale,))
    volts, amperes = (_iio_scale(entry, each, number_) for each in ("voltage", "current"))
    return Channel(
        (f"in_voltage{number_}_raw", f"in_current{number_}_raw"),
        (volts[0], amperes[0]),
        (volts[1], amperes[1]),
    )


def _iio_label(entry: Mapping[str, Any], of: str, number_: str) -> str:
    label = entry.get("texts", {}).get(f"in_{of}{number_}_label", f"{of}{number_}")
    return str(label)


def _iio_scale(entry: Mapping[str, Any], of: str, number_: str) -> tuple[float, float]:
    """Offset and scale of a channel: its own, else that of all of its kind.

    Without an offset there is none; without a scale nobody knows what a number stands for.
    """
    texts = entry.get("texts", {})
    found = []
    for what, usual in (("offset", "0"), ("scale", "")):
        text = texts.get(f"in_{of}{number_}_{what}", texts.get(f"in_{of}_{what}", usual))
        value = number(text)
        if not text:
            raise MeterError(
                f"{entry['name']} does not tell the {what} of its {of}{number_}",
                "name another sensor, or other 'rails:', under 'meter:'",
            )
        if value is None:
            raise MeterError(f"{entry['name']} says {text[:40]!r} for the {what} of its {of}")
        found.append(value)
    return found[0], found[1]


def _numbers_of(files: set[str], pattern: str) -> list[str]:
    found = {match[1] for file in files if (match := re.fullmatch(pattern, file))}
    return sorted(found, key=lambda text: int(text or 0))


@dataclass(frozen=True, slots=True)
class Counters:
    """Zones of powercap, summed up.

    Args:
        ranges_uj: after which each of them begins again at 0.
    """

    about: About
    files: tuple[str, ...]
    ranges_uj: tuple[float, ...]

    def sampling(self) -> Sampling:
        """See :class:`devices.meter.base.Meter`."""
        return Sampling.of(self.about.update_ns, self.files)

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        times = clock(at_ns)
        return summed([self._zone(place, times, values) for place in range(len(self.files))])

    def _zone(self, place: int, at_ns: Samples, values: Texts) -> Trace:
        range_uj = self.ranges_uj[place]

        def count(texts: Sequence[str]) -> float | None:
            said = number(texts[place])
            return said if said is not None and said >= 0 else None

        counts = numbers(self.about.title, values, count, most=range_uj)
        known = ~np.isnan(counts)
        times, told = at_ns[known], counts[known]
        steps_uj = np.mod(np.diff(told), range_uj)
        most_uj = _MOST_OF_A_ZONE_UW * np.diff(times) / 1e9
        # Another wrap may have passed unseen in a gap this long.
        unseen = most_uj > range_uj
        return from_steps(at_ns, times, np.where((steps_uj > most_uj) | unseen, np.nan, steps_uj))

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return tuple(texts)

    def charging(self, values: Texts) -> bool:
        """As for :class:`Channels`."""
        return False


def powercap(zones: Sequence[Mapping[str, Any]], wanted: Wanted) -> Counters:
    """RAPL and its like: all packages, without the zones that they contain.

    Args:
        zones: of the device's facts, all that there are.
        wanted: its ``rails`` are names of zones; all packages where none is given.

    Raises:
        MeterError: if none of them is there, or one has no range.
    """
    # The same package may be told a second time, through memory (intel-rapl-mmio).
    own = [zone for zone in zones if not str(zone["path"]).rpartition("/")[2].count("-mmio")]
    names = wanted.rails or [z["name"] for z in own if re.fullmatch("package-[0-9]+", z["name"])]
    chosen = [zone for zone in own if zone["name"] in names]
    if not chosen:
        known = ", ".join(str(zone["name"]) for zone in own)
        raise MeterError(f"powercap has no zone {', '.join(names) or 'of a package'}: {known}")
    ranges = [number(zone.get("texts", {}).get("max_energy_range_uj", "")) for zone in chosen]
    about = wanted.about(
        {"kind": "powercap", "name": "+".join(str(zone["name"]) for zone in chosen)},
        "the counters' own steps over the device's own clock",
        _RAPL_UPDATE_NS,
        documented=True,
    )
    return Counters(
        about,
        tuple(f"{zone['path']}/energy_uj" for zone in chosen),
        tuple(_range_uj(zone, range_uj) for zone, range_uj in zip(chosen, ranges, strict=True)),
    )


def _range_uj(zone: Mapping[str, Any], range_uj: float | None) -> float:
    if range_uj is None or range_uj <= 0:
        raise MeterError(f"powercap's zone {zone['name']} does not say when its counter wraps")
    return range_uj
