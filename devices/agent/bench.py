"""What every kind of trial works with.

Part of the program that runs on a board: standard library, Python 3.9.

Before a slice, the host was told of the last one and the clock of the core was read, which takes a
small model's code and data out of the caches.  So a slice of calls back to back begins with one
call that is not timed: it brings the caches back after talking.  It would be the slowest of each
slice, and the 99th percentile that of the bench.
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

#: Calls of a slice last at least that long, in ns, where a window of seconds is filled with them.
#: Chosen: a hundred slices a second show how heat and clocks go, and are told in little room.
LEAST_SLICE_NS = 10_000_000


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
        self.emit(warmup(job, warm_up(engine, count, duration_ns)))

    def warm_again(self, engine: Engine, pause_ns: int) -> list[int]:
        """Make calls after so long without any: caches have cooled, and clocks may have fallen.

        Returns:
            Their latencies in ns; of none where the plan warms up by nothing.
        """
        count = min(self.plan["warmup_iterations"], self.plan["settle_iterations"])
        duration_ns = min(self.plan["warmup_ns"], pause_ns)
        return warm_up(engine, count, duration_ns)

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
        return self._told(job, timed_slice(engine, size), start_ns)

    def slices(self, engine: Engine, least_ns: int = 0) -> Iterator[dict[str, Any]]:
        """Time the only job's calls, back to back; the event of each slice.

        Args:
            engine: of the job.
            least_ns: a new slice begins once the calls of the last one took so long.
        """
        sizes = self.sizes()
        for size in sizes:
            timed_slice(engine, 1)  # not counted: it brings the caches back after talking
            start_ns = time.monotonic_ns()
            taken = timed_slice(engine, size)
            spent_ns = sum(taken)
            while spent_ns < least_ns:
                more = timed_slice(engine, next(sizes, 0))
                if not more:
                    break
                spent_ns += sum(more)
                taken += more
            yield self._told(self.job["id"], taken, start_ns)

    def _told(self, job: str, taken: list[int], start_ns: int) -> dict[str, Any]:
        khz = self.clocks.khz()
        return {"event": "samples", "job": job, "ns": taken, "start_ns": start_ns, "khz": khz}


def warmup(job: str, taken: list[int]) -> dict[str, Any]:
    """The event that tells of calls that do not count."""
    return {"event": "warmup", "job": job, "ns": taken}
