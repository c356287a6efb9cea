"""What is drawn of a measurement's raw runs, as plain data for the page's script.

Times are milliseconds; runs are numbered from 1, as people do.  ``call`` counts through all runs,
which stand one after the other: the pauses between them are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.overview import Material
from profiles import units
from profiles.findings import Measurement
from profiles.records import Run, Samples, Trial
from profiles.series import change_points, outliers
from tools.report.thinning import histogram, thin

#: So many points of a measurement at most, over all of its runs: what a screen can tell apart.
MOST_POINTS = 1_500
#: A range of latencies wider than this factor is drawn on a logarithmic scale.
_WIDE = 2.0
#: A call far above what its run's calls usually take is drawn at the chart's edge, as this kind:
#: so many interquartile ranges above the highest level that lasts for some calls.
BEYOND = "off the scale"
_FAR = 3.0
_LASTS = 10
NOT_COUNTED = -1
COLOURS = 6
_NS_PER_S = 1_000_000_000
_STRETCHES = 200


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one page draws.

    Args:
        data: the rows of each of :data:`tools.report.plots.COLUMNS`; what has none is not there.
        wide: whether the histogram wants a logarithmic scale.
        drawn: points drawn of the latency's calls.
        calls: how many there are.
    """

    data: dict[str, list[list[Any]]]
    wide: bool
    drawn: int
    calls: int


def drawing(m: Measurement, material: Material) -> Drawing:
    """The charts of one measurement."""
    trial = material.trials.get("latency")
    counted = material.counted.get("latency", ())
    found: dict[str, list[list[Any]]] = {}
    drawn = calls = 0
    if trial and any(len(run.samples_ns) + len(run.warmup_ns) for run in trial.runs):
        runs = [(run, _hue(run, counted)) for run in trial.runs]
        found |= _samples(runs)
        drawn = len(found["points"])
        calls = sum(len(run.warmup_ns) + len(run.samples_ns) for run in trial.runs)
        found["medians"] = _medians(runs)
        found["clocks"] = _clocks(runs)
    if counted:
        samples = np.concatenate([run.samples_ns for run in counted]) / units.NS_PER_MS
        found["bins"] = [_short(low, high, count) for low, high, count in histogram(samples)]
    if m.median_ns is not None:
        low, high = m.ci95_ns or (m.median_ns, m.median_ns)
        found["median"] = [_short(*(ns / units.NS_PER_MS for ns in (low, m.median_ns, high)))]
    if energy := material.trials.get("energy"):
        found |= _power(energy, material.counted.get("energy", ()))
    if sustained := material.trials.get("sustained"):
        found["sustained"] = _sustained(sustained, material.counted.get("sustained", ()))
    bins = found.get("bins")
    wide = bool(bins and bins[-1][1] > _WIDE * bins[0][0])
    return Drawing({name: rows for name, rows in found.items() if rows}, wide, drawn, calls)


def _hue(run: Run, counted: Sequence[Run]) -> int:
    """Which colour a run is drawn in; neighbours differ."""
    known = {one.number for one in counted}
    return run.number % COLOURS if run.number in known else NOT_COUNTED


