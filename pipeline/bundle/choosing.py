"""Which artifact goes to which device: limits, what is best, and the order to fall back in.

For each device every measured artifact that keeps all limits is a candidate.  They are sorted by
what is best (accuracy unless told otherwise), then by accuracy, latency and size; the first of each
runtime is taken, so that an app with one runtime alone finds its best.  A limit on what varies from
run to run holds where the whole 95 % interval keeps it; without an interval nobody knows.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from profiles import units
from profiles.errors import ConfigError
from profiles.findings import Figure, Measurement

Metric = Literal["accuracy", "latency", "size", "energy"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_LIMIT = re.compile(
    r"(?P<metric>[a-z]+)\s*(?P<sign><=|>=|≤|≥)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-zµ%]*)"
    r"(?:\s+on\s+(?P<device>\S+))?"
)
#: Of each metric the units it is written in, in its internal one.
_UNITS: Mapping[Metric, Mapping[str, int | Fraction]] = {
    "accuracy": {"": 1, "%": Fraction(1, 100)},
    "latency": {"ms": units.NS_PER_MS, "us": 1_000, "µs": 1_000, "s": 1_000_000_000},
    "size": {"B": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000},
    "energy": {"mJ": units.UJ_PER_MJ, "uJ": 1, "µJ": 1, "J": 1_000_000},
}
#: How many options are told where none is good enough.
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that is demanded.

    Args:
        metric: of what.
        bound: in the metric's internal unit: a fraction, ns, bytes or µJ.
        device: id or profile of the device it is for; ``None`` for all.
        text: as it was written.
    """

    metric: Metric
    bound: float
    device: str | None
    text: str

    def excess(self, m: Measurement) -> float | None:
        """By which share a measurement misses it, 0 for none; ``None`` where that is unknown."""
        value = _surely(m, self.metric)
        if value is None:
            return None
        over = self.bound - value if self.metric == "accuracy" else value - self.bound
        return max(0.0, over / self.bound) if self.bound else float(over > 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a bundle is to hold.

    Args:
        limits: that each artifact keeps.
        best: what is best, among those.
        artifacts: only these: how their sha256 begins, or ``variant:format``; all if none is named.
    """

    limits: tuple[Limit, ...] = ()
    best: Metric = "accuracy"
    artifacts: tuple[str, ...] = ()


def parse_limits(texts: Sequence[str]) -> tuple[Limit, ...]:
    """Limits as they are written: ``latency<=8ms on pixel-8``, ``size<=5MB``, ``accuracy>=90%``.

    Raises:
        ConfigError: lists each that is none.
    """
    limits, problems = [], []
    for text in texts:
        try:
            limits.append(_limit(text))
        except ValueError as error:
            problems.append(f"{text!r}: {error}")
    if problems:
        raise ConfigError("--limit", problems)
    return tuple(limits)


def _limit(text: str) -> Limit:
    found = _LIMIT.fullmatch(text.strip())
    if not found:
        raise ValueError("is not of the form 'latency<=8ms on pixel-8' or 'accuracy>=0.9'")
    metric = next((name for name in METRICS if name == found["metric"]), None)
    if metric is None:
        raise ValueError(f"there is no {found['metric']}; one of {', '.join(METRICS)}")
    wanted = ">=" if metric == "accuracy" else "<="
    if found["sign"] not in {">=": (">=", "≥"), "<=": ("<=", "≤")}[wanted]:
        raise ValueError(f"{metric} is limited by {wanted}")
    if found["unit"] not in _UNITS[metric]:
        names = ", ".join(repr(name) for name in _UNITS[metric])
        raise ValueError(f"{metric} has no unit {found['unit']!r}; one of {names}")
    bound = float(Fraction(found["number"]) * _UNITS[metric][found["unit"]])
    return Limit(metric, bound, found["device"], text.strip())


def choose(
    measurements: Sequence[Measurement], names: Mapping[str, Sequence[str]], wish: Wish
) -> dict[str, list[Measurement]]:
    """What is best for each device, best first.

    Where limits name devices the bundle is for those, else for all that were measured.

    Args:
        measurements: of a workspace.
        names: of each device, by its id.
        wish: what is wanted.

    Raises:
        ConfigError: lists every device on which nothing keeps all limits, with what comes nearest,
            and every artifact and device that is not there.
    """
    known = [m for m in measurements if m.status == "accepted" and m.median_ns is not None]
    usable = [m for m in known if m.parity and m.parity.passed]
    problems = _absent(usable, names, wish)
    if not usable:
        problems.insert(0, "nothing in it was measured and accepted")
    picked = [m for m in usable if not wish.artifacts or any(_is(m, a) for a in wish.artifacts)]
    asked = {limit.device for limit in wish.limits if limit.device}
    chosen = {}
    for device in sorted({m.device for m in picked}):
        called = {device, *names.get(device, ())}
        if asked and not asked & called:
            continue
        there = [m for m in picked if m.device == device]
        limits = [limit for limit in wish.limits if limit.device is None or limit.device in called]
        good = [m for m in there if all(limit.excess(m) == 0 for limit in limits)]
        if good:
            chosen[device] = _first_of_each(sorted(good, key=_order(wish.best)), wish)
        else:
            problems.append(f"{device}: nothing keeps {_told(limits)}; {_nearest(there, limits)}")
    if problems:
        raise ConfigError("the bundle", problems)
    return chosen


def _absent(
    usable: Sequence[Measurement], names: Mapping[str, Sequence[str]], wish: Wish
) -> list[str]:
    problems = []
    for wanted in wish.artifacts:
        found = {m.artifact_sha256 for m in usable if _is(m, wanted)}
        if not found or (
            len(found) > 1 and ":" not in wanted
        ):  # of one name each device has its own
            known = ", ".join(sorted({f"{m.variant}:{m.format}" for m in usable}))
            problems.append(
                f"{wanted}: is no artifact that was measured, or several; one of {known}"
            )
    devices = sorted({m.device for m in usable})
    known_names = {*devices, *(name for device in devices for name in names.get(device, ()))}
    for limit in wish.limits:
        if limit.device is not None and limit.device not in known_names:
            problems.append(
                f"{limit.text!r}: nothing was measured on {limit.device}; on {', '.join(devices)}"
            )
    return problems


def _is(m: Measurement, wanted: str) -> bool:
    variant, _, format_ = wanted.rpartition(":")
    if variant:
        return (m.variant, m.format) == (variant, format_)
    return bool(wanted) and m.artifact_sha256.startswith(wanted.lower())


def _order(best: Metric) -> Callable[[Measurement], tuple[object, ...]]:
    first = [best, *(metric for metric in METRICS if metric not in (best, "energy"))]
    # Equal in all of these, names decide: the same workspace gives the same bundle.
    return lambda m: (*(_rank(m, metric) for metric in first), m.condition.threads, m.trial)


def _rank(m: Measurement, metric: Metric) -> tuple[bool, float]:
    """The less the better; what is unknown comes last."""
    value = _typically(m, metric)
    known = 0.0 if value is None else value
    return value is None, -known if metric == "accuracy" else known


def _first_of_each(ordered: Sequence[Measurement], wish: Wish) -> list[Measurement]:
    """The best of each runtime; where artifacts are named, of each of them."""
    kind = operator.attrgetter("artifact_sha256" if wish.artifacts else "runtime")
    first: dict[object, Measurement] = {}
    for m in ordered:
        first.setdefault(kind(m), m)
    return list(first.values())


def _typically(m: Measurement, metric: Metric) -> float | None:
    energy = m.energy.net_uj.value if m.energy else None
    accuracy = m.parity.accuracy if m.parity else None
    by_metric = {
        "accuracy": accuracy,
        "latency": m.median_ns,
        "size": float(m.size_bytes),
        "energy": energy,
    }
    return by_metric[metric]


def _surely(m: Measurement, metric: Metric) -> float | None:
    """The worse end of the interval, of what varies from run to run."""
    if metric == "latency":
        return m.ci95_ns[1] if m.ci95_ns else None
    if metric == "energy":
        figure: Figure | None = m.energy.net_uj if m.energy else None
        return figure.ci95[1] if figure and figure.ci95 else None
    return _typically(m, metric)


def _nearest(there: Sequence[Measurement], limits: Sequence[Limit]) -> str:
    """What comes nearest, and what it takes to be taken."""

    def distance(m: Measurement) -> tuple[bool, float]:
        found = [limit.excess(m) for limit in limits]
        return None in found, sum(each or 0.0 for each in found)

    options = []
    for m in sorted(there, key=distance)[:_NEAREST]:
        missed = [_missed(m, limit) for limit in limits if limit.excess(m) != 0]
        threads = m.condition.threads
        name = f"{m.variant}:{m.format} with {threads} thread{'s' if threads > 1 else ''}"
        options.append(f"{name} ({', '.join(missed)})")
    return f"nearest: {'; '.join(options)}"


def _missed(m: Measurement, limit: Limit) -> str:
    value, excess = _surely(m, limit.metric), limit.excess(m)
    if value is None or excess is None:
        return f"{limit.metric} is unknown"
    word = "under" if limit.metric == "accuracy" else "over"
    upper = "up to " if limit.metric in ("latency", "energy") else ""
    share = units.format_significant(100 * excess, 2)
    return f"{limit.metric} {upper}{_shown(limit.metric, value)}, {share} % {word}"


def _shown(metric: Metric, value: float) -> str:
    if metric == "latency":
        return f"{units.format_ms(value)} ms"
    if metric == "energy":
        return f"{units.format_mj(value)} mJ"
    return units.format_bytes(value) if metric == "size" else f"{100 * value:.2f} %"


def _told(limits: Sequence[Limit]) -> str:
    return " and ".join(limit.text for limit in limits)
