"""Calls and idleness around them, under the eyes of a power sensor.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import time
from array import array
from typing import Any

from devices.agent.bench import Bench, Refused
from devices.agent.environment import environment
from devices.agent.loading import load

#: How long power takes to fall once calls are over, in ns; where windows are shorter, so is this.
SETTLE_NS = 1_000_000_000


def energy(bench: Bench) -> None:
    """Idle, calls back to back, and idle again.

    Nothing is said meanwhile: a link takes power.
    """
    plan, job = bench.plan, bench.job
    if bench.sampler is None:
        raise Refused("no power sensor is read")
    engine = load(plan, job, bench.emit)
    bench.warm_up(job["id"], engine, plan["warmup_iterations"], plan["warmup_ns"])
    bench.emit(environment("warm"))
    before = _idle(bench, "idle-before")
    start_ns = time.monotonic_ns()
    slices = [_packed(bench.timed_slice(job["id"], engine, size)) for size in bench.sizes()]
    active = _mark("active", start_ns, sum(len(each["ns"]) for each in slices))
    after = _idle(bench, "idle-after")
    readings = bench.sampler.readings()
    for each in slices:
        bench.emit({**each, "ns": each["ns"].tolist()})
    for mark in (before, active, after):
        bench.emit(mark)
    bench.emit({"event": "power", **readings})


def _packed(event: dict[str, Any]) -> dict[str, Any]:
    """The event with its latencies in 8 bytes each: a window may have a million."""
    return {**event, "ns": array("q", event["ns"])}


def _idle(bench: Bench, what: str) -> dict[str, Any]:
    """Let power settle, then wait for a window; calls came before."""
    window_ns = bench.plan["window_ns"]
    time.sleep(min(SETTLE_NS, window_ns) / 1e9)
    start_ns = time.monotonic_ns()
    time.sleep(window_ns / 1e9)
    return _mark(what, start_ns, 0)


def _mark(what: str, start_ns: int, calls: int) -> dict[str, Any]:
    """The event of a stretch of time that ends now."""
    end_ns = time.monotonic_ns()
    return {"event": "mark", "what": what, "start_ns": start_ns, "end_ns": end_ns, "calls": calls}
