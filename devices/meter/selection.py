"""Which of a device's power sensors is used.

The one the inventory names; else the first of its profile's that the device shows, and that can be
read and is calibrated; else one whose unit the kernel's ABI fixes.  Where several fit alike, none
is taken: their order changes from boot to boot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from devices.inventory import Device, OwnMeter
from devices.meter.base import Meter
from devices.meter.kinds import Entry, build
from devices.meter.replay import replay
from devices.meter.wanted import Wanted
from profiles import catalog
from profiles.errors import MeterError

#: Sensors that a board's maker solders in to measure its power, in the order of preference, and
#: what they see; all else (a graphics card, a charger) is used only where somebody says so.
_FIXED_BY_ABI = (
    ("hwmon", "ina*", ""),
    ("iio", "ina*", ""),
    ("powercap", "package-*", "the processor packages, without their memory"),
)

Candidate = tuple[Sequence[Entry], Wanted]


def find_meter(device: Device, facts: Mapping[str, Any]) -> Meter:
    """The power sensor of a device.

    Args:
        device: of the inventory.
        facts: what it says of itself.

    Raises:
        MeterError: it has none, or none that can be read and is calibrated.
    """
    if device.meter.replay:
        return replay(device.meter.replay)
    entries = _once(facts.get("meters", ()))
    problems: list[MeterError] = []
    for some, wanted in candidates(device, entries):
        _check_single(device, some)
        try:
            return build(some, wanted)
        except MeterError as error:
            problems.append(error)
    raise _nothing(device, entries, problems)


def to_calibrate(device: Device, facts: Mapping[str, Any]) -> Meter:
    """The sensor that a calibration is of: the one that is named, else a battery, else any.

    A battery's numbers are taken as they are: positive while it discharges, and in µA.

    Raises:
        MeterError: there is none, or none that can be read.
    """
    if device.meter.replay:
        raise MeterError("a replay needs no calibration", device=device.id)
    entries = _once(facts.get("meters", ()))
    found = list(candidates(device, entries))
    if not _named(device.meter):
        batteries = [entry for entry in entries if entry["kind"] == "power_supply"]
        found += [([entry], _wanted(device.meter, None)) for entry in batteries]
        found.sort(key=lambda each: each[0][0]["kind"] != "power_supply")
    problems: list[MeterError] = []
    for some, wanted in found:
        try:
            _check_single(device, some)
            return build(some, replace(wanted, current_sign=1, current_ua=1))
        except MeterError as error:
            problems.append(error)
    raise _nothing(device, entries, problems)


def candidates(device: Device, entries: Sequence[Entry]) -> Iterator[Candidate]:
    """Sensors that may be used, the best first, with what is known of each; several where nothing
    tells which of them is meant."""
    own = device.meter
    known = device.details().meters
    if _named(own):
        meant = [entry for entry in entries if _is_meant(own, entry)]
        for alike in _by_kind_and_name(meant):
            told = next((m for m in known if m.fits(alike[0]["kind"], alike[0]["name"])), None)
            zone = alike[0]["name"] if alike[0]["kind"] == "powercap" else None
            wanted = _wanted(own, told, zone=zone)
            yield _narrowed(alike, wanted.rails, entries), wanted
        return
    for told in known:
        if found := [entry for entry in entries if told.fits(entry["kind"], entry["name"])]:
            wanted = _wanted(own, told)
            yield _narrowed(found, wanted.rails, entries), wanted
    for kind, pattern, covers in _FIXED_BY_ABI:
        if found := [e for e in entries if e["kind"] == kind and fnmatchcase(e["name"], pattern)]:
            yield _narrowed(found, own.rails, entries), _wanted(own, None, covers)


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Without batteries in hwmon's clothes, which do not say there whether they are charged.

    *Source*: Linux, drivers/power/supply/power_supply_hwmon.c: each is registered there, too, its
    name's dashes as underscores.
    """
    batteries = {
        entry["name"].replace("-", "_") for entry in entries if entry["kind"] == "power_supply"
    }
    return [e for e in entries if not (e["kind"] == "hwmon" and e["name"] in batteries)]


def _named(own: OwnMeter) -> str:
    """How the inventory says which sensor is meant; empty where it does not."""
    return own.name or own.device or own.kind or ""


def _is_meant(own: OwnMeter, entry: Entry) -> bool:
    return (
        own.name in (None, entry["name"])
        and own.kind in (None, entry["kind"])
        and own.device in (None, entry.get("device"))
    )


def _by_kind_and_name(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """In an order that stays; the zones of powercap have one of their own."""
    found = dict.fromkeys((entry["kind"], entry["name"]) for entry in entries)
    for kind, name in sorted(found, key=lambda one: "" if one[0] == "powercap" else one[1]):
        yield [entry for entry in entries if (entry["kind"], entry["name"]) == (kind, name)]


def _narrowed(
    alike: Sequence[Entry], rails: Sequence[str], entries: Sequence[Entry]
) -> Sequence[Entry]:
    """Those that have all labels asked for, where any has; all zones of powercap: packages are
    summed up."""
    if alike[0]["kind"] == "powercap":
        return [each for each in entries if each["kind"] == "powercap"]
    return [entry for entry in alike if set(rails) <= set(_labels(entry))] or alike


def _labels(entry: Entry) -> list[str]:
    texts = entry.get("texts", {})
    told = [text for file, text in texts.items() if file.endswith("_label")]
    return list(dict.fromkeys([*entry.get("rails", ()), *told]))


def _check_single(device: Device, some: Sequence[Entry]) -> None:
    """Nobody can tell several of a kind apart by the order they are listed in.

    Raises:
        MeterError: if it would have to be told so.
    """
    if len(some) < 2 or some[0]["kind"] == "powercap":
        return
    shown = ", ".join(
        f"{entry['name']} ({entry['kind']}, {entry.get('device') or 'no device told'}:"
        f" {', '.join(_labels(entry)) or 'no labels'})"
        for entry in some
    )
    raise MeterError(
        f"{len(some)} of its power sensors fit alike, and their order changes from boot to boot:"
        f" {shown}",
        "say which under 'meter:' in its entry: by 'device:', by 'rails:' that only one has,"
        " or by 'name:' where their names differ",
        device.id,
    )


def _wanted(
    own: OwnMeter, told: catalog.Meter | None, covers: str = "", zone: str | None = None
) -> Wanted:
    """What the inventory says, and where it says nothing the profile; of powercap it is a zone
    that is named."""

    def of(key: str) -> Any:
        mine = getattr(own, key)
        return mine if mine or told is None else getattr(told, key)

    return Wanted(
        rails=of("rails") or ((zone,) if zone and own.name else ()),
        covers=of("covers") or covers,
        current_sign=of("current_sign"),
        current_ua=of("current_ua"),
        update_ms=of("update_ms"),
    )


def _nothing(
    device: Device, entries: Sequence[Entry], problems: Sequence[MeterError]
) -> MeterError:
    shown = ", ".join(f"{entry['name']} ({entry['kind']})" for entry in entries)
    if problems:
        hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        said = "; ".join(dict.fromkeys(problem.message for problem in problems))
        return MeterError(said, "; ".join(hints).replace("DEVICE", device.id), device.id)
    if named := _named(device.meter):
        hint = f"it shows {shown or 'none'}: correct 'meter:' in its entry"
        return MeterError(f"it shows no power sensor {named}", hint, device.id)
    if shown:
        hint = f"if one of {shown} does, name it under 'meter:' in its entry"
        return MeterError("no sensor is known to tell its power", hint, device.id)
    return MeterError("it shows no power sensor", "energy stays unknown", device.id)
