"""What measuring comes to: a figure and its interval, a reason not to believe it, a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from profiles.records import Condition, Parity

#: What data is refused for, or remarked upon; :mod:`profiles.quality` finds it.
ReasonCode = Literal[
    "throttled",  # heat held the clocks back
    "frequency",  # the clocks moved while it was timed
    "foreign-load",  # others used the processors
    "not-stationary",  # the latency itself moved: a jump within runs, or a drift over them
    "too-few-runs",
    "meter-coverage",  # the power sensor said too little, or too rarely
    "charging",  # the battery's current is not the device's
    "idle-moved",  # the device without calls took another power after than before
    "another-state",  # governor or power source were not those of the latency it stands beside
]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why data is refused, or what to keep in mind about it; and what to do.

    Args:
        code: for machines.
        text: what was seen, with figures.
        advice: what to do about it.
    """

    code: ReasonCode
    text: str
    advice: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that was measured.

    Args:
        value: in the unit its owner's name says.
        ci95: 95 % interval, or ``None`` with too few runs for one.
        n: samples.
        runs: how many runs they come from.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int
    runs: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model takes, of a run of its own; the medians of the runs.

    Args:
        base_bytes: resident with the runtime loaded, before the model.
        loaded_bytes: resident once the model is loaded.
        peak_bytes: the process' high-water mark (VmHWM) after calls; ``None`` where not told.
        file_bytes: of what is resident after calls, mapped from files (RssFile); ``None`` where
            not told, as before Linux 4.5.
        runs: how many.
    """

    base_bytes: int
    loaded_bytes: int
    peak_bytes: int | None
    file_bytes: int | None
    runs: int


@dataclass(frozen=True, slots=True)
class Energy:
    """What one call takes.

    Args:
        net_uj: per call in µJ, the idle power subtracted.
        gross_uj: per call in µJ, as the sensor saw it.
        idle_uw: power without calls in µW, before and after.
        meter: name and kind of the sensor.
        covers: what its power is of.
        coverage: share of the windows that its readings cover.
        method: how the readings became an energy.
    """

    net_uj: Figure
    gross_uj: Figure
    idle_uw: Figure
    meter: str
    covers: str
    coverage: float
    method: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of one artifact on one device under one condition, with a verdict.

    ``median_ns`` and everything beside it are ``None`` where nothing was accepted or measured:
    unknown is unknown, never 0.

    Args:
        status: of the latency: ``accepted``, ``refused``, ``failed`` or ``open``.
        reason: why it is not accepted, in one line; empty where it is.
        stopped: why there were no more runs.
        reasons: what the data is refused for.
        remarks: what to keep in mind about accepted data.
        median_ns, ci95_ns: see :class:`profiles.statistics.Summary`, as for the other statistics.
        sustained_ns: the median latency once warm.
        app_ns: the median latency of a plain application loop.
        app_ratio: the same over ``median_ns``, with the interval of the ratio.
        unknown: for ``energy``, ``memory``, ``app``, ``sustained``: why there is no figure, or for
            ``app`` no ratio.
        turns: see :class:`Plan`.
    """

    artifact_sha256: str
    trial: str
    model: str
    variant: str
    role: str
    format: str
    runtime: str
    runtime_version: str
    device: str
    emulated: bool
    transport: str
    condition: Condition
    status: str
    reason: str
    n: int
    runs: int
    median_ns: float | None
    ci95_ns: tuple[float, float] | None
    p90_ns: float | None
    load_ns: float | None
    first_ns: float | None
    size_bytes: int
    parity: Parity | None
    agent: str = "unknown"
    delegates: tuple[str, ...] = ()
    device_serial: str = "unknown"
    device_build: str = "unknown"
    mean_ns: float | None = None
    p99_ns: float | None = None
    min_ns: float | None = None
    mad_ns: float | None = None
    stopped: str = ""
    reasons: tuple[Reason, ...] = ()
    remarks: tuple[Reason, ...] = ()
    sustained_ns: Figure | None = None
    app_ns: Figure | None = None
    app_ratio: Figure | None = None
    energy: Energy | None = None
    memory: Memory | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)
    turns: str = ""
