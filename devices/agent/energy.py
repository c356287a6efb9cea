"""Calls and idleness around them, under the eyes of a power sensor.

Part of the program that runs on a board: standard library, Python 3.9.
"""

from __future__ import annotations

import time
from array import array
from typing import Any

from devices.agent.bench import LEAST_SLICE_NS, Bench, Refused, warmup
from devices.agent.engines import Engine
from devices.agent.environment import environment
from devices.agent.loading import load

#: How long power is given to fall once calls are over, in ns; where windows are shorter, so is
#: this.  Chosen: regulators settle in milliseconds, clocks and the kernel's own work in tenths of a
#: second.
SETTLE_NS = 1_000_000_000
#: Of how many calls of a run latencies are kept; of the plan's iterations always.  Chosen: 8 MB,
#: and more than any percentile needs.
KEPT_CALLS = 1_000_000


def energy(bench: Bench) -> None:
    """Idle, calls back to back, and idle again.

    Nothing is said meanwhile: a link takes power.  Idle clocks are low, so calls that are not
    counted come between the first idle stretch and the active one.  The mark of that one counts all
    of its calls: beside the samples, those that begin a slice untimed (see
    :mod:`devices.agent.bench`), and those beyond :data:`KEPT_CALLS`.
    """
    plan, job = bench.plan, bench.job
    if bench.sampler is None:
        raise Refused("no power sensor is read")
    engine = load(plan, job, bench.emit)
    bench.warm_up(job["id"], engine, plan["warmup_iterations"], plan["warmup_ns"])
    bench.emit(environment("warm", bench.sampler.pid))
    before = _idle(bench, "idle-before")
    again = bench.warm_again(engine, plan["window_ns"])
    slices, active = _active(bench, engine)
    after = _idle(bench, "idle-after")
    readings = bench.sampler.readings()
    if again:
        bench.emit(warmup(job["id"], again))
    for each in slices:
        bench.emit({**each, "ns": each["ns"].tolist()})
    for mark in (before, active, after):
        bench.emit(mark)
    bench.emit({"event": "power", **readings})


def _active(bench: Bench, engine: Engine) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The slices whose latencies are kept, and the mark of all."""
    most = max(KEPT_CALLS, bench.plan["iterations"])
    slices: list[dict[str, Any]] = []
    calls = kept = 0
    start_ns = time.monotonic_ns()
    for each in bench.slices(engine, LEAST_SLICE_NS):
        size = len(each["ns"])
        calls += 1 + size  # the one that is not timed takes power, too
        if kept < most:
            slices.append(_packed(each, most - kept))
            kept += len(slices[-1]["ns"])
    return slices, _mark("active", start_ns, calls)


def _packed(event: dict[str, Any], most: int) -> dict[str, Any]:
    """The event with at most so many latencies, in 8 bytes each."""
    return {**event, "ns": array("q", event["ns"][:most])}


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
