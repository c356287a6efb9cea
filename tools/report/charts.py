"""The report's plots, as Vega-Lite specifications that follow the page's colours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pipeline.overview import Row
from profiles.units import NS_PER_MS

_HEIGHT = 360
# Okabe & Ito's palette: told apart with any colour vision, on light and dark.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
GREY = "#8b949e"

# What the bundle leaves for the page to call.
_SNIPPET = "window.vegaEmbed = vegaEmbed;"


@cache
def library() -> str:
    """The JavaScript that draws specifications, whole, to be put into the page."""
    import vl_convert

    code: str = vl_convert.javascript_bundle(snippet=_SNIPPET)
    return code.replace("</script", "<\\/script")


def pareto(rows: Sequence[Row]) -> str:
    """Accuracy over latency of everything measured, with the front drawn through."""
    import altair as alt

    points = [_point(row) for row in rows if row.measurement.median_ns and row.measurement.parity]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "ms:Q", title="latency, ms (log)", scale=alt.Scale(type="log", nice=False, padding=24)
        ),
        y=alt.Y("accuracy:Q", title="top-1 accuracy, %", scale=alt.Scale(zero=False, padding=16)),
        color=alt.Color("what:N", title=None, scale=alt.Scale(range=COLOURS)),
        tooltip=[
            "network:N",
            "format:N",
            "place:N",
            "ms:Q",
            "interval:N",
            "accuracy:Q",
            "kB:Q",
        ],
    )
    marks = base.mark_point(filled=True, size=90, opacity=0.85).encode(
        shape=alt.Shape("format:N", title=None)
    )
    spread = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x="low:Q", x2="high:Q")
    front = (
        alt.Chart(alt.Data(values=[p for p in points if p["front"]]))
        .mark_line(interpolate="step-after", strokeDash=[4, 3], color="currentColor", opacity=0.5)
        .encode(x="ms:Q", y="accuracy:Q", detail="place:N", order="ms:Q")
    )
    return script_safe(finished(front + spread + marks))


def prediction(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Measured over predicted latency, with the line of perfect prediction."""
    import altair as alt

    points = [
        {
            "predicted": c["predicted_ns"] / NS_PER_MS,
            "measured": c["measured_ns"] / NS_PER_MS,
            "low": (c["ci95_ns"] or [c["measured_ns"]] * 2)[0] / NS_PER_MS,
            "high": (c["ci95_ns"] or [c["measured_ns"]] * 2)[1] / NS_PER_MS,
            "round": f"round {c['round']}",
            "network": c["description"],
        }
        for c in candidates
    ]
    values = [p[key] for p in points for key in ("predicted", "low", "high")]
    ends = [min(values) * 0.95, max(values) * 1.05]
    scale = alt.Scale(domain=ends, nice=False)
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "predicted:Q",
            title="predicted by the table, ms",
            scale=scale,
            axis=alt.Axis(tickCount=8),
        ),
        color=alt.Color("round:N", title=None, scale=alt.Scale(range=COLOURS)),
        tooltip=["network:N", "round:N", "predicted:Q", "measured:Q"],
    )
    marks = base.mark_point(filled=True, size=90, opacity=0.85).encode(
        y=alt.Y("measured:Q", title="measured on the device, ms", scale=scale)
    )
    spread = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y="low:Q", y2="high:Q")
    perfect = (
        alt.Chart(alt.Data(values=[{"predicted": end, "measured": end} for end in ends]))
        .mark_line(strokeDash=[4, 3], color="currentColor", opacity=0.5)
        .encode(x="predicted:Q", y="measured:Q")
    )
    return script_safe(finished(perfect + spread + marks))


def _point(row: Row) -> dict[str, Any]:
    m = row.measurement
    median, accuracy = m.median_ns or 0.0, m.parity.accuracy if m.parity else 0.0
    low, high = m.ci95_ns or (median, median)
    device = f"{m.device} (emulated)" if m.emulated else m.device
    return {
        "ms": median / NS_PER_MS,
        "low": low / NS_PER_MS,
        "high": high / NS_PER_MS,
        "interval": f"{low / NS_PER_MS:.4g} to {high / NS_PER_MS:.4g}",
        "accuracy": 100 * accuracy,
        "kB": m.size_bytes / 1000,
        "network": m.variant,
        "what": m.variant if m.role == "variant" else "search",
        "format": m.format,
        "place": f"{device}, {m.condition.describe()}",
        "front": row.on_front,
    }


def finished(chart: Any, height: int = _HEIGHT) -> dict[str, Any]:
    """The specification of a chart that follows the page's width and colours."""
    text = "currentColor"
    made = chart.properties(width="container", height=height, background="transparent").configure(
        font="system-ui, sans-serif",
        axis={
            "labelColor": text,
            "titleColor": text,
            "domainColor": text,
            "tickColor": text,
            "gridColor": text,
            "gridOpacity": 0.15,
            "titleFontWeight": "normal",
        },
        legend={
            "labelColor": text,
            "titleColor": text,
            "symbolBaseFillColor": text,
            "symbolBaseStrokeColor": text,
            "orient": "top",
        },
        view={"stroke": None},
    )
    specification: dict[str, Any] = made.to_dict()
    return specification


def script_safe(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment there."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
