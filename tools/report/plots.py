"""The charts of a measurement's page: specifications without data, shared by all pages.

The page's script puts a measurement's rows (see :mod:`tools.report.drawing`) into them when the
page is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from tools.report.charts import COLOURS, GREY, finished
from tools.report.drawing import BEYOND, NOT_COUNTED

#: The columns of each table of rows that charts are drawn from.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "points": ("call", "shown", "ms", "run", "hue", "kind"),
    "spans": ("label", "from", "to", "hue"),
    "changes": ("call",),
    "medians": ("label", "ms", "hue"),
    "median": ("low", "ms", "high"),
    "bins": ("low", "high", "count"),
    "clocks": ("call", "mhz", "run", "hue"),
    "sustained": ("seconds", "ms", "run", "hue"),
    "power": ("seconds", "mw", "run", "hue"),
    "stretches": ("from", "to", "what"),
}
#: Charts and the tables each is drawn from; the first must have rows for it to be drawn.
TABLES: Mapping[str, tuple[str, ...]] = {
    "samples": ("points", "spans", "changes"),
    "histogram": ("bins", "median"),
    "medians": ("medians", "median"),
    "clocks": ("clocks",),
    "sustained": ("sustained",),
    "power": ("power", "stretches"),
}
_SHAPES = {
    "timed": "circle",
    "outlier": "diamond",
    "warm-up": "triangle-down",
    "not counted": "cross",
    BEYOND: "triangle-up",
}
#: Room for the labels of the axes of charts that stand below one another.
_AXIS = 52


@cache
def specifications() -> dict[str, Any]:
    """Each chart; the histogram in two scales, ``-wide`` being the logarithmic."""
    return {
        "samples": _samples(),
        "histogram": _histogram(wide=False),
        "histogram-wide": _histogram(wide=True),
        "medians": _medians(),
        "clocks": _clocks(),
        "sustained": _sustained(),
        "power": _power(),
    }


def _data(name: str) -> Any:
    import altair as alt

    return alt.Chart(alt.NamedData(name))


def _scale(wide: bool) -> Any:
    import altair as alt

    kind = {"type": "log"} if wide else {"type": "linear", "zero": False}
    return alt.Scale(**kind, nice=False, padding=8)


def _hue() -> Any:
    import altair as alt

    hues = [NOT_COUNTED, *range(len(COLOURS))]
    return alt.Color("hue:N", legend=None, scale=alt.Scale(domain=hues, range=[GREY, *COLOURS]))


def _axis(**changes: Any) -> Any:
    import altair as alt

    return alt.Axis(minExtent=_AXIS, maxExtent=_AXIS, **changes)


def _samples() -> dict[str, Any]:
    """Every call in the order made, by run."""
    import altair as alt

    shapes = alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    x = alt.X("call:Q", title="call", scale=alt.Scale(nice=False, zero=True))
    marks = (
        _data("points")
        .mark_point(filled=True, opacity=0.75)
        .encode(
            x=x,
            y=alt.Y("shown:Q", title="ms", scale=_scale(False), axis=_axis()),
            color=_hue(),
            shape=alt.Shape("kind:N", title=None, scale=shapes),
            size=alt.condition("datum.kind === 'timed'", alt.value(14), alt.value(34)),
            tooltip=["run:O", "call:Q", "ms:Q", "kind:N"],
        )
    )
    borders = (
        _data("spans")
        .mark_rule(color="currentColor", opacity=0.2)
        .encode(x=alt.X("from:Q", title="call"))
    )
    names = (
        _data("spans")
        .mark_text(baseline="bottom", dy=-4, fontWeight="bold")
        .transform_calculate(middle="(datum.from + datum.to) / 2")
        .encode(x=alt.X("middle:Q", title="call"), y=alt.value(0), text="label:N", color=_hue())
    )
    changes = _data("changes").mark_rule(color=COLOURS[1], strokeDash=[2, 2], size=2).encode(x=x)
    return finished(borders + marks + changes + names, height=300)


def _histogram(wide: bool) -> dict[str, Any]:
    """How many calls took how long, with the median and its interval."""
    import altair as alt

    bars = (
        _data("bins")
        .mark_rect(color=COLOURS[0], opacity=0.7)
        .encode(
            x=alt.X("low:Q", title="ms", scale=_scale(wide)),
            x2="high:Q",
            y=alt.Y(
                "count:Q",
                title="calls (root scale)",
                scale=alt.Scale(type="sqrt", zero=True),
                axis=_axis(tickCount=5),
            ),
            y2=alt.datum(0),
            tooltip=["low:Q", "high:Q", "count:Q"],
        )
    )
    label = (
        _data("median")
        .mark_text(align="left", baseline="top", dx=5, color="currentColor")
        .encode(x=_end("x", "ms", "ms"), y=alt.value(0), text=alt.Text("ms:Q", format=".3"))
    )
    return finished(_band("x", "ms") + bars + _line("x", "ms") + label, height=220)


def _medians() -> dict[str, Any]:
    """Each run's median beside the whole's and its interval."""
    import altair as alt

    title = "median, ms"
    marks = (
        _data("medians")
        .mark_point(filled=True, size=80, opacity=0.9)
        .encode(
            x=alt.X("label:O", title="run", sort=None, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("ms:Q", title=title, scale=_scale(False), axis=_axis()),
            color=_hue(),
            tooltip=["label:N", "ms:Q"],
        )
    )
    return finished(_band("y", title) + _line("y", title) + marks, height=220)


def _band(axis: str, title: str) -> Any:
    """The interval of the median, over the whole chart."""
    return (
        _data("median")
        .mark_rect(color=COLOURS[1], opacity=0.25)
        .encode(**{axis: _end(axis, "low", title), f"{axis}2": "high:Q"})
    )


def _line(axis: str, title: str) -> Any:
    """The median, through the whole chart."""
    marks = _data("median").mark_rule(color=COLOURS[1], size=2)
    return marks.encode(**{axis: _end(axis, "ms", title)})


def _end(axis: str, column: str, title: str) -> Any:
    import altair as alt

    return {"x": alt.X, "y": alt.Y}[axis](f"{column}:Q", title=title)


def _clocks() -> dict[str, Any]:
    """The core's clock after each slice of calls."""
    import altair as alt

    marks = (
        _data("clocks")
        .mark_line(point={"size": 18}, interpolate="step-before")
        .encode(
            x=alt.X("call:Q", title="call", scale=alt.Scale(nice=False, zero=True)),
            y=alt.Y("mhz:Q", title="MHz", scale=alt.Scale(zero=False, padding=8), axis=_axis()),
            color=_hue(),
            detail="run:N",
            tooltip=["run:O", "call:Q", "mhz:Q"],
        )
    )
    return finished(marks, height=150)


