"""How a workspace reads in a terminal, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from profiles import units
from profiles.findings import Measurement
from tools.device_lab.output import WIDTH, device_label, latency_cells, print_table

if TYPE_CHECKING:
    from pipeline.overview import Material, Overview, Row

_KEY = 8


def print_measurements(found: Sequence[Measurement]) -> None:
    """A list of measurements, one table for each model."""
    for model in dict.fromkeys(m.model for m in found):
        mine = [m for m in found if m.model == model]
        print_table(
            model,
            ["trial", "variant", "format", "device", ">thr", ">ms", ">95 %", ">n", "status"],
            [_listed(m) for m in mine],
            width=WIDTH,
        )
        _print_notes(mine)


def _listed(m: Measurement) -> list[str]:
    return [
        m.trial[:_KEY] or "-",
        m.variant,
        m.format,
        device_label(m),
        str(m.condition.threads) if m.device else "-",
        *latency_cells(m),
        str(m.n),
        m.status + ("\N{DAGGER}" if m.remarks and m.status == "accepted" else ""),
    ]


def print_measurement(m: Measurement, material: Material) -> None:
    """One measurement: its verdict, its figures, and what they stand on."""
    from tools.report import environment, figures

    print(f"{m.model} {m.variant} {m.format} on {device_label(m)}, {m.condition.describe()}")
    print(f"trial {m.trial or 'none'}")
    _say(f"{m.status}: {m.reason or m.stopped}".rstrip(": "))
    for remark in m.remarks:
        _say(f"\N{DAGGER} {remark.code}: {remark.text} ({remark.advice})")
    for heading, rows in figures.sections(m):
        print(f"\n{heading}")
        for name, value, note in rows:
            _say(f"  {name:<20}  {value:<12}  {note}".rstrip(), indent=38)
    trial = material.trials.get("latency")
    if trial is None:
        return
    runs = material.counted.get("latency") or trial.runs
    print(f"\nEnvironment of {len(runs)} runs")
    for name, value in environment.settings(trial, runs) + environment.shares(runs):
        _say(f"  {name:<28}  {value}", indent=32)
    for name, *moments in environment.states(runs):
        _say(f"  {name:<28}  {', then '.join(moments)}", indent=32)


def print_overview(overview: Overview) -> None:
    """Artifacts, the Pareto front, and what the search found."""
    from pipeline.overview import place_of

    titles = _titles([row.measurement for row in overview.rows])
    for place, title in titles.items():
        there = [row for row in overview.rows if place_of(row.measurement) == place]
        if mine := [row for row in there if row.measurement.role == "variant"]:
            _print_artifacts(f"{overview.name}: {title}", mine)
            _print_notes([row.measurement for row in mine])
    for place, title in titles.items():
        front = sorted(
            (r for r in overview.rows if r.on_front and place_of(r.measurement) == place),
            key=lambda row: row.measurement.median_ns or 0,
        )
        if not front:
            continue
        print_table(
            f"Pareto front (accuracy, latency, size): {title}",
            ["variant", "format", ">kB", ">top-1", ">ms", ">95 %"],
            [_front_cells(row.measurement) for row in front],
            width=WIDTH,
        )
    for note in overview.summary.get("notes", ()):
        where = f" on {note['device']}" if note["device"] else ""
        _say(f"\N{DOUBLE DAGGER} {note['variant']} {note['format']}{where}: {note['text']}")
    search = overview.summary.get("search")
    if search:
        print_search(search)


def _titles(found: Sequence[Measurement]) -> dict[tuple[Any, ...], str]:
    """What each place is called; places that would be called the same tell what else they are."""
    from pipeline.overview import place_of

    first = {place_of(m): m for m in reversed(found)}
    places = list(dict.fromkeys(map(place_of, found)))
    short = {place: _title(first[place]) for place in places}
    called = list(short.values())
    return {
        place: title if called.count(title) == 1 else f"{title}, {_state(first[place])}"
        for place, title in short.items()
    }


def _title(m: Measurement) -> str:
    condition = replace(m.condition, delegate=None).describe()
    return f"{device_label(m)}, {condition}" if m.device else "not measured"


def _state(m: Measurement) -> str:
    """What beside the condition asked for makes a place another."""
    return f"governor {m.condition.governor}, power {m.condition.power_source}"


def _print_artifacts(title: str, rows: Sequence[Row]) -> None:
    """What was measured at one place; a column with nothing in it is left out."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("variant", lambda row: row.measurement.variant),
        ("format", lambda row: row.measurement.format),
        (">kB", lambda row: f"{row.measurement.size_bytes / 1000:.0f}"),
        (">top-1", lambda row: _accuracy(row.measurement)),
        (">ms", lambda row: latency_cells(row.measurement)[0]),
        (">95 %", lambda row: latency_cells(row.measurement)[1]),
        (">vs fp32", lambda row: units.format_ratio(row.speedup) if row.speedup else "-"),
        (">app", lambda row: _app(row.measurement)),
        (">mJ", lambda row: _energy(row.measurement)),
        ("", _mark),
    ]
    cells = [[cell(row) for row in rows] for _, cell in columns]
    kept = [
        (name, column)
        for (name, _), column in zip(columns, cells, strict=True)
        if name not in (">app", ">mJ") or {*column} != {"-"}
    ]
    print_table(
        title,
        [name for name, _ in kept],
        [list(row) for row in zip(*(column for _, column in kept), strict=True)],
        width=WIDTH,
    )


