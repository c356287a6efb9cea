"""How a workspace reads in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from profiles import units
from profiles.records import Measurement
from tools.device_lab.output import device_label, latency_cells, print_table

if TYPE_CHECKING:
    from pipeline.overview import Overview, Row


def measurement_row(found: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a list of measurements."""
    columns = ["model", "variant", "format", "device", ">thr", ">ms", ">95 %", ">n", "status"]
    rows = []
    for m in found:
        median, interval = latency_cells(m)
        rows.append(
            [
                m.model,
                m.variant,
                m.format,
                device_label(m),
                str(m.condition.threads),
                median,
                interval,
                str(m.n),
                m.status if m.status == "accepted" else f"{m.status}: {m.reason}",
            ]
        )
    return columns, rows


def print_overview(overview: Overview) -> None:
    """Artifacts, the Pareto front, and what the search found."""
    variants = [row for row in overview.rows if row.measurement.role == "variant"]
    print_table(
        f"{overview.name}: artifacts",
        ["variant", "format", "device", ">thr", ">kB", ">top-1 %", ">ms", ">95 %", ">vs fp32", ""],
        [_artifact_cells(row) for row in variants],
    )
    front = sorted(
        (row for row in overview.rows if row.on_front),
        key=lambda row: row.measurement.median_ns or 0,
    )
    print_table(
        "Pareto front (accuracy, latency, size), per device and thread count",
        ["variant", "format", "device", ">thr", ">kB", ">top-1 %", ">ms", ">95 %"],
        [_front_cells(row) for row in front],
    )
    search = overview.summary.get("search")
    if search:
        print_search(search)


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
    )
    for found in search["agreement"]:
        print(
            f"{found['population']}: n {found['n']}, mean error {found['mape']:.1%},"
            f" within 10 % {found['within_10_percent']:.0%}"
        )


def _artifact_cells(row: Row) -> list[str]:
    m = row.measurement
    median, interval = latency_cells(m)
    accuracy = f"{100 * m.parity.accuracy:.1f}" if m.parity else units.UNKNOWN
    speedup = f"{row.speedup:.2f}x" if row.speedup else "-"
    mark = "*" if row.on_front else ("" if m.status == "accepted" else m.status)
    size = f"{m.size_bytes / 1000:.0f}"
    threads = str(m.condition.threads)
    return [
        m.variant,
        m.format,
        device_label(m),
        threads,
        size,
        accuracy,
        median,
        interval,
        speedup,
        mark,
    ]


def _front_cells(row: Row) -> list[str]:
    m = row.measurement
    median, interval = latency_cells(m)
    accuracy = f"{100 * m.parity.accuracy:.1f}" if m.parity else units.UNKNOWN
    return [
        m.variant,
        m.format,
        device_label(m),
        str(m.condition.threads),
        f"{m.size_bytes / 1000:.0f}",
        accuracy,
        median,
        interval,
    ]
