"""What a device is, asked through any transport with one shell script, and understood on this host.

:func:`look` visits, :func:`parse` understands what was printed, :func:`disagreements` says where a
device is not what its profile says.  What a device does not tell is absent from its facts:

``serial``          what tells it from all others: the board's or phone's serial number; for a
                    machine without one its installation's machine-id, with the permanent address of
                    its first network interface where it has one
``serial_source``   where that is from: ``device-tree``, ``android``, or ``installation``: another
                    once the machine is set up anew
``machine``         as ``uname -m`` says
``system``          ``linux`` or ``android``
``kernel``          its release
``os_build``        the distribution's name and version, or Android's build fingerprint
``model``           the board's, phone's or machine's name
``soc``             the chip's name, as the device spells it
``cpu``             the processor's name, or its cores'
``cores``           number of cores that run
``clusters``        cores that are alike and share a clock: ``cores`` (numbers), ``mask`` (hex), and
                    where known ``part``, ``min_khz``, ``max_khz`` (what the hardware can)
``memory_bytes``    memory the system can use
``governor``        frequency governors in use, joined by commas, or ``unknown``
``power_source``    ``mains``, ``battery`` or ``unknown``
``thermal_zones``   ``type`` and ``path`` of each
``meters``          what tells power: ``kind``, ``name``, and where known ``path``, ``rails`` and
                    what its folder holds; see :func:`devices.facts.sensors.meters`
``clock_source``    the kernel's
``libc``            ``bionic`` for Android's
``virtualisation``  ``qemu-user``, ``qemu``, ``android-emulator`` or another hypervisor's name
``emulated``        true where another machine's instructions are known to be interpreted: its times
                    say nothing; absent otherwise, which proves nothing
"""

from __future__ import annotations

import secrets
from typing import Any

from devices.facts import cores, sensors
from devices.facts.comparison import disagreements
from devices.facts.dump import Dump, whole_number
from devices.facts.identity import identity
from devices.facts.script import SCRIPT
from devices.transport.base import Transport
from profiles.errors import ConnectionLost

__all__ = ["disagreements", "look", "parse"]

#: The script takes well under a second on a board; a phone under load may take several.
LOOK_DEADLINE_S = 60.0


def look(transport: Transport, deadline_s: float = LOOK_DEADLINE_S) -> dict[str, Any]:
    """Ask a device what it is.

    Args:
        transport: the connection to it.
        deadline_s: seconds in which it must have answered.

    Returns:
        Its facts; see the module's text.

    Raises:
        ConnectionLost: the answer is cut off, or the device has no shell.
        DeadlineExceeded: there is none in time.
    """
    nonce = secrets.token_hex(8)
    done = transport.run(["sh", "-c", SCRIPT, "sh", nonce], deadline_s=deadline_s)
    text = done.stdout.decode(errors="replace")
    if not Dump(text, nonce).complete:
        raise ConnectionLost(f"the device does not say what it is: {done.complaint()}")
    return parse(text, nonce)


def parse(text: str, nonce: str) -> dict[str, Any]:
    """Understand what the script printed; what is not understood is left out.

    Args:
        text: its output, whole or not, well-formed or not.
        nonce: the word it was told to begin section lines with.
    """
    dump = Dump(text, nonce)
    properties = dump.properties()
    clusters = cores.clusters(dump)
    uname = (dump.text("uname") or "").split()
    machine = uname[-1] if len(uname) == 3 else None
    facts = {
        **identity(dump),
        "machine": machine,
        "system": "android" if "ro.build.fingerprint" in properties else _lower(uname, 0),
        "kernel": uname[1] if len(uname) == 3 else None,
        "os_build": properties.get("ro.build.fingerprint") or _distribution(dump),
        "model": _model(dump),
        "soc": _soc(dump),
        "cpu": cores.describe(clusters) or _cpu(dump),
        "cores": len(cores.cores_online(dump)) or None,
        "clusters": clusters,
        "memory_bytes": _memory_bytes(dump),
        "governor": _governor(dump),
        "power_source": sensors.power_source(dump),
        "thermal_zones": sensors.thermal_zones(dump),
        "meters": sensors.meters(dump),
        "clock_source": dump.text(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        ),
        "libc": "bionic" if dump.lines("bionic") else None,
        "virtualisation": _virtualisation(dump, machine or ""),
        "emulated": _emulated(dump, machine or "") or None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _lower(words: list[str], index: int) -> str | None:
    return words[index].lower() if len(words) == 3 else None


def _distribution(dump: Dump) -> str | None:
    name = dump.pairs("/etc/os-release", "=").get("PRETTY_NAME", "").strip("\"'")
    return name or None


def _model(dump: Dump) -> str | None:
    return (
        dump.properties().get("ro.product.model")
        or dump.text("/proc/device-tree/model")
        or dump.text("/sys/class/dmi/id/product_name")
    )


def _soc(dump: Dump) -> str | None:
    """Android's own word, or the last and so least special ``VENDOR,CHIP`` of the device tree."""
    named = dump.properties().get("ro.soc.model")
    compatible = dump.lines("/proc/device-tree/compatible")
    if named or not compatible or compatible[-1] == "linux,dummy-virt":
        return named
    return compatible[-1].partition(",")[2] or None


def _cpu(dump: Dump) -> str | None:
    named = dump.pairs("/proc/cpuinfo", ":")
    return named.get("model name") or None


def _memory_bytes(dump: Dump) -> int | None:
    words = dump.pairs("/proc/meminfo", ":").get("MemTotal", "").split()
    total = whole_number(words[0]) if len(words) == 2 and words[1] == "kB" else None
    return total * 1024 if total and total > 0 else None


def _governor(dump: Dump) -> str:
    found = dump.each(r"/sys/devices/system/cpu/cpufreq/policy[0-9]+/scaling_governor")
    return ",".join(sorted({text for _, text in found})) or "unknown"


def _virtualisation(dump: Dump, machine: str) -> str | None:
    properties = dump.properties()
    if _under_qemu_user(dump, machine):
        return "qemu-user"
    if "1" in (properties.get("ro.kernel.qemu"), properties.get("ro.boot.qemu")):
        return "android-emulator"
    compatible = dump.lines("/proc/device-tree/compatible")
    if "linux,dummy-virt" in compatible or dump.text("/sys/class/dmi/id/sys_vendor") == "QEMU":
        return "qemu"
    if dump.text("/sys/hypervisor/type"):
        return dump.text("/sys/hypervisor/type")
    flags = dump.pairs("/proc/cpuinfo", ":").get("flags", "").split()
    return "hypervisor" if "hypervisor" in flags else None


def _emulated(dump: Dump, machine: str) -> bool:
    return (
        _under_qemu_user(dump, machine)
        or cores.is_software(dump)
        or "QEMU TCG" in (_cpu(dump) or "")
    )


def _under_qemu_user(dump: Dump, machine: str) -> bool:
    """Whether qemu runs the shell, or the kernel's processor is another than the shell's."""
    interpreter = (dump.text("interpreter") or "").rpartition("/")[2]
    if interpreter.startswith("qemu-"):
        return True
    described = dump.pairs("/proc/cpuinfo", ":")
    return machine.startswith(("aarch64", "arm")) and "vendor_id" in described