def _mark(row: Row) -> str:
    m = row.measurement
    if m.status != "accepted":
        return m.status
    slower = "slower" if row.slower else ""
    return ("*" if row.on_front else "") + ("\N{DAGGER}" if m.remarks else "") + slower


def _print_notes(found: Sequence[Measurement]) -> None:
    """Why figures are missing, and what to keep in mind about the others."""
    for m in found:
        if m.status != "accepted":
            _say(f"{m.variant} {m.format} is {m.status}: {m.reason or 'it goes on'}")
    accepted = [m for m in found if m.status == "accepted"]
    for code in dict.fromkeys(remark.code for m in accepted for remark in m.remarks):
        told = [(m, remark) for m in accepted for remark in m.remarks if remark.code == code]
        names = ", ".join(dict.fromkeys(f"{m.variant} {m.format}" for m, _ in told))
        first = told[0][1]
        _say(f"\N{DAGGER} {code} of {names}: {first.text} ({first.advice})")
    for what in ("app", "energy"):
        for why in dict.fromkeys(m.unknown[what] for m in accepted if what in m.unknown):
            _say(f"{what} is unknown: {why}")


def _say(text: str, indent: int = 2) -> None:
    print(textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False))


def _accuracy(m: Measurement) -> str:
    return f"{100 * m.parity.accuracy:.1f}" if m.parity else units.UNKNOWN


def _app(m: Measurement) -> str:
    return units.format_ratio(m.app_ratio.value) if m.app_ratio else "-"


def _energy(m: Measurement) -> str:
    return units.format_mj(m.energy.net_uj.value) if m.energy else "-"


def _front_cells(m: Measurement) -> list[str]:
    size = f"{m.size_bytes / 1000:.0f}"
    return [m.variant, m.format, size, _accuracy(m), *latency_cells(m)]


def print_search(search: Mapping[str, Any]) -> None:
    """Predicted against measured."""
    rows = [
        [
            str(c["round"]),
            c["description"],
            f"{100 * c['accuracy']:.1f}",
            units.format_ms(c["predicted_ns"]),
            units.format_ms(c["measured_ns"]),
            f"{100 * (c['predicted_ns'] / c['measured_ns'] - 1):+.1f}",
        ]
        for c in search["candidates"]
    ]
    print_table(
        f"search: {search['evaluated']} of {search['space_size']} networks evaluated,"
        f" {len(rows)} measured whole",
        [">round", "network", ">top-1 %", ">predicted ms", ">measured ms", ">error %"],
        rows,
        width=WIDTH,
    )
    for found in search["agreement"]:
        print(
            f"{found['population']}: n {found['n']}, mean error {found['mape']:.1%},"
            f" within 10 % {found['within_10_percent']:.0%}"
        )
