"""Sign and scale of a battery's current, from what a load of our own does to it.

The device is left alone, kept busy on all its cores, and left alone again, and its sensor is read
all the while: an energy run by shell alone, so that a phone can be asked, too.  A load discharges
the battery more: the step tells the sign.  The scale is told by a bench meter, or by the battery's
own charge counter; where neither does, it stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from devices.meter.base import Meter
from devices.meter.battery import Battery
from devices.meter.busy import PAUSE_S, observed
from devices.meter.curve import number, pace_ns
from devices.meter.selection import to_calibrate
from devices.meter.sysfs import Channels
from devices.meter.understanding import seen, understood
from devices.session import Session
from profiles.energy import EnergyRun, energy_of_run
from profiles.errors import MeterError

#: A scale fits if what it makes of the current is right within this factor: µA and mA are 1000
#: apart, and a gauge or a bench meter is never wrong by so much.  Chosen.
_FITS_WITHIN = 2.0
_SCALES_UA = (1, 1000)
#: A charge counter has moved enough once it has changed so many times.
_LEAST_CHANGES = 5
#: A battery's charge in µAh is more than this, and in mAh less.  Chosen: from a watch to a car.
_LEAST_UAH = 100_000
_COUNTERS = ("charge_counter", "charge_now")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration found.

    Args:
        meter: name and kind of the sensor.
        covers: what its power is of.
        readings: how many were taken.
        seconds: length of each of the three stretches.
        idle_mw, loaded_mw: what the sensor said, calibrated as far as is known.
        noise_mw: what chance alone can move the step by.
        current_sign, current_ua: of a battery; ``None`` where it is not known.
        scale_from: what told the scale.
        off: relative deviation from the reference, or ``None`` without one.
        remarks: what to know about it, and what to do.
        entry: the line for the device's entry in the inventory; empty where nothing is to be said.
    """

    meter: str
    covers: str
    readings: int
    seconds: int
    idle_mw: float
    loaded_mw: float
    noise_mw: float
    current_sign: int | None
    current_ua: int | None
    scale_from: str
    off: float | None
    remarks: tuple[str, ...]
    entry: str


def calibrate(session: Session, *, seconds: int, reference_mw: float | None = None) -> Calibration:
    """Find out what a sensor's numbers stand for.

    Args:
        session: of the device, which is held meanwhile.
        seconds: length of each stretch: left alone, busy, left alone.
        reference_mw: what a bench meter shows while the device is busy, in mW.

    Raises:
        MeterError: it has no sensor, is charged, or a load does not show in what its sensor says.
    """
    meter = to_calibrate(session.device, session.facts)
    entries = session.facts.get("meters", ())
    counter = _counter(meter, entries)
    details = observed(
        session.transport,
        meter,
        seconds=seconds,
        cores=int(session.facts.get("cores", 1)),
        more=[counter] if counter else [],
    )
    session.lease.check()
    return judged(meter, details, seconds, reference_mw, bool(counter))


def _counter(meter: Meter, entries: Sequence[Mapping[str, Any]]) -> str | None:
    """The battery's charge counter, if it has one."""
    for entry in entries:
        if isinstance(meter, Battery) and meter.files[0].startswith(f"{entry.get('path')}/"):
            there = [name for name in _COUNTERS if name in entry["files"]]
            return f"{entry['path']}/{there[0]}" if there else None
    return None


def judged(
    meter: Meter,
    details: Mapping[str, Any],
    seconds: int,
    reference_mw: float | None,
    counted: bool,
) -> Calibration:
    """What the readings of a calibration tell.

    Args:
        meter: that was read; a battery's numbers taken as they are.
        details: of :func:`observed`.
        seconds: length of each stretch.
        reference_mw: of the bench meter, or ``None``.
        counted: whether the last file is the battery's charge counter.

    Raises:
        MeterError: as :func:`calibrate`.
    """
    run = energy_of_run(_without_counter(meter, details))
    step_uw, noise_uw = _step(run)
    if not isinstance(meter, Battery):
        return _checked(meter, run, details, seconds, reference_mw)
    sign = 1 if step_uw > 0 else -1
    scale_ua, scale_from, remarks = _scale(meter, run, details, reference_mw, counted)
    by = sign * (scale_ua or 1) / 1000
    idle_mw, loaded_mw = by * (run.idle_uw or 0.0), by * (run.active_uw or 0.0)
    if loaded_mw <= 0:
        raise MeterError(
            f"{run.meter} does not discharge under load, though it does not say that it is charged",
            "unplug it",
        )
    return Calibration(
        meter=run.meter,
        covers=run.covers,
        readings=len(details["power"]["at_ns"]),
        seconds=seconds,
        idle_mw=idle_mw,
        loaded_mw=loaded_mw,
        noise_mw=noise_uw * abs(by),
        current_sign=sign,
        current_ua=scale_ua,
        scale_from=scale_from,
        off=loaded_mw / reference_mw - 1 if reference_mw else None,
        remarks=tuple(remarks),
        entry=_entry(meter, details, sign, scale_ua),
    )


def _without_counter(meter: Meter, details: Mapping[str, Any]) -> dict[str, Any]:
    """Understood, as if only the meter's own files had been read."""
    power = details["power"]
    own = len(meter.sampling().files) or 1
    values = [texts[:own] for texts in power["values"]]
    return understood(_as_read(meter, power), {**details, "power": {**power, "values": values}})


def _as_read(meter: Meter, power: Mapping[str, Any]) -> Meter:
    """A sensor that is no quicker than it was read: some shells can only sleep whole seconds."""
    if len(power["at_ns"]) < 2 or not isinstance(meter, Battery | Channels):
        return meter
    update_ns = max(meter.about.update_ns, pace_ns(np.array(power["at_ns"], dtype=np.int64)))
    return replace(meter, about=replace(meter.about, update_ns=update_ns))


