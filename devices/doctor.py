"""What a device lacks before it can measure, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devices.conditions.preflight import preflight
from devices.facts import disagreements
from devices.inventory import Device
from devices.session import Session
from devices.visit import visit
from profiles.errors import DeviceError, MeterError
from profiles.records import Condition


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        ok: whether a measurement can go on; ``None`` for what is good to know and no fault.
        detail: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""

    @property
    def verdict(self) -> str:
        """One word for tables."""
        return "note" if self.ok is None else "ok" if self.ok else "MISSING"


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one device."""

    device: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is missing."""
        return all(check.ok is not False for check in self.checks)


def examine(device: Device) -> Report:
    """Visit a device and look at everything a measurement needs; never raises for a device's
    faults, which are what it reports."""
    checks: list[Check] = []
    try:
        with visit(device, purpose="doctor") as session:
            for check in _look(session):
                checks.append(check)
    except DeviceError as error:
        checks.append(Check("visit" if checks else "connection", False, error.message, error.hint))
    return Report(device.id, tuple(checks))


def _look(session: Session) -> Iterator[Check]:
    device, facts = session.device, session.facts
    answer_ms = 1000 * session.transport.probe(deadline_s=10)
    yield Check("connection", True, f"{device.address}, answers in {answer_ms:.1f} ms")
    yield Check("identity", True, _describe(facts))
    yield from _profile(device, facts)
    yield from _store(session)
    yield from _runtimes(session)
    yield from _conditions(session)
    yield _meter(session)


def _describe(facts: Mapping[str, Any]) -> str:
    words = [facts.get(key) for key in ("model", "soc", "cpu", "machine", "os_build")]
    cores = f"{facts['cores']} cores" if "cores" in facts else None
    serial = f"serial {facts.get('serial', 'unknown')}"
    if facts.get("serial_source") == "installation":
        serial += " (its installation's: it tells none of its hardware)"
    return ", ".join(str(word) for word in [*words, cores, serial] if word)


def _profile(device: Device, facts: Mapping[str, Any]) -> Iterator[Check]:
    if device.is_scripted:
        return
    problems = disagreements(device.details(), facts)
    for problem in problems:
        yield Check("profile", None, problem, f"is {device.profile} its profile?")
    if not problems:
        yield Check("profile", True, device.profile)


def _store(session: Session) -> Iterator[Check]:
    damaged = session.store.verify()
    if damaged:
        names = ", ".join(name[:12] for name in damaged)
        detail = f"{len(damaged)} files had changed and were dropped: {names}"
        yield Check("files", None, detail, "its storage may be failing: look at its kernel log")
    else:
        yield Check("files", True, f"{session.device.folder} is writable, what it holds is whole")


def _runtimes(session: Session) -> Iterator[Check]:
    for name, found in session.probe(session.device.details().runtimes).items():
        agent = session.device.agent_for(name)
        if "missing" in found:
            yield Check(name, False, found["missing"], _remedy(session.device, found["hint"]))
        else:
            yield Check(name, True, f"{found['version']} ({agent} agent)")


def _remedy(device: Device, hint: str) -> str:
    """A hint that is an installation with pip, as the command to type here.

    A system's own Python may refuse to install anything: it is given a folder of its own.
    *Source*: PEP 668, which Debian follows since 12.
    """
    command, _, rest = hint.partition(",")
    python = device.interpreter
    if not command.startswith("pip install") or python is None:
        return hint
    run, then = f"{python} -m {command}", ""
    if "/" not in python or python.startswith("/usr/"):
        run = f"{python} -m venv ~/edge && ~/edge/bin/{command}"
        then = "; then set 'python: edge/bin/python' in its entry"
    typed = device.typed(run)
    return (f"{typed},{rest}" if rest else typed) + then


def _conditions(session: Session) -> Iterator[Check]:
    """Whether it would measure now; that it is warm or busy is no fault of the device."""
    device = session.device
    if device.is_scripted:
        return
    system = str(session.facts.get("system", "linux"))
    found = preflight(session.transport, system, device.all_gates(), Condition())
    for refusal in found.refusals:
        yield Check("condition", None, str(refusal), refusal.advice)
    if not found.refusals:
        yield Check("condition", True, "within its gates")


def _meter(session: Session) -> Check:
    """That a device cannot tell its energy is no fault of it: its latency can be measured."""
    try:
        meter = session.meter()
    except MeterError as error:
        return Check("energy", None, f"unknown: {error.message}", error.hint)
    about, window_s = meter.about, meter.sampling().window_ns / 1e9
    told = f"{about.title}: {about.covers}; stretches of at least {window_s:.1f} s"
    if about.kind == "power_supply" and session.facts.get("power_source") == "mains":
        remedy = "for energy, unplug it and reach it over the network"
        return Check("energy", None, f"{told}; refused while it is on its charger", remedy)
    return Check("energy", True, told)
