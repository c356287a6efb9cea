"""From the readings of a power sensor to the energy of one call.

An energy run has three stretches of time by the device's own clock: idle before, active (calls back
to back), idle after.  The power of a stretch is the mean over what the sensor covers of it, without
its first update period, in which the sensor may still show what was before; so no stretch takes
from its neighbours.  A call's gross energy is the active power times the stretch's length over its
calls; its net energy has the mean of both idle powers subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.findings import Energy, Figure, Reason
from profiles.records import Samples

#: Less of a stretch than this covered by readings is too little.
MIN_COVERAGE = 0.95
#: A stretch lasts at least so many of the sensor's update periods (measurement.md, rule 13).
MIN_PERIODS = 20
#: How far the idle power may move from before to after, as a share of the net power.  Their mean is
#: subtracted: a steady drift costs nothing, and a jump at worst half of it, 5 % of the result.
MAX_IDLE_MOVE = 0.10
#: A figure must be so many of its standard errors away from nothing; these are from ten blocks a
#: stretch, and so uncertain themselves: of pure chance fewer than one run in 500 passes.
_SIGMAS = 4.0
_BLOCKS = 10
_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Energy over time, as one sensor saw it.

    Args:
        at_ns: the device's monotonic clock at each reading, increasing; shape ``(n,)``.
        energy_uj: taken since the first reading; shape ``(n,)``.
        covered: whether what passed between a reading and the next is known; shape ``(n - 1,)``.
            Over a gap ``energy_uj`` does not grow.
    """

    at_ns: Samples
    energy_uj: NDArray[np.float64]
    covered: NDArray[np.bool_]

    def between(self, start_ns: int, end_ns: int) -> tuple[float, float]:
        """Energy in µJ from one moment to another, and the share of that time that is covered."""
        ends = np.array([start_ns, end_ns])
        taken = float(np.diff(np.interp(ends, self.at_ns, self.energy_uj))[0])
        overlap = np.minimum(self.at_ns[1:], end_ns) - np.maximum(self.at_ns[:-1], start_ns)
        known_ns = float(np.maximum(overlap, 0)[self.covered].sum())
        return taken, known_ns / max(end_ns - start_ns, 1)


@dataclass(frozen=True, slots=True)
class EnergyRun:
    """What the sensor said in one run; powers are ``None`` where it said nothing.

    Args:
        meter: name and kind of the sensor.
        covers: what its power is of.
        method: how the readings became an energy.
        calls: in the active stretch.
        window_ns: length of the active stretch.
        active_uw, idle_before_uw, idle_after_uw: mean power of each stretch.
        noise_uw: what chance alone can move the net power by (four standard errors, from the
            spread within the stretches).
        coverage: share that readings cover of the stretch they cover least.
        periods: update periods of the sensor in the shortest stretch.
        readings: of both idle stretches.
        charging: something but the device took part in what the sensor saw.
        trouble: why the readings could not be understood; empty where they were.
    """

    meter: str
    covers: str
    method: str
    calls: int
    window_ns: int
    active_uw: float | None
    idle_before_uw: float | None
    idle_after_uw: float | None
    noise_uw: float | None
    coverage: float
    periods: float
    readings: int
    charging: bool
    trouble: str = ""

    @property
    def idle_uw(self) -> float | None:
        """Power without calls: the mean of before and after."""
        if self.idle_before_uw is None or self.idle_after_uw is None:
            return None
        return (self.idle_before_uw + self.idle_after_uw) / 2

    @property
    def gross_uj(self) -> float | None:
        """Energy of one call, as the sensor saw it."""
        return None if self.active_uw is None else self._per_call(self.active_uw)

    @property
    def net_uw(self) -> float | None:
        """Active power above the idle power."""
        idle_uw = self.idle_uw
        return None if self.active_uw is None or idle_uw is None else self.active_uw - idle_uw

    @property
    def net_uj(self) -> float | None:
        """Energy of one call, the idle power subtracted."""
        return None if self.net_uw is None else self._per_call(self.net_uw)

    def _per_call(self, power_uw: float) -> float:
        return power_uw * self.window_ns / _NS_PER_S / self.calls


