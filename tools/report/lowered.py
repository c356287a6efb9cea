"""Where the operators of each artifact run, in words for a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: So many operators that fell out are named; how many others there are is said.
MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class LoweredRow:
    """One artifact; texts ready to be shown."""

    variant: str
    format: str
    batch: str
    where: str
    operators: str
    macs: str
    partitions: str
    integers: str
    quantization: str
    outside: str


def rows(lowered: Iterable[Mapping[str, Any]]) -> list[LoweredRow]:
    """What a run's summary holds of its artifacts; none of runs before it was recorded."""
    return [_row(each) for each in lowered if each["details"].get("placement")]


def _row(lowered: Mapping[str, Any]) -> LoweredRow:
    details, placed = lowered["details"], lowered["details"]["placement"]
    opset = f", opset {details['opset']}" if "opset" in details else ""
    share = placed["macs_share"]
    return LoweredRow(
        variant=lowered["variant"],
        format=lowered["format"] + opset,
        batch=str(details.get("batch", "unknown")),
        where=placed["in"],
        operators=f"{placed['inside']} of {placed['operators']}",
        macs="unknown" if share is None else "100 %" if share == 1 else f"{100 * share:.1f} %",
        partitions=str(placed["partitions"]),
        integers=str(placed["integer"]),
        quantization=quantization(details.get("layout")),
        outside=_named(placed["outside"]),
    )


def quantization(layout: Mapping[str, Any] | None) -> str:
    """A layout in a few words: the most frequent way of weights and of activations."""
    words = []
    for side in ("weights", "activations"):
        for way in (layout or {}).get(side, [])[:1]:
            symmetric = {True: "symmetric", False: "affine"}.get(way["symmetric"], "")
            words.append(f"{side} {way['dtype']} {way['granularity']} {symmetric}".rstrip())
    return ", ".join(words) or "none"


def _named(outside: list[Mapping[str, Any]]) -> str:
    """What fell out, the most frequent first: the operator, how often, and the user's module."""
    first = sorted(outside, key=lambda each: -each["count"])[:MOST_NAMED]
    named = [
        each["operator"]
        + (f" {each['count']}x" if each["count"] > 1 else "")
        + (f" in {each['module']}" if each["module"] else "")
        for each in first
    ]
    more = sum(each["count"] for each in outside) - sum(each["count"] for each in first)
    return ", ".join(named) + (f", and {more} more" if more else "") or "nothing"
