"""What powers a device from outside, by the kernel's ``power_supply`` class.

*Source*: Linux, Documentation/ABI/testing/sysfs-class-power: ``scope`` is ``Device`` for what
powers one peripheral, a wireless mouse's battery among them; ``online`` is 0 for offline, 1 for
online with a fixed voltage, and 2 for online with a programmable one (USB PD PPS).
"""

from __future__ import annotations

from collections.abc import Mapping

FOLDER = "/sys/class/power_supply"


def supplies(files: Mapping[str, str]) -> dict[str, str]:
    """The folder of each supply of the device itself with its type; a type not told is empty.

    Args:
        files: paths of files below :data:`FOLDER` with their first lines; others are passed over.
    """
    folders = {path.rpartition("/")[0] for path in files if path.startswith(f"{FOLDER}/")}
    return {
        folder: files.get(f"{folder}/type", "")
        for folder in sorted(folders)
        if files.get(f"{folder}/scope") != "Device"
    }


def chargers(files: Mapping[str, str]) -> dict[str, str]:
    """The ``online`` files of all that may power the device from outside, with their texts.

    A battery is none, though some say whether they are there.
    """
    return {
        path: files[path]
        for folder, kind in supplies(files).items()
        if kind != "Battery" and (path := f"{folder}/online") in files
    }


def is_online(text: str) -> bool:
    """Whether the text of an ``online`` file says that something is plugged in; "" says nothing."""
    return text.strip() not in ("", "0")
