"""One page for every measurement: what its figures stand on, down to the single call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.overview import Material, Row
from profiles import units
from profiles.bootstrap import studentised_interval
from profiles.findings import Measurement
from profiles.quality import JudgedRun, judge_runs
from profiles.records import Run, Trial
from tools.report import environment
from tools.report.charts import script_safe
from tools.report.drawing import drawing
from tools.report.figures import Rows, second_opinion, sections
from tools.report.plots import TABLES

_KEY = 12
_RESAMPLES = 5_000


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a page: which, its specification, and what is said about it."""

    name: str
    specification: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Page:
    """What one measurement's page shows.

    Args:
        key: in its address, ``#m-KEY``: the beginning of its trial's key, or of the artifact's
            digest where it was not measured.
        title: of the list to choose from.
        rows: the measurements it is about: more than one where artifacts are the same bytes.
        sections: figures under headings.
        charts: those that there are data for.
        runs: run, state, calls, median, first call, clocks.
        settings, states, shares: see :mod:`tools.report.environment`.
        data: of its charts, as JSON that is safe in a script.
    """

    key: str
    title: str
    rows: tuple[Row, ...]
    sections: list[tuple[str, Rows]]
    charts: tuple[Chart, ...]
    runs: list[tuple[str, ...]]
    settings: list[tuple[str, str]]
    states: list[tuple[str, str, str, str]]
    shares: list[tuple[str, str]]
    data: str


def key_of(row: Row) -> str:
    """What a row's page is called by."""
    m = row.measurement
    return (m.trial or m.artifact_sha256)[:_KEY]


def pages(rows: Sequence[Row], material: Sequence[Material]) -> list[Page]:
    """The pages of these rows, in the same order; rows of the same trial share one."""
    shared: dict[str, list[Row]] = {}
    raw: dict[str, Material] = {}
    for row, runs in zip(rows, material, strict=True):
        shared.setdefault(key_of(row), []).append(row)
        raw.setdefault(key_of(row), runs)
    return [_page(key, tuple(same), raw[key]) for key, same in shared.items()]


def _page(key: str, rows: tuple[Row, ...], material: Material) -> Page:
    m = rows[0].measurement
    trial = material.trials.get("latency") or next(iter(material.trials.values()), None)
    counted = material.counted.get(trial.plan.kind, ()) if trial else ()
    told = counted or (trial.runs if trial else ())
    judged = {one.run.number: one for one in judge_runs(trial)} if trial else {}
    drawn = drawing(m, material)
    names = ", ".join(row.measurement.variant for row in rows)
    where = f" on {m.device}, {m.condition.describe()}" if m.device else ""
    return Page(
        key=key,
        title=f"{names} {m.format}{where}",
        rows=rows,
        sections=_sections(m, counted),
        charts=tuple(_charts(drawn.data, drawn.wide, _said(drawn.drawn, drawn.calls))),
        runs=[_run(run, trial, judged, counted) for run in trial.runs] if trial else [],
        settings=environment.settings(trial, told) if trial else [],
        states=environment.states(told),
        shares=environment.shares(told),
        data=script_safe(drawn.data),
    )


def _sections(m: Measurement, counted: Sequence[Run]) -> list[tuple[str, Rows]]:
    """The figures, with a second opinion on the first of them."""
    found = sections(m)
    if m.median_ns is None:
        return found
    interval = studentised_interval([run.samples_ns for run in counted], resamples=_RESAMPLES)
    heading, rows = found[0]
    return [(heading, [rows[0], *second_opinion(interval), *rows[1:]]), *found[1:]]


def _said(drawn: int, calls: int) -> str:
    if drawn == calls:
        return f"All {calls:,} calls are drawn."
    return (
        f"{drawn:,} of {calls:,} calls are drawn: the fastest and the slowest of each short"
        " stretch, so that the spread looks wider than it is."
    )


def _charts(data: Mapping[str, Any], wide: bool, thinned: str) -> list[Chart]:
    scale = "-wide" if wide else ""
    found = [
        Chart(
            "samples",
            "samples",
            "Every call, run after run",
            f"{thinned} Numbers above are runs; a run with \N{MULTIPLICATION SIGN} does not count"
            " (see the table of runs). Dashed upright lines mark where the latency jumped."
            " Outliers (Tukey) are flagged, never left out; what is far off stands at the edge.",
        ),
        Chart(
            "histogram",
            f"histogram{scale}",
            "How long calls took",
            "Over every call that counts. The line is the median, the band its 95 % interval.",
        ),
        Chart(
            "medians",
            "medians",
            "Medians of the runs",
            "The interval (band) is of what runs, not calls, vary by.",
        ),
        Chart("clocks", "clocks", "The core's clock", "Read after each slice of calls."),
        Chart(
            "sustained",
            "sustained",
            "Sustained: without a pause",
            "Medians of short stretches. The figure is of the second half of each run's time.",
        ),
        Chart(
            "power",
            "power",
            "Power",
            "What the sensor said, with the stretches that energy is reckoned from.",
        ),
    ]
    return [chart for chart in found if data.get(TABLES[chart.name][0])]


def _run(
    run: Run, trial: Trial, judged: Mapping[int, JudgedRun], counted: Sequence[Run]
) -> tuple[str, ...]:
    """One row of the table of runs."""
    clocks = [khz for _, _, khz in run.details.get("slices", ()) if khz]
    low, high = (units.format_mhz(end(clocks)) for end in (min, max)) if clocks else ("", "")
    median = float(np.median(run.samples_ns)) if len(run.samples_ns) else None
    return (
        str(run.number + 1),
        state(run, trial, judged.get(run.number), counted),
        f"{len(run.samples_ns):,}",
        units.format_ms(median),
        units.format_ms(run.first_ns),
        units.format_ms(run.load_ns),
        (low if low == high else f"{low} to {high}") if clocks else units.UNKNOWN,
    )


def state(run: Run, trial: Trial, judged: JudgedRun | None, counted: Sequence[Run]) -> str:
    """Whether a run counts, and why not; ``judged`` is ``None`` where it is not looked at."""
    if any(run.number == one.number for one in counted):
        return "counts"
    if judged is None:
        return "interrupted, or of an earlier setting"
    if judged.refused:
        return "refused: " + "; ".join(reason.text for reason in judged.refused)
    return "does not count: the measurement is " + trial.status
