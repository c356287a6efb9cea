"""The rails of a Pixel's power chip: its on-device power monitor (ODPM).

``energy_value`` begins with ``t=<ms since boot>``; a line for each channel follows::

    CH3(T=358356)[S2M_VDD_CPUCL2], 761330

where T is the time in ms over which that channel has accumulated its energy: from where its
measurement began to its last update, by a clock that is not ours (it goes on in sleep).  Only the
``t`` of the first line is since boot.  The energy is cumulative, in µW·s.  So a channel's curve is
drawn over its own T, of which only differences count, and laid beneath our clock where the two came
closest.

*Source*: Google's own code, the Pixel power stats service (hardware/google/pixel, powerstats) and
the s2mpg1x drivers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from devices.meter.base import About, Sampling, Texts
from devices.meter.curve import Numbers, clock, from_steps, summed
from devices.meter.wanted import Wanted
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples

_LINE = re.compile(r"CH[0-9]+\(T=([0-9]{1,15})\)\[([^\]]{1,80})\], ([0-9]{1,20})", re.ASCII)
#: ULLONG_MAX stands for a channel that could not be read; nothing near it was ever counted.
_UNKNOWN_UJ = 1 << 63
#: How often the chip's accumulators are taken to be read.  Chosen, not measured: what is slower
#: shows in the readings.
_UPDATE_NS = 100_000_000
#: The two clocks run alike while the device is awake: what moves more was asleep, or began anew.
_SLEPT_NS = 200_000_000


@dataclass(frozen=True, slots=True)
class Odpm:
    """Channels of one chip, summed up.

    Args:
        file: all of them.
        rails: labels of those that count.
    """

    about: About
    file: str
    rails: tuple[str, ...]

    def sampling(self) -> Sampling:
        """See :class:`devices.meter.base.Meter`."""
        found = Sampling.of(self.about.update_ns, [self.file])
        # A curve ends with the last T, up to an update before the stretch does.
        return replace(found, window_ns=2 * found.window_ns)

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        times = clock(at_ns)
        told = [channels(texts[0] if texts else "") for texts in values]
        return summed([self._rail(rail, times, told) for rail in self.rails])

    def _rail(
        self, rail: str, at_ns: Samples, told: Sequence[Mapping[str, tuple[int, int]]]
    ) -> Trace:
        seen = [(at, *one[rail]) for at, one in zip(at_ns, told, strict=True) if rail in one]
        if not seen:
            raise MeterError(f"{self.about.title} says nothing of {rail}")
        at, since_boot_ms, energy_uj = np.array(seen, dtype=np.int64).T
        own_ns = since_boot_ms * 1_000_000
        begins = _beginnings(at, own_ns)
        points_ns = own_ns + _offsets(at - own_ns, begins)
        # A value that was already told says nothing new; nor may a curve run back.
        fresh = np.concatenate([[True], np.diff(own_ns) != 0])
        fresh &= points_ns > np.concatenate([[-1], np.maximum.accumulate(points_ns)[:-1]])
        steps_uj = _steps(energy_uj[fresh], np.cumsum(begins)[fresh])
        return from_steps(at_ns, points_ns[fresh], steps_uj)

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return channels(texts[0] if texts else "")

    def charging(self, values: Texts) -> bool:
        """The rails are behind the battery: whoever gives the power, they take it."""
        return False


def channels(text: str) -> dict[str, tuple[int, int]]:
    """For each rail its T in ms and its energy in µJ; without those that are unknown."""
    found = {match[2]: (int(match[1]), int(match[3])) for match in _LINE.finditer(text)}
    return {rail: told for rail, told in found.items() if told[1] < _UNKNOWN_UJ}


def _beginnings(at_ns: Samples, own_ns: Samples) -> Samples:
    """1 where the chip's clock began anew or jumped against ours, else 0; shape as given.

    A T that stands still is only late, and catches up; what runs ahead of all before it was asleep.
    How late the first one is cannot be known.
    """
    ahead = own_ns - at_ns
    second = int(np.argmax(own_ns != own_ns[0]))
    ahead[:second] = ahead[second]
    leads = ahead[1:] > np.maximum.accumulate(ahead)[:-1] + _SLEPT_NS
    back = np.diff(own_ns) < 0
    return np.concatenate([[0], (leads | back).astype(np.int64)])


def _offsets(lag_ns: Samples, begins: Samples) -> Samples:
    """For each reading what its clock lags ours by: the least that was seen since it began."""
    part = np.cumsum(begins)
    return np.array([lag_ns[part == one].min() for one in range(part[-1] + 1)])[part]


def _steps(energy_uj: Samples, part: Samples) -> Numbers:
    """From one value to the next; unknown across a new beginning, or where it shrank."""
    steps = np.diff(energy_uj).astype(np.float64)
    return np.where((steps < 0) | (np.diff(part) != 0), np.nan, steps)


def odpm(entry: Mapping[str, Any], wanted: Wanted) -> Odpm:
    """A Pixel's power monitor; its rails do not contain each other.

    Raises:
        MeterError: if one is asked for that it does not tell.
    """
    rails = wanted.of_all(entry, entry.get("rails", ()))
    method = "the counters' own steps, their clock laid beneath the device's"
    about = wanted.about(entry, method, _UPDATE_NS, documented=False)
    return Odpm(about, f"{entry['path']}/energy_value", rails)
