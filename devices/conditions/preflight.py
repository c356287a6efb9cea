"""Whether a device may be measured now, and waiting for what passes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from devices.conditions.gates import Gates, Refusal
from devices.conditions.linux import Policy
from devices.conditions.readings import Readings, read
from devices.transport.base import Transport
from profiles.records import Condition

#: How often a device that is too warm or too busy is looked at again, in seconds.
POLL_S = 5.0

#: Told what the device is waited for: ``cooling``, and the reasons in one line.
StateSink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was read, and every reason not to measure; none means go.

    Args:
        readings: the device's state.
        refusals: a reading that is unknown never is one.
        waited_s: how long was waited for it.
    """

    readings: Readings
    refusals: tuple[Refusal, ...]
    waited_s: float = 0.0


def preflight(
    transport: Transport, system: str, gates: Gates, condition: Condition, *, tree: str = ""
) -> Preflight:
    """Look at a device once.

    Args:
        transport: the connection to it.
        system: ``linux`` or ``android``.
        gates: what must hold.
        condition: cores and mode of the measurement that is wanted.
        tree: see :func:`devices.conditions.readings.read`.

    Raises:
        DeviceError: if the device cannot tell its state.
    """
    readings = read(transport, system, load=gates.max_foreign_load_cores is not None, tree=tree)
    return Preflight(readings, tuple(judge(readings, system, gates, condition)))


def settle(
    transport: Transport,
    system: str,
    gates: Gates,
    condition: Condition,
    *,
    on_state: StateSink = lambda state, why: None,
    poll_s: float = POLL_S,
    tree: str = "",
) -> Preflight:
    """Look at a device until nothing that passes with time speaks against measuring.

    Ends at once when something speaks against it that waiting does not change, and otherwise when
    the gates' ``settle_s`` is over.

    Args:
        on_state: called before each wait; the place for a sign of life, if the device is pinned.
        poll_s: seconds between two looks.
        transport, system, gates, condition, tree: see :func:`preflight`.
    """
    start = time.monotonic()
    while True:
        seen = preflight(transport, system, gates, condition, tree=tree)
        waited_s = time.monotonic() - start
        hopeless = any(not refusal.passing for refusal in seen.refusals)
        if not seen.refusals or hopeless or waited_s >= (gates.settle_s or 0):
            return Preflight(seen.readings, seen.refusals, round(waited_s, 1))
        on_state("cooling", "; ".join(map(str, seen.refusals)))
        time.sleep(min(poll_s, max((gates.settle_s or 0) - waited_s, 0)))


def judge(readings: Readings, system: str, gates: Gates, condition: Condition) -> Iterator[Refusal]:
    """Every reason these readings give not to measure under this condition."""
    yield from _too_warm(readings, gates)
    yield from _too_busy(readings, gates)
    yield from _battery(readings, gates)
    yield from _missing_cores(readings, condition)
    if condition.mode != "pinned":
        yield from _governors(readings, gates, condition)
        yield from judge_phone(readings, gates)
    elif system == "android":
        yield from _cannot_be_put_back(readings, gates)
    else:
        yield from _cannot_be_pinned(readings, gates, condition)


def _too_warm(readings: Readings, gates: Gates) -> Iterator[Refusal]:
    limit = gates.max_temperature_mdegc
    looked_at = {
        name: mdegc
        for name, mdegc in readings.temperatures_mdegc.items()
        if not gates.temperature_zones
        or any(fnmatchcase(name, pattern) for pattern in gates.temperature_zones)
    }
    if limit is not None and looked_at:
        name = max(looked_at, key=looked_at.__getitem__)
        if looked_at[name] > limit:
            yield Refusal(
                f"the temperature of {name}",
                f"{looked_at[name] / 1000:.1f} °C",
                f"at most {limit / 1000:.1f} °C",
                "let it cool, or give it a fan",
                passing=True,
            )
    status = readings.thermal_status
    if gates.max_thermal_status is not None and (status or 0) > gates.max_thermal_status:
        yield Refusal(
            "the thermal status",
            str(status),
            f"at most {gates.max_thermal_status}",
            "let it cool, out of its case",
            passing=True,
        )


def _too_busy(readings: Readings, gates: Gates) -> Iterator[Refusal]:
    limit = gates.max_foreign_load_cores
    if limit is not None and readings.busy_cores is not None and readings.busy_cores > limit:
        yield Refusal(
            "the load of others",
            f"{readings.busy_cores:g} cores",
            f"at most {limit:g}",
            "end what else runs on the device",
            passing=True,
        )


def _battery(readings: Readings, gates: Gates) -> Iterator[Refusal]:
    percent = readings.battery_percent
    if gates.battery_percent is not None and percent is not None:
        low, high = gates.battery_percent
        if not low <= percent <= high:
            advice = "charge it first" if percent < low else "let it run down first"
            yield Refusal("the battery", f"{percent} %", f"within {low} and {high} %", advice)
    if gates.unplugged and readings.plugged:
        yield Refusal("the device", "plugged in", "on battery", "unplug it, and reach it by Wi-Fi")


