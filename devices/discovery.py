"""Phones that are plugged in and stand in no inventory yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from devices.facts import look
from devices.transport.adb import AdbTransport, discover
from profiles.catalog import load_profile, profile_names
from profiles.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Found:
    """An attached device: its entry for an inventory, or why it cannot be asked."""

    serial: str
    state: str
    model: str
    entry: Mapping[str, Any] | None
    remedy: str = ""


def attached(server: tuple[str, int] | None = None) -> list[Found]:
    """Every device an adb server knows.

    Args:
        server: host and port; ``None`` for the user's own.

    Raises:
        DeviceUnreachable: if the server does not answer.
    """
    found = []
    for one in discover(server):
        try:
            facts = look(AdbTransport(one.serial, server))
        except DeviceError as error:
            found.append(Found(one.serial, one.state, "unknown", None, str(error)))
            continue
        address = {"address": f"adb:{one.serial}"}
        if server is not None:
            address["adb_server"] = f"{server[0]}:{server[1]}"
        profile = fitting_profile(facts)
        entry = {"id": _word(facts, one.serial), "profile": profile, **address}
        found.append(Found(one.serial, one.state, facts.get("model", "unknown"), entry))
    return found


def fitting_profile(facts: Mapping[str, Any]) -> str:
    """The profile whose models a device is one of, else the generic one of its kind."""
    model = facts.get("model", "")
    for name in profile_names():
        if any(fnmatchcase(model, pattern) for pattern in load_profile(name).models):
            return name
    return "android" if facts.get("system") == "android" else f"linux-{facts.get('machine')}"


def _word(facts: Mapping[str, Any], serial: str) -> str:
    """An id made of the model's name and the end of the serial, which tells two alike apart."""
    words = f"{facts.get('model', 'phone')}-{serial[-4:]}".lower()
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in words).split())
