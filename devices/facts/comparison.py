"""Where a device is not what its profile says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from profiles.catalog import Cluster, DeviceProfile, Meter

_GIB = 1 << 30
#: Firmware, graphics and the kernel keep some of the memory that is sold; a Raspberry Pi 4 of 1 GiB
#: with graphics keeps the largest share.
_USABLE_SHARE = 0.7


def disagreements(profile: DeviceProfile, facts: Mapping[str, Any]) -> list[str]:
    """What the profile says and the device does not, a sentence each.

    What the device does not tell is no disagreement, except for a meter: a profile that promises
    one, and a device that does not show it, cannot measure energy.
    """
    found = [
        f"the profile says {what} {expected}, the device says {told}"
        for what, expected, told, agree in _comparisons(profile, facts)
        if not agree
    ]
    for meter in profile.meters:
        found += _meter(meter, facts.get("meters", []))
    return found


def _comparisons(
    profile: DeviceProfile, facts: Mapping[str, Any]
) -> list[tuple[str, str, Any, bool]]:
    """What is compared, what the profile says, what the device says, and whether they agree."""
    told: list[tuple[str, str, Any, bool]] = []
    for what, expected in (("system", profile.os), ("machine", profile.architecture)):
        if what in facts:
            told.append((what, expected, facts[what], facts[what] == expected))
    if profile.models and "model" in facts:
        agree = any(fnmatchcase(facts["model"], pattern) for pattern in profile.models)
        told.append(("model", " or ".join(profile.models), facts["model"], agree))
    if profile.soc and "soc" in facts:
        agree = facts["soc"].lower() in [name.lower() for name in profile.soc]
        told.append(("soc", " or ".join(profile.soc), facts["soc"], agree))
    if profile.cores and "cores" in facts:
        told.append(("cores", str(profile.cores), facts["cores"], profile.cores == facts["cores"]))
    told += _clusters(profile.clusters, facts.get("clusters", []))
    if profile.memory_gib and "memory_bytes" in facts:
        gib = facts["memory_bytes"] / _GIB
        agree = any(_USABLE_SHARE * size <= gib <= size for size in profile.memory_gib)
        sizes = " or ".join(str(size) for size in profile.memory_gib)
        told.append(("memory", f"{sizes} GiB", f"{gib:.1f} GiB", agree))
    return told


def _meter(meter: Meter, shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the device lacks of a meter; the sentence says what cannot be measured without it."""
    name = f"the meter {' or '.join(meter.names)} ({meter.kind})"
    fitting = [other for other in shown if meter.fits(other["kind"], other["name"])]
    if not fitting:
        return [f"the device does not show {name} to this login; it tells: {meter.covers}"]
    rails = {rail for other in fitting for rail in other.get("rails", [])}
    missing = [rail for rail in meter.rails if rail not in rails]
    return [f"{name} has no rail {', '.join(missing)}"] if missing else []


def _clusters(
    expected: tuple[Cluster, ...], told: list[Mapping[str, Any]]
) -> list[tuple[str, str, Any, bool]]:
    """Each cluster of the profile against the device's cores of the same numbers."""
    found = []
    for cluster in expected:
        same = [other for other in told if set(other["cores"]) & set(cluster.cores)]
        parts = {other["part"] for other in same if "part" in other}
        if parts:
            agree = parts == {cluster.part}
            found.append(
                (f"{cluster.name} cores are", cluster.part, ", ".join(sorted(parts)), agree)
            )
        highest = max((other["max_khz"] for other in same if "max_khz" in other), default=None)
        if highest and cluster.max_khz:
            agree = abs(highest - cluster.max_khz) <= 0.02 * cluster.max_khz
            what = f"{cluster.name} cores' highest frequency is"
            found.append((what, f"{cluster.max_khz} kHz", f"{highest} kHz", agree))
    return found
