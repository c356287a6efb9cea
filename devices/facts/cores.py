"""Cores and their clusters, from /proc/cpuinfo and sysfs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from devices.facts.dump import MOST_CORES, Dump, core_list, whole_number

_CPU = "/sys/devices/system/cpu"

#: Names of ARM's designs by the part number in MIDR_EL1, and of others' by (implementer, part).
#: *Source*: Linux, arch/arm64/include/asm/cputype.h; util-linux, sys-utils/lscpu-arm.c.
PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x4E, 0x004): "Carmel",
}
#: The implementer that ARM leaves to software; qemu's own ``max`` core has it.
#: *Source*: Arm Architecture Reference Manual, MIDR_EL1; qemu, target/arm/tcg/cpu64.c.
SOFTWARE_IMPLEMENTER = 0


def cores_online(dump: Dump) -> list[int]:
    """The cores that run now, or as many as /proc/cpuinfo shows."""
    listed = core_list(dump.text(f"{_CPU}/online") or "")
    return listed or sorted(_blocks(dump))


def clusters(dump: Dump) -> list[dict[str, Any]]:
    """The cores that run, grouped into those that are alike and share a clock.

    Cores that have a clock each, as on x86-64, are one cluster as long as they are alike.
    """
    designs = _designs(dump)
    policies = _policies(dump)
    groups: dict[tuple[object, ...], list[int]] = {}
    for core in cores_online(dump):
        policy = policies.get(core, {})
        alike = (
            policy.get("id"),
            policy.get("min_khz"),
            policy.get("max_khz"),
            designs.get(core),
            dump.number(f"{_CPU}/cpu{core}/cpu_capacity"),
            dump.number(f"{_CPU}/cpu{core}/topology/physical_package_id"),
            # On x86-64 this counts the cores around one cache, which is no cluster in our sense.
            dump.number(f"{_CPU}/cpu{core}/topology/cluster_id") if core in designs else None,
        )
        groups.setdefault(alike, []).append(core)
    return [_cluster(cores, designs, policies) for cores in groups.values()]


def _cluster(
    cores: Sequence[int],
    designs: dict[int, tuple[int, int]],
    policies: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "cores": list(cores),
        "mask": f"{sum(1 << core for core in cores):x}",
    }
    design = designs.get(cores[0])
    if design:
        cluster["part"] = PARTS.get(design, f"0x{design[0]:02x}:0x{design[1]:03x}")
    policy = policies.get(cores[0], {})
    cluster |= {key: policy[key] for key in ("min_khz", "max_khz") if policy.get(key)}
    return cluster


def describe(found: Sequence[dict[str, Any]]) -> str | None:
    """Clusters for people, as ``4x Cortex-A55 + 4x Cortex-A76``."""
    count: Counter[str] = Counter()
    for cluster in found:
        count[cluster.get("part", "")] += len(cluster["cores"])
    if not count or "" in count:
        return None
    return " + ".join(f"{number}x {part}" for part, number in count.items())


def is_software(dump: Dump) -> bool:
    """Whether a core says that it is none of silicon."""
    return any(implementer == SOFTWARE_IMPLEMENTER for implementer, _ in _designs(dump).values())


def _policies(dump: Dump) -> dict[int, dict[str, Any]]:
    """For each core the clock it shares; the id is left out where no other core shares it."""
    found: dict[int, dict[str, Any]] = {}
    for match, text in dump.each(rf"{_CPU}/cpufreq/policy([0-9]+)/related_cpus"):
        cores = core_list(text)
        folder = f"{_CPU}/cpufreq/policy{match[1]}"
        policy = {
            "id": match[1] if len(cores) > 1 else None,
            "min_khz": dump.number(f"{folder}/cpuinfo_min_freq"),
            "max_khz": dump.number(f"{folder}/cpuinfo_max_freq"),
        }
        found |= dict.fromkeys(cores, policy)
    return found


def _designs(dump: Dump) -> dict[int, tuple[int, int]]:
    """ARM cores' implementers and parts."""
    found = {}
    for core, block in _blocks(dump).items():
        implementer = whole_number(block.get("CPU implementer", ""))
        part = whole_number(block.get("CPU part", ""))
        if implementer is not None and part is not None:
            found[core] = (implementer, part)
    for match, text in dump.each(rf"{_CPU}/cpu([0-9]{{1,4}})/regs/identification/midr_el1"):
        midr = whole_number(text)
        if midr is not None:
            found[int(match[1])] = (midr >> 24 & 0xFF, midr >> 4 & 0xFFF)
    return found


def _blocks(dump: Dump) -> dict[int, dict[str, str]]:
    """The part of /proc/cpuinfo that is about each core."""
    found: dict[int, dict[str, str]] = {}
    block: dict[str, str] = {}
    for line in dump.lines("/proc/cpuinfo"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            core = whole_number(value)
            block = {}
            if core is not None and 0 <= core < MOST_CORES:
                block = found.setdefault(core, {})
        block[key] = value
    return found
