"""Phones that are plugged in and stand in no inventory yet."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
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
    found: list[Found] = []
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
        taken = {each.entry["id"] for each in found if each.entry is not None}
        entry = {"id": _id(facts, one.serial, taken), "profile": profile, **address}
        found.append(Found(one.serial, one.state, facts.get("model", "unknown"), entry))
    return found


def fitting_profile(facts: Mapping[str, Any]) -> str:
    """The profile whose models a device is one of, else the generic one of its kind."""
    model = facts.get("model", "")
    for name in profile_names():
        if any(fnmatchcase(model, pattern) for pattern in load_profile(name).models):
            return name
    if facts.get("system") == "android":
        return "android"
    generic = f"linux-{facts.get('machine')}"
    return generic if generic in profile_names() else "linux-aarch64"


def _id(facts: Mapping[str, Any], address: str, taken: Set[str]) -> str:
    """An id made of the model's name and the end of the hardware's serial, and of a number where
    that is another's, as of a phone that is attached in two ways."""
    serial = str(facts.get("serial", address))
    words = f"{facts.get('model', 'phone')}-{serial[-4:]}".lower()
    name = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in words).split())
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)