def energy_of_run(details: Mapping[str, Any]) -> EnergyRun:
    """The energy of one run.

    Args:
        details: of :class:`profiles.records.Run`, after ``devices.meter.understood``: ``marks``
            (each ``what``, ``start_ns``, ``end_ns``, ``calls``), ``meter`` (``name``, ``covers``,
            ``method``, ``update_ns``, ``trouble``) and ``trace`` (``at_ns``, ``energy_uj``,
            ``covered``, ``charging``).

    Raises:
        ValueError: if a stretch is missing, or there were no calls.
    """
    meter, marks = details["meter"], {mark["what"]: mark for mark in details["marks"]}
    lacking = [what for what in ("idle-before", "active", "idle-after") if what not in marks]
    if lacking or marks["active"]["calls"] < 1:
        raise ValueError(f"an energy run has calls, and all stretches: no {', '.join(lacking)}")
    trace = _trace(details["trace"])
    update_ns = int(meter["update_ns"])
    before, active, after = (
        _stretch(trace, marks[what], update_ns) for what in ("idle-before", "active", "idle-after")
    )
    shortest_ns = min(stretch.length_ns for stretch in (before, active, after))
    return EnergyRun(
        meter=str(meter["name"]),
        covers=str(meter["covers"]),
        method=str(meter["method"]),
        calls=int(marks["active"]["calls"]),
        window_ns=active.length_ns,
        active_uw=active.power_uw,
        idle_before_uw=before.power_uw,
        idle_after_uw=after.power_uw,
        noise_uw=_noise_uw(before, active, after),
        coverage=min(stretch.coverage for stretch in (before, active, after)),
        periods=shortest_ns / update_ns,
        readings=before.readings + after.readings,
        charging=bool(details["trace"]["charging"]),
        trouble=str(meter["trouble"]),
    )


