"""Clocks: how long calls take, and how fast the core ran meanwhile.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

from devices.agent.engines import Engine


def timed_slice(engine: Engine, count: int) -> list[int]:
    """The latencies in ns of ``count`` calls, with the garbage collector out of the way."""
    clock, prepare, call = time.perf_counter_ns, engine.prepare, engine.call
    taken = [0] * count
    gc.disable()
    for index in range(count):
        prepare()
        start = clock()
        call()
        taken[index] = clock() - start
    gc.enable()
    return taken


def warm_up(engine: Engine, count: int, duration_ns: int) -> list[int]:
    """The latencies of at least ``count`` calls, and of at least ``duration_ns`` of them."""
    taken: list[int] = []
    spent = 0
    while len(taken) < count or spent < duration_ns:
        part = timed_slice(engine, max(count, 1))
        spent += sum(part)
        taken += part
    return taken


class CoreClocks:
    """The present clocks of the cores; the files stay open, so that a look is one call.

    Args:
        cores: the folder in which the kernel has one for each.
    """

    def __init__(self, cores: Path = Path("/sys/devices/system/cpu")) -> None:
        self._files: dict[int, int] = {}
        for path in cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
            with contextlib.suppress(OSError):
                self._files[int(path.parts[-3][3:])] = os.open(path, os.O_RDONLY)
        self._core = _which_core() if self._files else None

    def khz(self) -> int | None:
        """Of the core that this thread is on; ``None`` where that is not told."""
        if self._core is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(os.pread(self._files[self._core()], 32, 0)) or None
        return None


def _which_core() -> Callable[[], int] | None:
    """The C library's function; Python has none of its own."""
    try:
        import ctypes

        found: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    except (ImportError, AttributeError, OSError):
        return None
    return found
