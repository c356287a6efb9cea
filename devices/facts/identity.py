"""What tells a device from all others: its hardware's serial, else its installation's."""

from __future__ import annotations

import re

from devices.facts.dump import Dump

_NET = "/sys/class/net"

#: What makers leave in where a serial number should be, in lower case without separators.
#: *Source*: public reports of Android's properties and device trees; a set that may grow.
_PLACEHOLDERS = {
    "unknown",
    "none",
    "default",
    "uninitialized",
    "tobefilledbyo.e.m.",
    "notspecified",
    "0123456789abcdef",
    "123456789",
    "03000200040005000006000700080009",
}
#: ``NET_ADDR_PERM``: the address is the hardware's.
#: *Source*: Linux, include/uapi/linux/netdevice.h and Documentation/ABI/testing/sysfs-class-net.
_PERMANENT = 0


def identity(dump: Dump) -> dict[str, str]:
    """``serial`` and ``serial_source``, or nothing where the device does not tell.

    Nothing that only root may read: a device is the same one whoever logs in.
    """
    properties = dump.properties()
    candidates = (
        ("device-tree", dump.text("/proc/device-tree/serial-number")),
        ("android", properties.get("ro.serialno")),
        ("android", properties.get("ro.boot.serialno")),
        ("installation", _installation(dump)),
    )
    for source, text in candidates:
        if text and _is_serial(text):
            return {"serial": text, "serial_source": source}
    return {}


def _installation(dump: Dump) -> str | None:
    """The machine-id, which machines set up from one image may share, and a network address, which
    they do not; a container has none."""
    machine_id = dump.text("/etc/machine-id")
    if machine_id is None or not _is_serial(machine_id):
        return None
    address = _network_address(dump)
    return f"{machine_id}-{address}" if address else machine_id


def _network_address(dump: Dump) -> str | None:
    """That of the first interface that is a device; on USB, which is easily moved, only if there
    is no other."""
    interfaces = [match[1] for match, _ in dump.each(rf"({_NET}/[^/]+)/device/uevent")]
    interfaces.sort(key=lambda folder: _on_usb(dump, folder))
    return next((found for each in interfaces if (found := _permanent(dump, each))), None)


def _on_usb(dump: Dump, interface: str) -> bool:
    return dump.pairs(f"{interface}/device/uevent", "=").get("DEVTYPE") == "usb_interface"


def _permanent(dump: Dump, interface: str) -> str | None:
    """The address that an interface was made with; a wireless one may use others meanwhile, and one
    of a bond has another's."""
    address = dump.text(f"{interface}/phy80211/macaddress") or dump.text(
        f"{interface}/bonding_slave/perm_hwaddr"
    )
    if address is None and dump.number(f"{interface}/addr_assign_type") == _PERMANENT:
        address = dump.text(f"{interface}/address")
    plain = (address or "").lower().replace(":", "")
    return plain if re.fullmatch("[0-9a-f]{12}", plain) and len(set(plain)) > 1 else None


def _is_serial(text: str) -> bool:
    plain = re.sub(r"[-_: ]", "", text).lower()
    only_one_digit = len(set(plain)) < 2
    return bool(re.fullmatch(r"[!-~]{4,128}", text)) and not (
        only_one_digit or plain in _PLACEHOLDERS
    )
