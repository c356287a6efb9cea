"""Curves of energy: from powers by the trapezoidal rule, from counters by their steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from devices.meter.base import Sampling, Texts
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples

#: A gap in power readings longer than so many of the sensor's periods is not covered.
MOST_PERIODS = 3
#: No device that this project measures takes or gives 100 kW: a number beyond is no power in µW.
_MOST_UW = 1e11

Numbers = NDArray[np.float64]


def number(text: str) -> float | None:
    """A number as the kernel prints it, with its last newline or without; else ``None``."""
    found = re.fullmatch(r"\s*(-?[0-9]{1,18}(?:\.[0-9]{1,18})?)\s*", text, re.ASCII)
    return float(found[1]) if found else None


def numbers(
    name: str, values: Texts, of: Callable[[Sequence[str]], float | None], most: float = _MOST_UW
) -> Numbers:
    """What each reading says; NaN where it cannot be understood.

    Args:
        name: of the sensor, for the message.
        values: for each reading its texts.
        of: what one reading says, or ``None``.
        most: what is larger, to either side, is not believed.

    Raises:
        MeterError: if none of them can be understood.
    """
    found = [_of(texts, of) for texts in values]
    known = np.array([np.nan if one is None or abs(one) > most else one for one in found])
    if not len(known):
        raise MeterError(f"{name} was not read once")
    if np.isnan(known).all():
        said = next((texts for texts in values if any(texts)), None)
        if said is None:
            raise MeterError(f"{name} cannot be read", "may this login read its files?")
        raise MeterError(f"{name} says {str(list(said))[:120]}, which is no power")
    return known


def _of(texts: Sequence[str], of: Callable[[Sequence[str]], float | None]) -> float | None:
    try:
        return of(texts)
    except (IndexError, ValueError, OverflowError):  # fewer texts than files
        return None


def clock(at_ns: ArrayLike) -> Samples:
    """The times of readings.

    Raises:
        MeterError: if they are fewer than two, or not in order.
    """
    times = np.asarray(at_ns, dtype=np.int64)
    if len(times) < 2 or (np.diff(times) <= 0).any():
        raise MeterError("a power sensor was read less than twice, or by a clock that went back")
    return times


def pace_ns(at_ns: Samples) -> int:
    """Nanoseconds from one reading to the next, as they came: the median."""
    return int(np.median(np.diff(at_ns)))


def from_power(at_ns: Samples, power_uw: Numbers, update_ns: int, had_ns: int = 0) -> Trace:
    """The trapezoidal rule between neighbouring readings; a gap is not covered that is longer than
    :data:`MOST_PERIODS` periods, be they the sensor's or of its readings.

    Args:
        at_ns: shape ``(n,)``, increasing.
        power_uw: shape ``(n,)``; NaN for a reading that could not be understood.
        update_ns: from one new value of the sensor to the next.
        had_ns: from one reading to the next where no more can be had than that.
    """
    period_ns = max(update_ns, Sampling.of(update_ns).period_ns, had_ns)
    lasted_ns = np.diff(at_ns)
    mean_uw = (power_uw[1:] + power_uw[:-1]) / 2
    covered = ~np.isnan(mean_uw) & (lasted_ns <= MOST_PERIODS * period_ns)
    taken_uj = np.where(covered, mean_uw, 0.0) * lasted_ns / 1e9
    return Trace(at_ns, _sums(taken_uj), covered)


def from_steps(at_ns: Samples, points_ns: ArrayLike, steps_uj: Numbers) -> Trace:
    """The curve of a counter, told at moments of its own, at the times of the readings.

    Args:
        at_ns: shape ``(n,)``, increasing.
        points_ns: when the counter had a value that is known, increasing; shape ``(m,)``.
        steps_uj: from one such value to the next, NaN where that is unknown; shape ``(m - 1,)``.
    """
    points = np.asarray(points_ns, dtype=np.int64)
    known = ~np.isnan(steps_uj)
    curve = np.interp(at_ns, points, _sums(np.where(known, steps_uj, 0.0)))
    # Each moment lies in the step that begins at or before it.
    unknown = np.concatenate([[0], np.cumsum(~known)])
    first = np.searchsorted(points, at_ns[:-1], side="right") - 1
    last = np.searchsorted(points, at_ns[1:], side="left")
    within = (first >= 0) & (last < len(points))
    gaps = unknown[np.minimum(last, len(points) - 1)] - unknown[np.maximum(first, 0)]
    covered = within & (gaps == 0)
    return Trace(at_ns, _sums(np.where(covered, np.diff(curve), 0.0)), covered)


def summed(traces: Sequence[Trace]) -> Trace:
    """Several channels as one: what is known is known of all of them."""
    covered = np.all([trace.covered for trace in traces], axis=0)
    steps_uj = np.sum([np.diff(trace.energy_uj) for trace in traces], axis=0)
    return Trace(traces[0].at_ns, _sums(np.where(covered, steps_uj, 0.0)), covered)


def _sums(steps: Numbers) -> Numbers:
    return np.concatenate([[0.0], np.cumsum(steps)])