def _sustained() -> dict[str, Any]:
    """Latency over time, without a pause: medians of short stretches."""
    import altair as alt

    marks = (
        _data("sustained")
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("seconds:Q", title="s since the first timed call"),
            y=alt.Y("ms:Q", title="ms", scale=_scale(False), axis=_axis()),
            color=_hue(),
            detail="run:N",
            tooltip=["run:O", "seconds:Q", "ms:Q"],
        )
    )
    return finished(marks, height=220)


def _power() -> dict[str, Any]:
    """What the power sensor said, with the stretches of each run behind it."""
    import altair as alt

    kinds = alt.Scale(domain=["idle", "active"], range=[GREY, COLOURS[4]])
    stretches = (
        _data("stretches")
        .mark_rect(opacity=0.2)
        .encode(x="from:Q", x2="to:Q", color=alt.Color("what:N", title=None, scale=kinds))
    )
    marks = (
        _data("power")
        .mark_line(strokeWidth=1.5, interpolate="step-before")
        .encode(
            x=alt.X("seconds:Q", title="s, one run after the other"),
            y=alt.Y("mw:Q", title="mW", axis=_axis()),
            color=_hue(),
            detail="run:N",
            tooltip=["run:O", "seconds:Q", "mw:Q"],
        )
    )
    return finished((stretches + marks).resolve_scale(color="independent"), height=220)
