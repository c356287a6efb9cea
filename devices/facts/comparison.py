"""Where a device is not what its profile says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from profiles.catalog import Cluster, DeviceProfile, Meter

_GIB = 1 << 30
#: Firmware, graphics and the kernel keep some of the memory that is sold; a Raspberry Pi 4 of 1 GiB
#: with graphics keeps the largest share.
_USABLE_SHARE = 0.7
#: Public listings round frequencies; other chips of a family differ by more.
_SAME_CLOCK = 0.02


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What is compared, under which key of the profile, and both sides as people read them."""

    what: str
    key: str
    expected: str
    told: object
    agree: bool


def disagreements(profile: DeviceProfile, facts: Mapping[str, Any]) -> list[str]:
    """What the profile says and the device does not, a sentence each.

    A constant of the profile that is not verified is called so: the device may be right.  What the
    device does not tell is no disagreement, except for a meter: a profile that promises one, and
    a device that does not show it, cannot measure energy.
    """
    found = []
    for each in _comparisons(profile, facts):
        if not each.agree:
            doubt = "" if _is_sure(profile, each.key) else " (unverified)"
            found.append(
                f"the profile says {each.what} {each.expected}{doubt}, the device says {each.told}"
            )
    for meter in profile.meters:
        found += _meter(meter, facts.get("meters", []))
    return found


def _is_sure(profile: DeviceProfile, key: str) -> bool:
    return key in ("os", "architecture") or profile.sourced(key).verified


def _comparisons(profile: DeviceProfile, facts: Mapping[str, Any]) -> Iterator[_Comparison]:
    for what, key in (("system", "os"), ("machine", "architecture")):
        if what in facts:
            expected = getattr(profile, key)
            yield _Comparison(what, key, expected, facts[what], facts[what] == expected)
    if profile.models and "model" in facts:
        agree = any(fnmatchcase(facts["model"], pattern) for pattern in profile.models)
        yield _Comparison("model", "models", " or ".join(profile.models), facts["model"], agree)
    if profile.soc and "soc" in facts:
        agree = facts["soc"].lower() in [name.lower() for name in profile.soc]
        yield _Comparison("soc", "soc", " or ".join(profile.soc), facts["soc"], agree)
    if profile.cores and "cores" in facts:
        agree = profile.cores == facts["cores"]
        yield _Comparison("cores", "clusters", str(profile.cores), facts["cores"], agree)
    for cluster in profile.clusters:
        yield from _cluster(cluster, facts.get("clusters", []))
    if profile.memory_gib and "memory_bytes" in facts:
        gib = facts["memory_bytes"] / _GIB
        agree = any(_USABLE_SHARE * size <= gib <= size for size in profile.memory_gib)
        sizes = " or ".join(str(size) for size in profile.memory_gib)
        yield _Comparison("memory", "memory_gib", f"{sizes} GiB", f"{gib:.1f} GiB", agree)


def _cluster(cluster: Cluster, told: Sequence[Mapping[str, Any]]) -> Iterator[_Comparison]:
    """A cluster of the profile against the device's cores of the same numbers."""
    same = [other for other in told if set(other["cores"]) & set(cluster.cores)]
    parts = sorted({other["part"] for other in same if "part" in other})
    if parts:
        agree = parts == [cluster.part]
        what = f"{cluster.name} cores are"
        yield _Comparison(what, "clusters", cluster.part, ", ".join(parts), agree)
    highest = max((other["max_khz"] for other in same if "max_khz" in other), default=None)
    if highest and cluster.max_khz:
        agree = abs(highest - cluster.max_khz) <= _SAME_CLOCK * cluster.max_khz
        what = f"{cluster.name} cores' highest frequency is"
        expected, told_khz = f"{cluster.max_khz} kHz", f"{highest} kHz"
        yield _Comparison(what, "clusters", expected, told_khz, agree)


def _meter(meter: Meter, shown: Sequence[Mapping[str, Any]]) -> list[str]:
    name = f"the meter {' or '.join(meter.names)} ({meter.kind})"
    fitting = [other for other in shown if meter.fits(other["kind"], other["name"])]
    if not fitting:
        return [f"the device does not show {name} to this login; it tells: {meter.covers}"]
    rails = {rail for other in fitting for rail in other.get("rails", [])}
    # A login that may not read the meter sees its name alone.
    missing = [rail for rail in meter.rails if rails and rail not in rails]
    return [f"{name} has no rail {', '.join(missing)}"] if missing else []
