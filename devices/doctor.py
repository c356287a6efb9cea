"""What a device lacks before it can measure, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass

from devices.inventory import Device
from devices.session import visit
from profiles.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``remedy`` is empty where nothing is to be done."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one device."""

    device: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is missing."""
        return all(check.ok for check in self.checks)


def examine(device: Device) -> Report:
    """Connect, run the agent, probe the runtimes of the device's profile; never raises for a
    device's faults, which are what it reports."""
    checks: list[Check] = []
    try:
        with visit(device) as session:
            checks.append(Check("connection", True, device.address))
            found = session.probe(device.details().runtimes)
            facts = found.facts
            detail = f"{facts.get('cpu', 'unknown')}, {facts['cores']} cores, {facts['machine']}"
            checks.append(Check("agent", True, detail))
            for name, runtime in found.runtimes.items():
                if "missing" in runtime:
                    checks.append(
                        Check(name, False, runtime["missing"], f"there: {runtime['hint']}")
                    )
                else:
                    checks.append(Check(name, True, runtime["version"]))
    except DeviceError as error:
        name = "agent" if checks else "connection"
        checks.append(Check(name, False, error.message, error.hint))
    return Report(device.id, tuple(checks))
