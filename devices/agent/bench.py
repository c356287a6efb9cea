"""What every kind of trial works with.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

from devices.agent.engines import Engine
from devices.agent.loading import Emit
from devices.agent.sampler import Sampler
from devices.agent.timing import CoreClocks, timed_slice, warm_up


class Refused(Exception):
    """The plan asks for what cannot be done; the message says what and why."""


@dataclass(frozen=True)
class Bench:
    """A plan and what carries it out.

    Args:
        plan: what to do.
        emit: takes each event.
        clocks: of the cores.
        sampler: reads the power sensor, for energy.
    """

    plan: dict[str, Any]
    emit: Emit
    clocks: CoreClocks
    sampler: Optional[Sampler] = None  # noqa: UP045

    @property
    def job(self) -> dict[str, Any]:
        """The only one."""
        only: dict[str, Any]
        (only,) = self.plan["jobs"]
        return only

    def warm_up(self, job: str, engine: Engine, count: int, duration_ns: int) -> None:
        """Make calls that do not count, and tell of them."""
        self.emit({"event": "warmup", "job": job, "ns": warm_up(engine, count, duration_ns)})

    def sizes(self) -> Iterator[int]:
        """Of the slices to be timed: until the iterations are made and the window is over."""
        left, size = self.plan["iterations"], self.plan["slice_iterations"]
        over_ns = time.monotonic_ns() + self.plan["window_ns"]
        while left > 0:
            yield min(size, left)
            left -= size
        while time.monotonic_ns() < over_ns:
            yield size

    def timed_slice(self, job: str, engine: Engine, size: int) -> dict[str, Any]:
        """Time a slice; the event that tells of it."""
        start_ns = time.monotonic_ns()
        taken = timed_slice(engine, size)
        khz = self.clocks.khz()
        return {"event": "samples", "job": job, "ns": taken, "start_ns": start_ns, "khz": khz}
