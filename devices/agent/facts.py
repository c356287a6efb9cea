"""What a board says of itself: what it is, and in which state.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What the device says of its own state; what it does not tell is left out."""
    clock = time.get_clock_info("perf_counter")
    return {
        "load_1min": os.getloadavg()[0],
        "frequencies_khz": _numbers(
            "/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq"
        ),
        "temperatures_mdegc": _numbers("/sys/class/thermal", "thermal_zone*/temp"),
        "clock": clock.implementation,
    }


def facts() -> dict[str, Any]:
    """What the device is: for the inventory, for conditions and for reports."""
    governors = _texts("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": ",".join(sorted(set(governors))) or "unknown",
        "power_source": _power_source(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _power_source() -> str:
    online = _numbers("/sys/class/power_supply", "*/online")
    types = _texts("/sys/class/power_supply", "*/type")
    if any(online):
        return "mains"
    return "battery" if "Battery" in types else "unknown"


def peak_bytes() -> int | None:
    """This process' high-water mark of memory, or ``None`` where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _texts(folder: str, pattern: str) -> list[str]:
    found = []
    for path in sorted(Path(folder).glob(pattern)):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found


def _numbers(folder: str, pattern: str) -> list[int]:
    return [int(text) for text in _texts(folder, pattern) if text.lstrip("-").isdigit()]