def _missing_cores(readings: Readings, condition: Condition) -> Iterator[Refusal]:
    wanted = cores_of_mask(condition.core_mask)
    if wanted is None or readings.online is None or wanted <= readings.online:
        return
    missing = ", ".join(map(str, sorted(wanted - readings.online)))
    yield Refusal(
        f"core mask {condition.core_mask}",
        f"of cores that are not online ({missing})",
        f"within the {len(readings.online)} that are",
        "name cores the device has, or bring them online",
    )


def _governors(readings: Readings, gates: Gates, condition: Condition) -> Iterator[Refusal]:
    found = {policy.governor for policy in policies_of(readings, condition)}
    if gates.governors and not found <= set(gates.governors):
        yield Refusal(
            "the frequency governor",
            ",".join(sorted(found)),
            " or ".join(gates.governors),
            "measure pinned, or set the governor yourself",
        )


def judge_phone(readings: Readings, gates: Gates) -> Iterator[Refusal]:
    """What of a phone's screen and radios is not as asked for."""
    if gates.screen is not None and readings.screen_on is (gates.screen != "on"):
        now = "on" if readings.screen_on else "off"
        yield Refusal("the screen", now, gates.screen, "switch it, or measure pinned")
    if gates.airplane is not None and readings.airplane is (not gates.airplane):
        names = {True: "on", False: "off"}
        yield Refusal(
            "airplane mode",
            names[not gates.airplane],
            names[gates.airplane],
            "switch it, or measure pinned",
        )


def _cannot_be_put_back(readings: Readings, gates: Gates) -> Iterator[Refusal]:
    """What is to be set and is not known as it is now."""
    unknown = {
        "the screen": gates.screen is not None and readings.screen_on is None,
        "staying awake": gates.screen == "on"
        and "stay_on_while_plugged_in" not in readings.settings,
        "airplane mode": gates.airplane is not None and readings.airplane is None,
    }
    for what in (name for name, missing in unknown.items() if missing):
        yield Refusal(
            what,
            "not told by the device",
            "one that could be put back",
            "do not ask for it, or measure as-shipped",
        )


def _cannot_be_pinned(readings: Readings, gates: Gates, condition: Condition) -> Iterator[Refusal]:
    policies = policies_of(readings, condition)
    if not policies:
        yield Refusal(
            "the processors' clock",
            "not the system's to set",
            "one that can be pinned",
            "measure as-shipped: this device has no cpufreq",
        )
    governor = pinned_governor(gates)
    for policy in policies:
        name = policy.path.rpartition("/")[2]
        if not policy.writable:
            yield Refusal(
                f"the clock of {name}",
                "not this login's to set",
                "one that can be pinned",
                "log in as root, or measure as-shipped",
            )
        elif policy.governors and governor not in policy.governors:
            yield Refusal(
                f"the governor of {name}",
                f"one of {', '.join(policy.governors)}",
                governor,
                "name one of these in the gates of the device's profile",
            )
        elif gates.pinned_khz is not None and gates.pinned_khz < policy.lowest_khz:
            yield Refusal(
                f"the clock of {name}",
                f"at least {policy.lowest_khz} kHz",
                f"{gates.pinned_khz} kHz",
                "pin it to a frequency that it has",
            )
        elif _throttled(readings, policy, gates):
            yield Refusal(
                f"the clock of {name}",
                f"held at {policy.max_khz} kHz by the system, which cools",
                f"free to reach {policy.highest_khz} kHz",
                "let it cool, or give it a fan",
                passing=True,
            )


def _throttled(readings: Readings, policy: Policy, gates: Gates) -> bool:
    """Whether a clock's upper bound may be the thermal governor's: neither to be kept, nor pinned.

    A device that is pinned, and is as it was pinned, is not.
    """
    as_pinned = policy.min_khz == policy.max_khz == pinned_khz(policy, gates)
    return readings.throttled and policy.max_khz < policy.highest_khz and not as_pinned


def pinned_khz(policy: Policy, gates: Gates) -> int:
    """The frequency that a pinned clock gets."""
    return min(gates.pinned_khz or policy.highest_khz, policy.highest_khz)


def pinned_governor(gates: Gates) -> str:
    """The governor that a pinned clock gets."""
    return gates.governors[0] if gates.governors else "performance"


def policies_of(readings: Readings, condition: Condition) -> tuple[Policy, ...]:
    """The clocks of the cores that a condition names; all, if it names none."""
    wanted = cores_of_mask(condition.core_mask)
    return tuple(policy for policy in readings.policies if wanted is None or policy.cores & wanted)


def cores_of_mask(mask: str | None) -> frozenset[int] | None:
    """The cores of a hexadecimal affinity mask; ``None`` where there is no mask."""
    if mask is None:
        return None
    bits = int(mask, 16)
    return frozenset(core for core in range(bits.bit_length()) if bits >> core & 1)
