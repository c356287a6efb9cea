"""In which state the device and this process are.

Part of the program that runs on a board: standard library, Python 3.9.  In a container, or under an
emulator, files are missing: what they would tell is left out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Any, Optional

_CORES = Path("/sys/devices/system/cpu")
_SELF = Path("/proc/self")
#: A mark of at most so many times what is resident was reset just now.  Chosen: the kernel counts
#: both in batches of pages, which differ by less.
FORGOTTEN = 1.05


def environment(when: str, child: int = 0) -> dict[str, Any]:
    """The event that says in which state the device is.

    Args:
        when: ``before`` the model is loaded, ``warm`` right before it is timed, ``after`` it.
        child: a process of this one that lives, whose work is counted with it; or 0.

    Returns:
        The times in ms are sums since the device, or this process, was started: what matters is the
        difference of two.  They are read first, so that the looking itself counts for neither side.
    """
    found: dict[str, Any] = {"event": "environment", "when": when, "at_ns": time.monotonic_ns()}
    found.update(_processor_ms(child))
    with contextlib.suppress(OSError):
        found["load_1min"] = os.getloadavg()[0]
    governors = sorted(set(_texts(_CORES, "cpu[0-9]*/cpufreq/scaling_governor")))
    return {
        **found,
        **({"governors": governors} if governors else {}),
        "frequencies_khz": _numbers(_CORES, "cpu[0-9]*/cpufreq/scaling_cur_freq"),
        "temperatures_mdegc": _numbers(Path("/sys/class/thermal"), "thermal_zone*/temp"),
        "clock": time.get_clock_info("perf_counter").implementation,
    }


def _processor_ms(child: int) -> dict[str, int]:
    """Time that all processors were busy, and that this process had and waited for, in ms.

    *Source*: ``proc_stat(5)`` (user, nice, system, idle, iowait, irq, softirq, steal; in ticks) and
    ``Documentation/scheduler/sched-stats.rst`` of the kernel (the second number, in ns).
    """
    found: dict[str, int] = {}
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found["own_ms"] = round(1000 * sum(each.ru_utime + each.ru_stime for each in own))
    found["own_ms"] += _used_ms(child)
    with contextlib.suppress(OSError, ValueError):
        line = Path("/proc/stat").read_text().partition("\n")[0]
        ticks = [int(word) for word in line.split()[1:9]]
        tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq, steal = ticks
        found["busy_ms"] = round(tick_ms * (user + nice + system + irq + softirq))
        found["stolen_ms"] = round(tick_ms * steal)
    waits = [text.split() for text in _texts(_SELF, "task/*/schedstat")]
    if waits:
        found["waited_ms"] = sum(int(wait[1]) for wait in waits) // 10**6
    return found


def _used_ms(child: int) -> int:
    """What a living child, with its own that have ended, has used; 0 once it has ended itself.

    *Source*: ``proc(5)``, ``/proc/PID/stat``: utime, stime, cutime and cstime, in ticks.
    """
    with contextlib.suppress(OSError, ValueError):
        words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return 1000 * sum(map(int, words[11:15])) // os.sysconf("SC_CLK_TCK")
    return 0


def forget_peak() -> None:
    """Let :func:`memory` tell the peak from now on, where the kernel can; see :func:`peak_bytes`.

    *Source*: ``Documentation/filesystems/proc.rst``: 5 resets the high-water mark to what is
    resident.
    """
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def memory() -> dict[str, int]:
    """What of this process is resident (``VmRSS``), at most was (``VmHWM``), is of files
    (``RssFile``), in bytes.

    Raises:
        OSError: if the system does not tell.
    """
    rows = (line.split() for line in (_SELF / "status").read_text().splitlines())
    sizes = {row[0]: int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}
    try:
        return {name: sizes[f"{name}:"] for name in ("VmRSS", "VmHWM", "RssFile")}
    except KeyError as error:
        raise OSError(f"this system does not tell {error} of a process' memory") from None


def peak_bytes(base: dict[str, int], after: dict[str, int]) -> Optional[int]:  # noqa: UP045
    """The most that was resident from one reading of :func:`memory` to a later one.

    Returns:
        ``None`` where the mark may be older, for it was not reset and has not grown: importing the
        runtime may have taken more than the model.
    """
    forgotten = base["VmHWM"] <= FORGOTTEN * base["VmRSS"]
    return after["VmHWM"] if forgotten or after["VmHWM"] > base["VmHWM"] else None


def _numbers(folder: Path, pattern: str) -> list[int]:
    found = []
    for text in _texts(folder, pattern):
        with contextlib.suppress(ValueError):
            found.append(int(text))
    return found


def _texts(folder: Path, pattern: str) -> list[str]:
    """What is in these files, without those that cannot be read."""
    found = []
    # By number: cpu2 before cpu10.
    for path in sorted(folder.glob(pattern), key=lambda path: (len(str(path)), path)):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found