def _step(run: EnergyRun) -> tuple[float, float]:
    """What the load adds, and what chance alone could have.

    Raises:
        MeterError: if that is no less, or the device is charged.
    """
    if run.trouble:
        raise MeterError(run.trouble)
    if run.charging:
        raise MeterError(
            f"{run.meter} is charged: its current is not the device's",
            "unplug it, and reach the device over the network",
        )
    if run.net_uw is None or run.noise_uw is None:
        raise MeterError(
            f"{run.meter} told hardly anything new in this time", "give it more --seconds"
        )
    moved_uw = abs((run.idle_after_uw or 0.0) - (run.idle_before_uw or 0.0))
    noise_uw = max(run.noise_uw, moved_uw)
    if abs(run.net_uw) <= noise_uw:
        raise MeterError(
            f"all cores busy moved {run.meter} by {run.net_uw / 1000:.4g} of its mW, and idle alone"
            f" moves it by {noise_uw / 1000:.4g}",
            "stop what else runs on the device, and give it more --seconds",
        )
    return run.net_uw, noise_uw


def _checked(
    meter: Meter,
    run: EnergyRun,
    details: Mapping[str, Any],
    seconds: int,
    reference_mw: float | None,
) -> Calibration:
    """A sensor whose unit the kernel fixes: nothing to calibrate, but to compare."""
    loaded_mw = (run.active_uw or 0.0) / 1000
    told = "its unit is fixed by the kernel: there is nothing to calibrate"
    compare = "" if reference_mw else "; with --reference-mw it is compared with a bench meter"
    return Calibration(
        meter=run.meter,
        covers=run.covers,
        readings=len(details["power"]["at_ns"]),
        seconds=seconds,
        idle_mw=(run.idle_uw or 0.0) / 1000,
        loaded_mw=loaded_mw,
        noise_mw=(run.noise_uw or 0.0) / 1000,
        current_sign=None,
        current_ua=None,
        scale_from="",
        off=loaded_mw / reference_mw - 1 if reference_mw else None,
        remarks=(told + compare,),
        entry="",
    )


def _scale(
    meter: Battery,
    run: EnergyRun,
    details: Mapping[str, Any],
    reference_mw: float | None,
    counted: bool,
) -> tuple[int | None, str, list[str]]:
    """µA that a number stands for, what told that, and what to say about it."""
    if meter.readings == 1:
        return 1, "the kernel: it tells µW", []
    if reference_mw:
        measured_mw = abs(run.active_uw or 0.0) / 1000
        scale_ua = _fitting(measured_mw / reference_mw)
        if scale_ua is None:
            raise MeterError(
                f"neither as µA nor as mA does {run.meter} come near {reference_mw:g} mW:"
                f" these were {measured_mw:.4g} or {1000 * measured_mw:.4g} mW",
                "is that what the bench meter shows while all cores are busy, at the battery?",
            )
        return scale_ua, "a bench meter", []
    ratio, why = _by_charge(details) if counted else (None, "it has no charge counter")
    scale_ua = None if ratio is None else _fitting(ratio)
    if scale_ua is None:
        told = why or f"its charge counter fits neither µA nor mA (ratio {ratio:.3g})"
        remedy = "give --reference-mw, what a bench meter shows while all cores are busy"
        longer = ", or more --seconds" if counted else ""
        return None, "", [f"the scale stays unknown, for {told}: {remedy}{longer}"]
    return scale_ua, "its charge counter", []


def _fitting(ratio: float) -> int | None:
    """The scale by which a current taken for µA is right, given how much of the truth it is."""
    for scale_ua in _SCALES_UA:
        if 1 / _FITS_WITHIN < ratio * scale_ua < _FITS_WITHIN:
            return scale_ua
    return None


def _by_charge(details: Mapping[str, Any]) -> tuple[float | None, str]:
    """The current's integral over what the charge counter moved by; or why that is not known."""
    rows = [
        (at, number(texts[0]), number(texts[-1]))
        for at, texts in zip(details["power"]["at_ns"], details["power"]["values"], strict=True)
        if texts
    ]
    known = [(at, amps, charge) for at, amps, charge in rows if None not in (amps, charge)]
    if len(known) < 2:
        return None, "its charge counter cannot be read"
    at_ns, current, charge_uah = np.array(known, dtype=np.float64).T
    changes = np.flatnonzero(np.diff(charge_uah)) + 1
    if np.abs(charge_uah).min() < _LEAST_UAH:
        return None, "its charge counter does not count µAh"
    if len(changes) < _LEAST_CHANGES:
        return None, f"its charge counter moved only {len(changes)} times"
    # From one change to another: in between it has moved further than it says.
    first, last = int(changes[0]), int(changes[-1])
    span = slice(first, last + 1)
    hours = (at_ns[span] - at_ns[first]) / 3.6e12
    taken_uah = abs(float(np.trapezoid(current[span], hours)))
    return taken_uah / abs(float(charge_uah[last] - charge_uah[first])), ""


def _entry(meter: Battery, details: Mapping[str, Any], sign: int, scale_ua: int | None) -> str:
    """The line for the inventory; with how often the gauge is renewed, where that shows."""
    power = details["power"]
    words = [f"kind: power_supply, name: {meter.about.name}, current_sign: {sign}"]
    if scale_ua:
        words.append(f"current_ua: {scale_ua}")
    update_s = seen(meter, np.array(power["at_ns"], dtype=np.int64), power["values"]) / 1e9
    if update_s > max(4 * PAUSE_S, meter.about.update_ns / 1e9):
        words.append(f"update_ms: {100 * int(np.ceil(10 * update_s))}")
    return f"meter: {{{', '.join(words)}}}"
