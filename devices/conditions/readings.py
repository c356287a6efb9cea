"""What a device says of its state, in one command.

The script prints what it finds; what that means is worked out here, where it can be tested.  Lines
``NONCE PATH = VALUE`` are files, ``NONCE section NAME`` begins what a command printed.  Everything
that a device does not tell is unknown: ``None``, or left out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from devices.conditions import android, linux
from devices.conditions.linux import Policy
from devices.transport.base import Transport
from profiles.errors import DeviceError

#: How long the processors' counters are watched where foreign load is asked for.
LOAD_WINDOW_S = 1
_DEADLINE_S = 60.0

# The processors' counters come first, with nothing but a sleep between them: what is read after
# them is load of our own.  Files are read by the shell itself: hundreds of processes would take
# seconds on a phone, and warm it.
_SCRIPT = r"""
LC_ALL=C; export LC_ALL
n=$1 system=$2 window=$3 r=$4
show() {
  for f; do
    line=
    { read -r line < "$f"; } 2>/dev/null
    [ -z "$line" ] || echo "$n ${f#"$r"} = $line"
  done
}
if [ "$window" -gt 0 ]; then show "$r/proc/stat"; sleep "$window"; show "$r/proc/stat"; fi
cpu=$r/sys/devices/system/cpu
show "$cpu/online"
set -- "$cpu"/cpufreq/policy[0-9]*
[ -d "$1" ] || set -- "$cpu"/cpu[0-9]*/cpufreq
for p; do
  show "$p/affected_cpus" "$p/scaling_governor" "$p/scaling_available_governors" \
    "$p/scaling_min_freq" "$p/scaling_max_freq" "$p/cpuinfo_min_freq" "$p/cpuinfo_max_freq"
  if [ -w "$p/scaling_governor" ] && [ -w "$p/scaling_min_freq" ] && [ -w "$p/scaling_max_freq" ]
  then echo "$n ${p#"$r"}/writable = yes"; fi
done
for z in "$r"/sys/class/thermal/thermal_zone*; do show "$z/type" "$z/temp"; done
if [ "$system" != android ]; then
  for c in "$r"/sys/class/thermal/cooling_device*; do show "$c/type" "$c/cur_state"; done