def _samples(runs: Sequence[tuple[Run, int]]) -> dict[str, list[list[Any]]]:
    """Every run's calls, one run after the other: warm-up, then what was timed; and its jumps."""
    total = sum(len(run.warmup_ns) + len(run.samples_ns) for run, _ in runs)
    points: list[list[Any]] = []
    spans: list[list[Any]] = []
    changes: list[list[Any]] = []
    edge_ms = _digits(_edge_ns([run.samples_ns for run, _ in runs]) / units.NS_PER_MS)
    call = 0
    for run, hue in runs:
        begin = call
        for values, timed in ((run.warmup_ns, False), (run.samples_ns, True)):
            most = max(2, MOST_POINTS * len(values) // max(total, 1))
            odd = outliers(values) if timed and len(values) else np.zeros(len(values), dtype=bool)
            for index in thin(values, most):
                kind = "warm-up" if not timed else "outlier" if odd[index] else "timed"
                if hue == NOT_COUNTED and timed:
                    kind = "not counted"
                ms = _digits(values[index] / units.NS_PER_MS)
                shown, kind = (ms, kind) if ms <= edge_ms else (edge_ms, BEYOND)
                points.append([call + int(index), shown, ms, run.number + 1, hue, kind])
            call += len(values)
        timed_from = begin + len(run.warmup_ns)
        if len(run.samples_ns):
            changes += [[timed_from + cut] for cut in change_points(run.samples_ns)]
        spans.append([_label(run, hue), begin, call, hue])
    return {"points": points, "spans": spans, "changes": changes}


def _edge_ns(runs: Sequence[Samples]) -> float:
    """Up to where calls are drawn: far enough for every level that lasts, not for every spike."""
    reaches = [0.0]
    for samples in runs:
        if len(samples):
            quarter, three_quarters = np.percentile(samples, [25, 75])
            stretches = np.array_split(samples, max(len(samples) // _LASTS, 1))
            level = max(three_quarters, *(float(np.median(part)) for part in stretches))
            reach = level + _FAR * (three_quarters - quarter)
            reaches.append(float(min(reach, samples.max())))
    return max(reaches) or float("inf")


def _label(run: Run, hue: int) -> str:
    return f"{run.number + 1}\N{MULTIPLICATION SIGN}" if hue == NOT_COUNTED else str(run.number + 1)


def _medians(runs: Sequence[tuple[Run, int]]) -> list[list[Any]]:
    return [
        [_label(run, hue), _digits(float(np.median(run.samples_ns)) / units.NS_PER_MS), hue]
        for run, hue in runs
        if len(run.samples_ns)
    ]


def _clocks(runs: Sequence[tuple[Run, int]]) -> list[list[Any]]:
    """The core's clock after each slice, in MHz, at the last call of the slice."""
    found: list[list[Any]] = []
    call = 0
    for run, hue in runs:
        call += len(run.warmup_ns)
        at = call
        for _start, calls, khz in run.details.get("slices", ()):
            at += calls
            if khz is not None:
                found.append([at, round(khz / units.KHZ_PER_MHZ), run.number + 1, hue])
        call += len(run.samples_ns)
    return found


def _sustained(trial: Trial, counted: Sequence[Run]) -> list[list[Any]]:
    """Medians of short stretches over seconds since the run's first timed call."""
    found: list[list[Any]] = []
    for run in trial.runs:
        seconds, hue = _seconds(run), _hue(run, counted)
        if seconds is None or not len(seconds):
            continue
        for part in np.array_split(np.arange(len(seconds)), min(_STRETCHES, len(seconds))):
            ms = _digits(float(np.median(run.samples_ns[part])) / units.NS_PER_MS)
            found.append([round(float(seconds[part].mean()), 3), ms, run.number + 1, hue])
    return found


def _seconds(run: Run) -> NDArray[np.float64] | None:
    """When each call began, after the first; ``None`` where the agent did not say."""
    slices = run.details.get("slices", ())
    if sum(calls for _, calls, _ in slices) != len(run.samples_ns):
        return None
    begins, at = [], 0
    for start_ns, calls, _ in slices:
        taken = run.samples_ns[at : at + calls]
        begins.append(start_ns + np.cumsum(taken) - taken)
        at += calls
    whole = np.concatenate(begins)
    seconds: NDArray[np.float64] = (whole - whole[0]) / _NS_PER_S
    return seconds


def _power(trial: Trial, counted: Sequence[Run]) -> dict[str, list[list[Any]]]:
    """Power between readings, and the stretches of each run; one run after the other."""
    power: list[list[Any]] = []
    stretches: list[list[Any]] = []
    told = [run for run in trial.runs if len(_trace(run)["at_ns"]) > 1 and run.details.get("marks")]
    offset = 0.0
    for run in told:
        trace, marks, hue = _trace(run), run.details["marks"], _hue(run, counted)
        at_ns = np.asarray(trace["at_ns"], dtype=np.int64)
        start_ns = min(int(at_ns[0]), *(mark["start_ns"] for mark in marks))

        def seconds(ns: int, start_ns: int = start_ns, offset: float = offset) -> float:
            return round(offset + (ns - start_ns) / _NS_PER_S, 3)

        mw = np.diff(trace["energy_uj"]) / np.diff(at_ns) * _NS_PER_S / units.UW_PER_MW
        mw[~np.asarray(trace["covered"], dtype=np.bool_)] = np.nan
        for index in thin(np.nan_to_num(mw), MOST_POINTS // len(told)):
            known = None if np.isnan(mw[index]) else _digits(mw[index])
            power.append([seconds(int(at_ns[index + 1])), known, run.number + 1, hue])
        for mark in marks:
            what = "active" if mark["what"] == "active" else "idle"
            stretches.append([seconds(mark["start_ns"]), seconds(mark["end_ns"]), what])
        offset = seconds(max(int(at_ns[-1]), *(mark["end_ns"] for mark in marks)))
    return {"power": power, "stretches": stretches}


def _trace(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.details.get("trace") or {"at_ns": ()}
    return found


def _short(*values: float) -> list[float]:
    return [_digits(value) for value in values]


def _digits(value: float) -> float:
    """Six digits: what nobody can see takes no room in the file."""
    return float(f"{value:.6g}")
