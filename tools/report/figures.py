"""A measurement's figures in words, for its page and for the terminal.

Each row is a name, a value, and what to know about it; what is not known says ``unknown``, and why.
"""

from __future__ import annotations

from collections.abc import Callable

from profiles import units
from profiles.findings import Figure, Measurement

Rows = list[tuple[str, str, str]]


def statistics(m: Measurement) -> Rows:
    """The latency's statistics; empty where there is none."""
    if m.median_ns is None:
        return []
    few = "" if m.p99_ns is not None else "told for 1,000 calls and more"
    return [
        ("median", _ms(m.median_ns), _interval(m.median_ns, m.ci95_ns, m.runs)),
        ("mean", _ms(m.mean_ns), ""),
        ("p90", _ms(m.p90_ns), ""),
        ("p99", _ms(m.p99_ns), few),
        ("minimum", _ms(m.min_ns), ""),
        ("MAD", _ms(m.mad_ns), "median absolute deviation"),
        ("calls", f"{m.n:,}", f"in {m.runs} runs, each a process of its own"),
        ("first call", _ms(m.first_ns), ""),
        ("load", _ms(m.load_ns), "from opening the file to a model ready to run"),
    ]


def second_opinion(interval: tuple[float, float] | None) -> Rows:
    """What the hierarchical bootstrap says of the median; empty where it says nothing."""
    if interval is None:
        return []
    drawn = "runs and calls drawn again: no distribution is assumed"
    return [("median, bootstrap", units.format_interval_ms(interval), f"95 %; {drawn}")]


def energy(m: Measurement) -> Rows:
    """What one call takes."""
    e = m.energy
    if e is None:
        return [("per call", units.UNKNOWN, _why(m, "energy"))]
    return [
        ("net per call", *_mj(e.net_uj)),
        ("gross per call", *_mj(e.gross_uj)),
        ("idle power", *_mw(e.idle_uw)),
        ("meter", e.meter, ""),
        ("covers", e.covers, ""),
        ("coverage", f"{100 * e.coverage:.1f} %", "of the windows, by readings"),
        ("method", e.method, ""),
    ]


def memory(m: Measurement) -> Rows:
    """What loading and calling takes."""
    found = m.memory
    if found is None:
        return [("peak", units.UNKNOWN, _why(m, "memory"))]
    size = units.format_bytes
    model = size(found.loaded_bytes - found.base_bytes)
    return [
        ("base", size(found.base_bytes), "the runtime, before the model"),
        ("loaded", size(found.loaded_bytes), f"with the model: {model} more"),
        ("peak", size(found.peak_bytes), "the process' high-water mark, with calls"),
        ("file-mapped", size(found.file_bytes), "of what is resident after calls"),
    ]


def in_use(m: Measurement) -> Rows:
    """The latency as an application sees it, and once the device is warm."""
    app, warm = m.app_ns, m.sustained_ns
    found: Rows = [
        ("application loop", *(_latency(app) if app else (units.UNKNOWN, _why(m, "app")))),
        ("sustained", *(_latency(warm) if warm else (units.UNKNOWN, _why(m, "sustained")))),
    ]
    if app:
        found.insert(1, ("application / bench", *_ratio(m)))
    return found


def sections(m: Measurement) -> list[tuple[str, Rows]]:
    """All of these, under their headings."""
    named = [
        ("Latency", statistics(m)),
        ("In use", in_use(m)),
        ("Energy", energy(m)),
        ("Memory", memory(m)),
    ]
    return [(heading, rows) for heading, rows in named if rows]


def _ratio(m: Measurement) -> tuple[str, str]:
    ratio = m.app_ratio
    if ratio is None:
        return units.UNKNOWN, m.unknown.get("app", "the bench has no figure")
    return units.format_ratio(ratio.value), _interval(ratio.value, ratio.ci95, ratio.runs, _ratios)


def _ratios(interval: tuple[float, float]) -> str:
    return " to ".join(units.format_ratio(end) for end in interval)


def _why(m: Measurement, what: str) -> str:
    return m.unknown.get(what) or "not measured"


def _ms(value_ns: float | None) -> str:
    return units.UNKNOWN if value_ns is None else f"{units.format_ms(value_ns)} ms"


def _interval(
    value: float,
    ci95: tuple[float, float] | None,
    runs: int,
    form: Callable[[tuple[float, float]], str] = units.format_interval_ms,
) -> str:
    if ci95 is None:
        return "no interval: too few runs"
    return f"95 % {form(ci95)}, {units.format_half_width(value, ci95)}, {runs} runs"


def _latency(figure: Figure) -> tuple[str, str]:
    return _ms(figure.value), _interval(figure.value, figure.ci95, figure.runs)


def _mj(figure: Figure) -> tuple[str, str]:
    note = _interval(figure.value, figure.ci95, figure.runs, units.format_interval_mj)
    return f"{units.format_mj(figure.value)} mJ", note


def _mw(figure: Figure) -> tuple[str, str]:
    note = _interval(figure.value, figure.ci95, figure.runs, units.format_interval_mw)
    return f"{units.format_mw(figure.value)} mW", note