fi
for s in "$r"/sys/class/power_supply/*; do
  show "$s/type" "$s/scope" "$s/online" "$s/capacity"
done
if [ "$system" = android ]; then
  for service in battery thermalservice; do
    echo "$n section $service"; dumpsys "$service" < /dev/null 2>/dev/null
  done
  echo "$n section power"
  dumpsys power < /dev/null 2>/dev/null | grep -E '^ *(mWakefulness=|Display Power: state=)'
  for key in airplane_mode_on stay_on_while_plugged_in; do
    echo "$n global.$key = $(settings get global "$key" < /dev/null 2>/dev/null)"
  done
fi
echo "$n end = end"
"""
_CPUS = "/sys/devices/system/cpu/"


@dataclass(frozen=True, slots=True)
class Readings:
    """A device's state; see the module's text for what is missing in it.

    Args:
        temperatures_mdegc: by sensor; of two sensors of one name the hotter.
        thermal_status: Android's, from 0 (none) to 6 (shutdown).
        busy_cores: how many cores' worth of work was done while nobody of ours worked.
        online: the cores that are.
        policies: of the processors' clocks.
        throttled: whether Linux holds the processors back to cool them.
        battery_percent: the charge.
        plugged: whether anything powers it from outside.
        screen_on, airplane: of a phone.
        settings: Android's global settings that may be changed, as they are.
    """

    temperatures_mdegc: Mapping[str, int] = field(default_factory=dict)
    thermal_status: int | None = None
    busy_cores: float | None = None
    online: frozenset[int] | None = None
    policies: tuple[Policy, ...] = ()
    throttled: bool = False
    battery_percent: int | None = None
    plugged: bool | None = None
    screen_on: bool | None = None
    airplane: bool | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def governor(self) -> str:
        """The governors in force, joined by commas, or ``unknown``."""
        return ",".join(sorted({policy.governor for policy in self.policies})) or "unknown"

    def environment(self) -> dict[str, Any]:
        """As plain data, for the record of a run; what is unknown is left out."""
        clocks = {
            ",".join(map(str, sorted(policy.cores))): [policy.min_khz, policy.max_khz]
            for policy in self.policies
        }
        found: dict[str, Any] = {
            "temperatures_mdegc": dict(self.temperatures_mdegc) or None,
            "thermal_status": self.thermal_status,
            "throttled": self.throttled or None,
            "busy_cores": self.busy_cores,
            "cores_online": sorted(self.online) if self.online else None,
            "governor": self.governor if self.policies else None,
            "clocks_khz": clocks or None,
            "battery_percent": self.battery_percent,
            "plugged": self.plugged,
            "screen_on": self.screen_on,
            "airplane": self.airplane,
        }
        return {name: value for name, value in found.items() if value is not None}


def read(transport: Transport, system: str, *, load: bool = False, tree: str = "") -> Readings:
    """Have the device tell its state.

    Args:
        transport: the connection to it.
        system: ``linux`` or ``android``.
        load: whether to watch for foreign load, which takes :data:`LOAD_WINDOW_S`.
        tree: a folder on the device that stands for its root, with a ``proc`` and a ``sys`` in it.

    Raises:
        DeviceError: if its shell does not carry the script out.
    """
    nonce = secrets.token_hex(8)
    done = transport.run(
        ["sh", "-c", _SCRIPT, "sh", nonce, system, str(LOAD_WINDOW_S if load else 0), tree],
        deadline_s=_DEADLINE_S,
    )
    text = done.stdout.decode(errors="replace")
    if f"{nonce} end = end" not in text:
        raise DeviceError(f"the device's shell cannot tell its state: {done.complaint()}")
    return understand(text, nonce)


def understand(text: str, nonce: str) -> Readings:
    """What the script printed, as readings."""
    values, counters, sections = _sorted_out(text, nonce)
    battery, thermal = sections.get("battery", ""), sections.get("thermalservice", "")
    zones = linux.zones(values)
    if sections:  # a phone's zones are in any unit; its thermal service knows which are degrees
        zones = android.temperatures_mdegc(thermal)
        warm = android.battery_mdegc(battery)
        zones = zones if warm is None else {"battery": warm, **zones}
    online = linux.cores_of(values.get(f"{_CPUS}online", ""))
    percent, plugged = linux.supplies(values)
    airplane = values.get("global.airplane_mode_on")
    return Readings(
        temperatures_mdegc=zones,
        thermal_status=android.thermal_status(thermal),
        busy_cores=linux.busy_cores(counters, len(online)) if online else None,
        online=online,
        policies=linux.policies(values),
        throttled=linux.throttled(values),
        battery_percent=android.battery_percent(battery) if battery else percent,
        plugged=android.plugged(battery) if battery else plugged,
        screen_on=android.screen_on(sections.get("power", "")),
        airplane={"0": False, "1": True}.get(airplane or ""),
        settings={
            path.removeprefix("global."): value
            for path, value in values.items()
            if path.startswith("global.") and re.fullmatch(r"null|-?\d{1,9}", value)
        },
    )


def _sorted_out(text: str, nonce: str) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """Values by path, the lines of the processors' counters, and what commands printed."""
    values: dict[str, str] = {}
    counters: list[str] = []
    sections: dict[str, str] = {}
    section = None
    for line in text.splitlines():
        if not line.startswith(f"{nonce} "):
            if section is not None:
                sections[section] += f"{line}\n"
            continue
        path, _, value = line.removeprefix(f"{nonce} ").partition(" = ")
        section = None
        if path == "/proc/stat":
            counters.append(value)
        elif path.startswith("section "):
            section = path.removeprefix("section ")
            sections[section] = ""
        else:
            values[path] = value.strip()
    return values, counters, sections
