"""Thermal zones, places that tell power, and where the power is from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from devices.facts.dump import Dump
from devices.facts.supplies import FOLDER, chargers, is_online, supplies

_HWMON = "/sys/class/hwmon"
_IIO = "/sys/bus/iio/devices"
_POWERCAP = "/sys/class/powercap"
#: Files without which a folder tells no power: a voltage alone is none.
_TELLS_POWER = re.compile(r"curr|power|current|in_current|in_power|energy")
#: Files whose text does not change.
_CONSTANT = "[a-z_0-9-]+_(?:label|scale|offset)|type|max_energy_range_uj"


def thermal_zones(dump: Dump) -> list[dict[str, str]]:
    """The type and folder of each thermal zone."""
    zones = dump.each(r"(/sys/class/thermal/thermal_zone[0-9]+)/type")
    return [{"type": text, "path": match[1]} for match, text in zones]


def meters(dump: Dump) -> list[dict[str, Any]]:
    """What tells a current, a power or an energy: its kind, name, folder and rails.

    ``files`` are the readings in its folder, ``texts`` what stands in other files there and does
    not change, ``chargers`` the files that say whether a battery is charged from there, ``device``
    what it is called on its bus (``1-0040``), which stays while numbers in paths change at each
    boot, and ``unreadable`` is set where the login may not read all of it.
    """
    found = [
        *_named(dump, "hwmon", rf"({_HWMON}/hwmon[0-9]+)/name"),
        *_named(dump, "iio", rf"({_IIO}/iio:device[0-9]+)/name"),
        *_named(dump, "power_supply", rf"({FOLDER}/([^/]+))/type"),
        *_named(dump, "powercap", rf"({_POWERCAP}/[^/]+)/name"),
    ]
    channels = [line for line in dump.lines("vcgencmd") if re.search(r" current\([0-9]+\)=", line)]
    if channels:
        rails = [line.split()[0].removesuffix("_A") for line in channels]
        found.append({"kind": "pmic", "name": "vcgencmd", "rails": rails})
    return found


def _named(dump: Dump, kind: str, pattern: str) -> list[dict[str, Any]]:
    found = []
    for match, text in dump.each(pattern):
        folder = match[1]
        files = _in(folder, dump.lines("readings"))
        if not any(_TELLS_POWER.match(file) for file in files):
            continue
        meter: dict[str, Any] = {
            "kind": "odpm" if "energy_value" in files else kind,
            "name": match[2] if kind == "power_supply" else text,
            "path": folder,
            "files": files,
        }
        more = {
            "rails": _labels(dump, folder) + _odpm_rails(dump, folder),
            "texts": _texts(dump, folder),
            "chargers": _chargers(dump, folder) if kind == "power_supply" else [],
            "device": _device(dump, folder),
            "unreadable": bool(_in(folder, dump.lines("unreadable"))),
        }
        found.append(meter | {key: value for key, value in more.items() if value})
    return found


def _in(folder: str, paths: Iterable[str]) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")]


def _device(dump: Dump, folder: str) -> str:
    places = (line.partition(" ") for line in dump.lines("places"))
    return next((name for path, _, name in places if path == folder), "")


def _texts(dump: Dump, folder: str) -> dict[str, str]:
    constants = rf"{re.escape(folder)}/({_CONSTANT})"
    return {match[1]: text for match, text in dump.each(constants)}


def _chargers(dump: Dump, folder: str) -> list[str]:
    return [path for path in chargers(_supply_files(dump)) if path != f"{folder}/online"]


def _supply_files(dump: Dump) -> dict[str, str]:
    return {match[0]: text for match, text in dump.each(rf"{FOLDER}/[^/]+/(?:type|scope|online)")}


def _labels(dump: Dump, folder: str) -> list[str]:
    labels = dump.each(rf"{re.escape(folder)}/(?:in|curr|power)[0-9]+_label")
    return list(dict.fromkeys(text for _, text in labels))


def _odpm_rails(dump: Dump, folder: str) -> list[str]:
    """The rails of a Pixel's power monitor; a line is ``CH3(T=358356)[S2M_VDD_CPUCL2], 761330``."""
    lines = dump.lines(f"{folder}/energy_value")
    return [
        match[1] for line in lines if (match := re.match(r"CH[0-9]+\([^)]*\)\[([^]]+)\]", line))
    ]


def power_source(dump: Dump) -> str:
    """``mains``, ``battery`` or ``unknown``; a phone on a cable is on the mains.

    The kernel is asked first: what Android's own battery service says can be faked.
    """
    files = _supply_files(dump)
    if any(is_online(text) for text in chargers(files).values()):
        return "mains"
    service = dump.pairs("battery", ":")
    if any(value == "true" for key, value in service.items() if key.endswith(" powered")):
        return "mains"
    if "Battery" in supplies(files).values() or service.get("present") == "true":
        return "battery"
    return "unknown"
