"""The report of a workspace: one HTML file that needs no network."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.overview import Material, Overview, Row, overview, read_material
from pipeline.profile.record import BlockProfile, read_profiles
from profiles import units
from profiles.findings import Measurement
from tools.report import blocks, charts, lowered, pages
from tools.report import plots as measurement_plots
from tools.report.charts import script_safe

_FOLDER = Path(__file__).parent


def write_report(root: Path, output: Path | None = None) -> Path:
    """Write a workspace's report.

    Args:
        root: the workspace.
        output: the file to write; ``report/index.html`` in the workspace where none is named.

    Returns:
        The file, which is whole or was not written.

    Raises:
        UsageError: if there is no such workspace.
        StoreError: if something in it is damaged.
    """
    found = overview(root)
    path = output or root / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".partial-{path.name}")
    material = read_material(root, [row.measurement for row in found.rows])
    text = render(found, root, material, read_profiles(root))
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def render(
    found: Overview, root: Path, material: Sequence[Material], profiles: list[BlockProfile]
) -> str:
    """The report as HTML text.

    Args:
        found: the workspace's measurements.
        root: its folder.
        material: the raw runs of each of them, in their order.
        profiles: of where the time goes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(
        ms=units.format_ms,
        interval=units.format_interval_ms,
        mj=units.format_mj,
        ratio=units.format_ratio,
        size=units.format_bytes,
        capfirst=_capfirst,
        percent=_percent,
    )
    variants = [row for row in found.rows if row.measurement.role == "variant"]
    search = found.summary.get("search")
    plots = {"pareto": charts.pareto(found.rows)}
    if search and search["candidates"]:
        plots["prediction"] = charts.prediction(search["candidates"])
    return environment.get_template("report.html.j2").render(
        name=found.name,
        summary=found.summary,
        headline=_headline(variants),
        variants=variants,
        front=sorted((r for r in found.rows if r.on_front), key=_latency),
        search=search,
        failures=found.summary.get("failures", []),
        notes=found.summary.get("notes", []),
        noted=_noted(variants, found.summary.get("notes", [])),
        refused=[row for row in variants if row.measurement.status != "accepted"],
        remarked=[row for row in variants if _remarked(row.measurement)],
        without_energy=_without_energy(variants),
        devices=_devices(found.rows),
        pages=pages.pages(found.rows, material),
        key_of=pages.key_of,
        profiles=blocks.views(profiles),
        lowered=lowered.rows(found.summary.get("lowered", [])),
        plots=plots,
        charts=script_safe(
            {
                "columns": measurement_plots.COLUMNS,
                "tables": measurement_plots.TABLES,
                "specifications": measurement_plots.specifications(),
            }
        ),
        library=charts.library(),
        script=(_FOLDER / "report.js").read_text(encoding="utf-8"),
        style=(_FOLDER / "report.css").read_text(encoding="utf-8"),
        version=version("edgeloop"),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        workspace=root.name,
    )


def _noted(variants: list[Row], notes: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows that notes are of; one for no device in particular is of all."""
    of = {(note["variant"], note["format"], note["device"]) for note in notes}
    return [
        row
        for row in variants
        for m in [row.measurement]
        if of & {(m.variant, m.format, m.device), (m.variant, m.format, None)}
    ]


def _latency(row: Row) -> float:
    return row.measurement.median_ns or float("inf")


def _percent(value: float | None, digits: int = 1) -> str:
    return units.UNKNOWN if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _headline(variants: list[Row]) -> dict[str, Any] | None:
    """The fastest variant that loses at most one point, for a reader in a hurry."""
    usable = [
        row
        for row in variants
        if row.measurement.median_ns
        and row.measurement.parity
        and row.measurement.parity.reference_accuracy - row.measurement.parity.accuracy <= 0.01
    ]
    if not usable:
        return None
    best = min(usable, key=_latency)
    slower = [r for r in variants if r.slower and not _same(r, best)]
    return {"best": best, "slower": slower}


def _without_energy(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """Why there is no energy, and on which devices."""
    found: dict[str, dict[str, None]] = {}
    for m in (row.measurement for row in rows):
        if why := m.unknown.get("energy"):
            found.setdefault(why, {})[m.device] = None
    return [(why, list(devices)) for why, devices in found.items()]


def _remarked(m: Measurement) -> bool:
    return m.status == "accepted" and bool(m.remarks)


def _capfirst(text: str) -> str:
    return text[:1].upper() + text[1:]


def _same(one: Row, other: Row) -> bool:
    return one.measurement is other.measurement


def _devices(rows: tuple[Row, ...]) -> list[Measurement]:
    """One measurement for each device, runtime, delegates and condition: what numbers stand on."""
    seen: dict[tuple[Any, ...], Measurement] = {}
    for row in rows:
        m = row.measurement
        if m.device:
            key = (m.device, m.runtime, m.runtime_version, m.delegates, m.condition)
            seen.setdefault(key, m)
    return sorted(seen.values(), key=lambda m: (m.device, m.runtime))
