"""What Linux' files say, understood; whatever is not understood is unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devices.facts import supplies as power_supply
from profiles.units import plausible_mdegc

_BOUNDS = ("scaling_min_freq", "scaling_max_freq", "cpuinfo_min_freq", "cpuinfo_max_freq")


@dataclass(frozen=True, slots=True)
class Policy:
    """Cores that share a clock, and its bounds.

    Args:
        path: its folder in sysfs.
        cores: the cores that are online.
        governor: its frequency governor.
        governors: those it could have.
        writable: whether this login may change it and its bounds.
        min_khz, max_khz: bounds in force.
        lowest_khz, highest_khz: bounds of the hardware.
    """

    path: str
    cores: frozenset[int]
    governor: str
    governors: tuple[str, ...]
    writable: bool
    min_khz: int
    max_khz: int
    lowest_khz: int
    highest_khz: int


def cores_of(ranges: str) -> frozenset[int] | None:
    """The cores of a list such as ``0-3,6`` or ``0 1 2``, or ``None`` if it is none."""
    cores: set[int] = set()
    for part in re.split(r"[,\s]+", ranges.strip()):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if not found:
            return None
        cores |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(cores) or None


def busy_cores(counters: Sequence[str], cores: int) -> float | None:
    """Cores' worth of work between two reads of the processors' counters.

    *Source:* proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; guests
    are within user and nice.
    """
    try:
        before, after = ([int(field) for field in line.split()[1:9]] for line in counters)
    except ValueError:
        return None
    spent = [later - earlier for earlier, later in zip(before, after, strict=False)]
    if len(spent) < 5 or sum(spent) <= 0:
        return None
    return round(max(sum(spent) - spent[3] - spent[4], 0) / sum(spent) * cores, 2)


def policies(values: Mapping[str, str]) -> tuple[Policy, ...]:
    """The clocks' policies that are understood in full."""
    found: dict[frozenset[int], Policy] = {}
    for path in values:
        folder, _, name = path.rpartition("/")
        if name != "affected_cpus":
            continue
        cores = cores_of(values[path])
        bounds = [values.get(f"{folder}/{name}", "") for name in _BOUNDS]
        governor = values.get(f"{folder}/scaling_governor")
        # Older kernels show one policy under each of its cores.
        if not cores or not governor or cores in found:
            continue
        if not all(re.fullmatch(r"\d{1,9}", bound) for bound in bounds):
            continue
        found[cores] = Policy(
            folder,
            cores,
            governor,
            tuple(values.get(f"{folder}/scaling_available_governors", "").split()),
            f"{folder}/writable" in values,
            *map(int, bounds),
        )
    return tuple(found.values())


def zones(values: Mapping[str, str]) -> dict[str, int]:
    """The thermal zones' temperatures in m°C, by the zones' types."""
    found: dict[str, int] = {}
    for path, value in values.items():
        folder, _, name = path.rpartition("/")
        if name != "temp" or not re.fullmatch(r"-?\d{1,9}", value):
            continue
        mdegc = plausible_mdegc(int(value))
        kind = values.get(f"{folder}/type", folder.rpartition("/")[2])
        if mdegc is not None:
            found[kind] = max(mdegc, found.get(kind, mdegc))
    return found


def throttled(values: Mapping[str, str]) -> bool:
    """Whether the system holds its processors back to cool them.

    *Source:* drivers/thermal/cpufreq_cooling.c registers ``cpufreq-cpu0``, until Linux 5.11
    ``thermal-cpufreq-0``; drivers/acpi/processor_thermal.c and its callers ``Processor``.
    """
    for path, state in values.items():
        folder, _, name = path.rpartition("/")
        kind = values.get(f"{folder}/type", "")
        if name == "cur_state" and ("cpufreq" in kind or kind == "Processor") and state != "0":
            return True
    return False


def supplies(values: Mapping[str, str]) -> tuple[int | None, bool | None]:
    """The system's own battery in percent, and whether anything powers it from outside."""
    percent = None
    for folder, kind in power_supply.supplies(values).items():
        capacity = values.get(f"{folder}/capacity", "")
        if kind == "Battery" and re.fullmatch(r"\d{1,2}|100", capacity):
            percent = int(capacity)
    told = [text for text in power_supply.chargers(values).values() if text]
    return percent, any(map(power_supply.is_online, told)) if told else None
