"""Where the time goes: a profile as rows of a table, with a bar for each block."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.profile.record import BlockCost, BlockProfile, OperatorProfile
from profiles import units

#: So many operators are listed by name; what the others come to stands in one row.
MOST_OPERATORS = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """Ends of a bar and of its interval, in percent of the chart's width."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One block and all that are like it; ``bar`` is of their time together, calls apart."""

    names: str
    others: str
    kind: str
    count: int
    each: str
    interval: str
    together: str
    share: str
    bar: Bar | None
    trouble: str


@dataclass(frozen=True, slots=True)
class ProfileView:
    """What the report shows of one profile."""

    profile: BlockProfile
    title: str
    rows: list[BlockRow]
    operators: list[tuple[str, ...]]
    operators_gap: str


def views(profiles: list[BlockProfile]) -> list[ProfileView]:
    """The profiles of a workspace, ready to be shown."""
    return [_view(profile) for profile in profiles]


def _view(profile: BlockProfile) -> ProfileView:
    ends = [_ends(block, profile) for block in profile.blocks]
    widest = max((high for end in ends if end for high in (end[1], end[2])), default=0.0)
    return ProfileView(
        profile=profile,
        title=(
            f"{profile.model} {profile.variant} {profile.format} on {profile.device},"
            f" {profile.condition.describe()}"
        ),
        rows=[_row(block, end, widest) for block, end in zip(profile.blocks, ends, strict=True)],
        operators=_operators(profile.operators) if profile.operators else [],
        operators_gap=_operators_gap(profile.operators) if profile.operators else "",
    )


def _ends(block: BlockCost, profile: BlockProfile) -> tuple[float, float, float] | None:
    """Low end, value and high end of what all blocks like this one take, calls apart, in ns."""
    if block.latency_ns is None:
        return None
    value = block.latency_ns.value
    call_ns = profile.call_ns.value if profile.call_ns else 0.0
    low, high = block.latency_ns.ci95 or (value, value)
    low, value, high = (max(ns - call_ns, 0.0) * block.count for ns in (low, value, high))
    return low, value, high


def _row(block: BlockCost, ends: tuple[float, float, float] | None, widest: float) -> BlockRow:
    latency = block.latency_ns
    bar = None
    if ends and widest > 0:
        low, value, high = (100 * ns / widest for ns in ends)
        bar = Bar(value, low, high)
    return BlockRow(
        names=block.names[0],
        others=", ".join(block.names[1:]),
        kind=block.kind,
        count=block.count,
        each=units.format_ms(latency.value if latency else None),
        interval=units.format_interval_ms(latency.ci95 if latency else None),
        together=units.format_ms(ends[1] if ends else None),
        share=units.UNKNOWN if block.share is None else f"{100 * block.share:.1f} %",
        bar=bar,
        trouble="" if block.status == "accepted" else f"{block.status}: {block.reason}",
    )


def _operators(found: OperatorProfile) -> list[tuple[str, ...]]:
    """Name, type, provider, block, time and share of the slowest operators, and of the rest."""
    rows: list[tuple[str, ...]]
    slowest = sorted(found.operators, key=lambda one: -one.latency_ns)
    rows = [
        (
            one.name,
            one.type,
            one.provider,
            one.block or "-",
            *_time(one.latency_ns, found),
        )
        for one in slowest[:MOST_OPERATORS]
    ]
    if rest := slowest[MOST_OPERATORS:]:
        others = sum(one.latency_ns for one in rest)
        rows.append((f"{len(rest)} others", "", "", "", *_time(others, found)))
    return rows


def _time(latency_ns: float, found: OperatorProfile) -> tuple[str, str]:
    """An operator's time: one that is shorter than the runtime's clock tells is not 0."""
    if latency_ns < found.resolution_ns:
        return f"< {units.format_ms(found.resolution_ns)}", ""
    share = f"{100 * latency_ns / found.whole_ns:.1f} %" if found.whole_ns else units.UNKNOWN
    return units.format_ms(latency_ns), share


def _operators_gap(found: OperatorProfile) -> str:
    return (
        f"All operators take {units.format_ms(found.sum_ns)} of the"
        f" {units.format_ms(found.whole_ns)} ms of a call that the runtime watches"
        f" ({found.calls} calls); {units.format_ms(found.gap_ns)} ms are in none of them."
    )