def _trace(stored: Mapping[str, Any]) -> Trace:
    return Trace(
        np.asarray(stored["at_ns"], dtype=np.int64),
        np.asarray(stored["energy_uj"], dtype=np.float64),
        np.asarray(stored["covered"], dtype=np.bool_),
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """One stretch of a run: its mean power, and that mean's variance within the stretch."""

    length_ns: int
    coverage: float
    readings: int
    power_uw: float | None
    variance: float | None


def _stretch(trace: Trace, mark: Mapping[str, Any], update_ns: int) -> _Stretch:
    start_ns, end_ns = int(mark["start_ns"]), int(mark["end_ns"])
    coverage = trace.between(start_ns, end_ns)[1] if len(trace.at_ns) else 0.0
    begins, ends = trace.at_ns[:-1], trace.at_ns[1:]
    inside = trace.covered & (begins >= start_ns + update_ns) & (ends <= end_ns)
    lasted_s = (ends - begins)[inside] / _NS_PER_S
    taken_uj = np.diff(trace.energy_uj)[inside]
    if not len(lasted_s):
        return _Stretch(end_ns - start_ns, coverage, 0, None, None)
    power_uw = float(taken_uj.sum() / lasted_s.sum())
    variance = _variance_of_mean(taken_uj, lasted_s, update_ns / _NS_PER_S)
    return _Stretch(end_ns - start_ns, coverage, len(lasted_s), power_uw, variance)


def _variance_of_mean(
    taken_uj: NDArray[np.float64], lasted_s: NDArray[np.float64], update_s: float
) -> float | None:
    """Variance of a stretch's mean power, from the means of blocks of at least two update periods.

    Neighbouring readings tell the same update twice, so that readings alone would promise too much.

    *Source*: the method of batch means, Law & Kelton, Simulation Modeling and Analysis, 9.5.3.
    """
    blocks = min(_BLOCKS, len(lasted_s), int(lasted_s.sum() / (2 * update_s)))
    if blocks < 2:
        return None
    place = np.cumsum(lasted_s) - lasted_s / 2
    block = np.minimum((place / lasted_s.sum() * blocks).astype(int), blocks - 1)
    lengths_s = np.bincount(block, weights=lasted_s, minlength=blocks)
    sums_uj = np.bincount(block, weights=taken_uj, minlength=blocks)
    powers = sums_uj[lengths_s > 0] / lengths_s[lengths_s > 0]
    return float(powers.var(ddof=1) / len(powers)) if len(powers) > 1 else None


def _noise_uw(before: _Stretch, active: _Stretch, after: _Stretch) -> float | None:
    if before.variance is None or active.variance is None or after.variance is None:
        return None
    net = active.variance + (before.variance + after.variance) / 4
    return _SIGMAS * float(np.sqrt(net))


def energy_reasons(run: EnergyRun) -> tuple[Reason, ...]:
    """Why the energy of a run is refused; empty where it is not."""
    if run.trouble:
        return (Reason("meter-coverage", run.trouble, "see what the sensor says: doctor"),)
    found = []
    if run.charging:
        found.append(
            Reason(
                "charging",
                f"{run.meter} saw a charger: its current is not the device's",
                "unplug it, and reach the device over the network",
            )
        )
    if run.coverage < MIN_COVERAGE:
        text = f"{run.meter} covers {run.coverage:.0%} of a stretch, not {MIN_COVERAGE:.0%}"
        found.append(Reason("meter-coverage", text, "let the device do nothing else meanwhile"))
    if run.periods < MIN_PERIODS:
        found.append(_too_rare(run))
    return (*found, *_of_powers(run))


def _too_rare(run: EnergyRun) -> Reason:
    return Reason(
        "meter-coverage",
        f"{run.meter} told a new value {run.periods:.1f} times in a stretch, not {MIN_PERIODS}",
        "write its 'update_ms:' under 'meter:' into the device's entry, for longer stretches",
    )


def _of_powers(run: EnergyRun) -> tuple[Reason, ...]:
    before_uw, after_uw, net_uw = run.idle_before_uw, run.idle_after_uw, run.net_uw
    if net_uw is None or before_uw is None or after_uw is None or run.active_uw is None:
        return ()  # nothing is covered, which is said already
    if run.active_uw <= 0:
        text = f"by {run.meter} the busy device gives {-run.active_uw / 1000:.0f} mW"
        advice = "its sign is wrong, or it is charged: device-lab devices calibrate-meter"
        return (Reason("charging", text, advice),)
    noise_uw = run.noise_uw or 0.0
    if net_uw <= noise_uw:
        text = (
            f"calls take {net_uw / 1000:.1f} mW above idle,"
            f" and chance alone {noise_uw / 1000:.1f} mW by the power's own spread"
        )
        return (Reason("meter-coverage", text, "measure longer, or on a quieter device"),)
    moved_uw = abs(after_uw - before_uw)
    if moved_uw > max(MAX_IDLE_MOVE * net_uw, noise_uw):
        text = (
            f"idle power was {before_uw / 1000:.0f} mW before and {after_uw / 1000:.0f} mW after,"
            f" {moved_uw / net_uw:.0%} of the net power"
        )
        advice = "let nothing else run on the device, and let it cool before"
        return (Reason("idle-moved", text, advice),)
    return ()


def summarise_energy(runs: Sequence[EnergyRun]) -> Energy:
    """What one call takes, over the runs of a trial that are not refused.

    The interval is Student's t over the runs; with fewer than three there is none.

    Args:
        runs: of one sensor, each with all its powers.

    Raises:
        ValueError: without runs, or for a run without power.
    """
    if not runs:
        raise ValueError("an energy is of at least one run")
    calls, readings = sum(run.calls for run in runs), sum(run.readings for run in runs)
    return Energy(
        net_uj=_figure([run.net_uj for run in runs], calls),
        gross_uj=_figure([run.gross_uj for run in runs], calls),
        idle_uw=_figure([run.idle_uw for run in runs], readings),
        meter=runs[0].meter,
        covers=runs[0].covers,
        coverage=min(run.coverage for run in runs),
        method=runs[0].method,
    )


def _figure(values: Sequence[float | None], n: int) -> Figure:
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        raise ValueError("a run without power has no energy")
    mean = float(known.mean())
    if len(known) < 3:
        return Figure(mean, None, n, len(known))
    from scipy.stats import t

    half = float(t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Figure(mean, (mean - half, mean + half), n, len(known))
