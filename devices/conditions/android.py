"""What Android's own commands print, understood; whatever is not understood is unknown."""

from __future__ import annotations

import re

from profiles.units import plausible_mdegc

# In volts, amperes, percent or any unit at all, whatever the value's name says.
# Source: android.hardware.thermal@2.0, TemperatureType: UNKNOWN -1, BCL_VOLTAGE 6, BCL_CURRENT 7,
# BCL_PERCENTAGE 8.
_NO_TEMPERATURES = {-1, 6, 7, 8}
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=([^,{}]+), mType=(-?\d{1,9}), mName=([^,{}]+), mStatus="
)


def thermal_status(dump: str) -> int | None:
    """The status of ``dumpsys thermalservice``: 0 for none to 6 for shutdown."""
    found = re.search(r"^\s*Thermal Status: ([0-6])\s*$", dump, re.MULTILINE)
    return int(found[1]) if found else None


def temperatures_mdegc(dump: str) -> dict[str, int]:
    """The temperatures of ``dumpsys thermalservice`` by sensor.

    The cached ones are as old as the last change of status; they count only where the hardware
    abstraction layer gives no others.
    """
    cached, _, current = dump.partition("Current temperatures from HAL:")
    return _listed(current) or _listed(cached)


def _listed(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for value, kind, name in _TEMPERATURE.findall(text):
        try:
            mdegc = plausible_mdegc(float(value) * 1000)
        except ValueError:
            continue
        if int(kind) not in _NO_TEMPERATURES and mdegc is not None:
            found[name] = mdegc
    return found


def battery_percent(dump: str) -> int | None:
    """The charge that ``dumpsys battery`` tells; unknown where a command has faked it."""
    level, scale = _number("level", dump), _number("scale", dump)
    if level is None or not scale or _faked(dump) or level > scale:
        return None
    return round(100 * level / scale)


def plugged(dump: str) -> bool | None:
    """Whether anything powers the phone from outside; unknown where a command has faked it."""
    powered = re.findall(r"^\s*\w+ powered: (true|false)\s*$", dump, re.MULTILINE)
    return "true" in powered if powered and not _faked(dump) else None


def battery_mdegc(dump: str) -> int | None:
    """The battery's temperature in ``dumpsys battery``, which is in tenths of a degree."""
    found = re.search(r"^\s*temperature: (-?\d{1,6})\s*$", dump, re.MULTILINE)
    return plausible_mdegc(int(found[1]) * 100) if found and not _faked(dump) else None


def screen_on(dump: str) -> bool | None:
    """Whether ``dumpsys power`` says that the screen is lit.

    The display's own state decides where it is told: a Galaxy dozes with its screen on and off.
    """
    state = re.search(r"^\s*Display Power: state=(ON|OFF)\s*$", dump, re.MULTILINE)
    if state:
        return state[1] == "ON"
    wakefulness = re.search(r"^\s*mWakefulness=(\w+)\s*$", dump, re.MULTILINE)
    states = {"Awake": True, "Dreaming": True, "Asleep": False, "Dozing": False}
    return states.get(wakefulness[1]) if wakefulness else None


def _number(name: str, dump: str) -> int | None:
    found = re.search(rf"^\s*{name}: (\d{{1,9}})\s*$", dump, re.MULTILINE)
    return int(found[1]) if found else None


def _faked(dump: str) -> bool:
    return "UPDATES STOPPED" in dump
