"""What calls on a scripted device take: a truth that is known, and what real devices hide it with.

A file ``scripted.json`` in the device's folder says which.  Everything random in it is a hash of
the plan and the artifact's bytes, so that the same plan always has the same answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "scripted.json"
#: Seeds of one campaign's rounds follow each other; see :class:`pipeline.rounds.Rounds`.
_ROUNDS = 1000
_SPIKES = (3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is to be found out, and what stands in the way.

    What is given by run is a list over the rounds of a campaign, the last holding for all later
    ones.  Without any of it, runs vary by up to 5 % and calls within one by 2 %.

    Args:
        truth_ns: by the artifact's sha256 the latency that all runs together have in the middle;
            otherwise 20 µs and 1 ns a byte.
        between_runs: least and greatest standard deviation of the logarithm of a run's latency; an
            artifact's own lies between them.
        within: scale of the logarithm of a call's latency within its run.
        tail: degrees of freedom of Student's t, from which these come; the fewer the heavier.
        spikes: share of calls that take three to ten times as long.
        drift: share by which each run is slower than the one before.
        jump: share by which the second half of each run is slower.
        khz: the clock by run; a run with two has one in each half.  Calls take inversely as long.
        mdegc: the temperature after the timed part, by run.
        foreign_load_cores: what others use, by run.
    """

    truth_ns: Mapping[str, int] = field(default_factory=dict)
    between_runs: Sequence[float] | None = None
    within: float = 0.0
    tail: float = 5.0
    spikes: float = 0.0
    drift: float = 0.0
    jump: float = 0.0
    khz: Sequence[int | Sequence[int]] = ()
    mdegc: Sequence[int] = ()
    foreign_load_cores: Sequence[float] = ()

    @classmethod
    def of(cls, home: Path) -> Truth:
        """The truth of a device by its folder."""
        path = home / NAME
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def latencies_ns(self, plan: Mapping[str, Any], job: Mapping[str, Any], size: int) -> list[int]:
        """The timed calls of one run: ``plan["iterations"]`` of them."""
        base, count = 20_000 + size, plan["iterations"]
        if self.between_runs is None:
            run = 1 + 0.05 * fraction(plan["seed"], job["id"])
            noise = [1 + 0.02 * fraction(plan["seed"], job["id"], i) for i in range(8)]
            return [round(base * run * noise[i % 8]) for i in range(count)]
        name = _name(job)
        low, high = self.between_runs
        random = np.random.default_rng(_seed(plan["seed"], plan["kind"], name))
        spread = low + (high - low) * fraction(name)
        logs = spread * random.standard_normal() + self.drift * round_of(plan)
        calls = logs + self.within * random.standard_t(self.tail, count)
        spiked = random.random(count) < self.spikes
        times = np.where(spiked, random.uniform(*_SPIKES, count), 1.0) * self._slowed(plan, count)
        found = self.truth_ns.get(name, base) * np.exp(calls) * times
        return [int(ns) for ns in np.maximum(found.round(), 1)]

    def _slowed(self, plan: Mapping[str, Any], count: int) -> NDArray[np.float64]:
        """Of each call, how many times as long it takes by its clock and its place in the run."""
        half = np.arange(count) * 2 >= count
        clocks = self.clocks_khz(plan)
        slower = np.asarray(1 + self.jump * half, dtype=np.float64)
        if clocks:
            free = int(np.ravel(self.khz[0])[0])
            slower *= free / np.where(half, clocks[-1], clocks[0])
        return slower

    def clocks_khz(self, plan: Mapping[str, Any]) -> list[int]:
        """The clock in the first and in the second half of a run; none where it is not told."""
        clocks = by_round(self.khz, plan)
        return [] if clocks is None else [int(khz) for khz in np.ravel(clocks)]


def by_round(values: Sequence[Any], plan: Mapping[str, Any]) -> Any:
    """What is given by run, for a plan's; ``None`` where nothing is."""
    return values[min(round_of(plan), len(values) - 1)] if values else None


def round_of(plan: Mapping[str, Any]) -> int:
    """Which round of its campaign a plan is of, from 0."""
    return int(plan["seed"]) % _ROUNDS


def fraction(*parts: object) -> float:
    """A number from 0 to 1 that is a hash of these."""
    return (_seed(*parts) & 0xFFFFFFFF) / 2**32


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _name(job: Mapping[str, Any]) -> str:
    """The artifact's sha256: what a device's store calls it by."""
    return Path(job["path"]).stem
