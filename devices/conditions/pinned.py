"""What pinning changes on a device, and the way back."""

from __future__ import annotations

from devices.conditions.gates import Gates
from devices.conditions.journal import Change
from devices.conditions.linux import Policy
from devices.conditions.preflight import pinned_governor, pinned_khz, policies_of
from devices.conditions.readings import Readings
from profiles.records import Condition

# Bits for mains, USB and wireless. Source: AOSP, Settings.Global.STAY_ON_WHILE_PLUGGED_IN.
_STAY_ON = "7"

Changes = tuple[list[Change], list[Change]]


def changes(
    readings: Readings, system: str, gates: Gates, condition: Condition, tree: str = ""
) -> Changes:
    """What to set, and what to set to undo it, in this order.

    Args:
        readings: the device as it is, judged ready.
        system: ``linux`` or ``android``.
        gates: what the device's profile and the visit ask for.
        condition: which cores.
        tree: see :func:`devices.conditions.readings.read`.
    """
    if system == "android":
        return _phone(readings, gates)
    forward: list[Change] = []
    back: list[Change] = []
    for policy in policies_of(readings, condition):
        there, again = _clock(policy, gates, tree)
        forward += there
        back += again
    return forward, back


def _clock(policy: Policy, gates: Gates, tree: str) -> Changes:
    """The upper bound is lifted first: a lower bound above it would not be taken."""
    khz = pinned_khz(policy, gates)
    upper, lower = (f"{tree}{policy.path}/scaling_{end}_freq" for end in ("max", "min"))
    lift = Change("lift", upper, str(policy.highest_khz))

    def governor(name: str) -> Change:
        return Change("file", f"{tree}{policy.path}/scaling_governor", name)

    forward = [
        governor(pinned_governor(gates)),
        lift,
        Change("file", lower, str(khz)),
        Change("file", upper, str(khz)),
    ]
    back = [
        lift,
        Change("file", lower, str(policy.min_khz)),
        Change("cap", upper, str(policy.max_khz)),
        governor(policy.governor),
    ]
    return forward, back


def _phone(readings: Readings, gates: Gates) -> Changes:
    """Fixed performance mode cannot be asked for: a phone that nobody pinned has it off.

    *Source:* AOSP, ``PowerManagerShellCommand.java``: there is a command to set it and none to get
    it; it is off after a start and no user interface sets it.
    """
    forward = [Change("fixed", "", "true")]
    back = [Change("fixed", "", "false")]
    if gates.screen == "on":
        stay_on = readings.settings["stay_on_while_plugged_in"]
        forward.append(Change("setting", "stay_on_while_plugged_in", _STAY_ON))
        back.append(Change("setting", "stay_on_while_plugged_in", stay_on))
    if gates.screen is not None:
        forward.append(Change("screen", "", gates.screen))
        back.append(Change("screen", "", "on" if readings.screen_on else "off"))
    if gates.airplane is not None:
        forward.append(Change("airplane", "", "1" if gates.airplane else "0"))
        back.append(Change("airplane", "", "1" if readings.airplane else "0"))
    return forward, back
