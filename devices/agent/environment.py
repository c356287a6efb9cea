"""In which state the device is: before and after a measurement.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What the device says of its own state; what it does not tell is left out."""
    clock = time.get_clock_info("perf_counter")
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        found["load_1min"] = os.getloadavg()[0]
    return {
        **found,
        "frequencies_khz": _numbers(
            "/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq"
        ),
        "temperatures_mdegc": _numbers("/sys/class/thermal", "thermal_zone*/temp"),
        "clock": clock.implementation,
    }


def peak_bytes() -> int | None:
    """This process' high-water mark of memory, or ``None`` where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _numbers(folder: str, pattern: str) -> list[int]:
    found = []
    # By number: cpu2 before cpu10.
    for path in sorted(Path(folder).glob(pattern), key=lambda path: (len(str(path)), path)):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return found
