"""Measure artifacts on this device with one runtime; one process is one run.

    python agent.pyz PLAN.json              measure, one JSON object a line on standard output
    python agent.pyz --probe [RUNTIME...]   say which runtimes work here, and what this device is

This module and those it imports travel to the device as one archive (see ``program.py``): they need
Python 3.9, its standard library and the runtime named in the plan, nothing else of this project.
Lines are flushed as they are made, so a broken link loses only what was not yet produced.  Nothing
is written inside a timed slice.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from devices.agent import facts
from devices.agent.engines import ENGINES, RUNTIMES, Engine, hint, runtime_version

PLAN_FORMAT = 1


class MissingRuntime(Exception):
    """The plan's runtime cannot be used here."""


def measure(plan: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Carry out one run of a plan, handing every event to ``emit`` as it happens."""
    if plan["format"] != PLAN_FORMAT:
        raise ValueError(f"plan format {plan['format']}, this agent speaks {PLAN_FORMAT}")
    if plan["core_mask"] is not None:
        mask = int(plan["core_mask"], 16)
        os.sched_setaffinity(0, [core for core in range(mask.bit_length()) if mask >> core & 1])
    runtime = plan["runtime"]
    try:
        version = runtime_version(runtime)
    except Exception as error:
        raise MissingRuntime(f"{error}; {hint(runtime)}") from error
    emit({"event": "hello", "runtime": runtime, "version": version})
    emit({"event": "environment", "when": "before", **facts.environment()})
    engines = {job["id"]: _load(runtime, job, plan["threads"], emit) for job in plan["jobs"]}
    _take_turns(engines, plan, emit)
    emit({"event": "environment", "when": "after", **facts.environment()})
    peak_bytes = facts.peak_bytes() if len(engines) == 1 else None
    emit({"event": "done", "peak_bytes": peak_bytes})


def _load(
    runtime: str, job: dict[str, Any], threads: int, emit: Callable[[dict[str, Any]], None]
) -> Engine:
    inputs = [_read_input(spec) for spec in job["inputs"]]
    start = time.perf_counter_ns()
    engine = ENGINES[runtime](job["path"], threads)
    loaded = time.perf_counter_ns()
    engine.feed(inputs)
    engine.prepare()
    called = time.perf_counter_ns()
    engine.call()
    first = time.perf_counter_ns()
    emit(
        {
            "event": "loaded",
            "job": job["id"],
            "load_ns": loaded - start,
            "first_ns": first - called,
            "delegates": engine.delegates(),
        }
    )
    return engine


def _read_input(spec: dict[str, Any]) -> Any:
    import numpy

    raw = numpy.fromfile(spec["path"], dtype=spec["dtype"])
    return raw.reshape(spec["shape"])


def _take_turns(
    engines: dict[str, Engine], plan: dict[str, Any], emit: Callable[[dict[str, Any]], None]
) -> None:
    """Warm every engine up, then time them slice by slice, in a new random order each round."""
    for job, engine in engines.items():
        enough = plan["warmup_iterations"]
        warmup: list[int] = []
        spent = 0
        while len(warmup) < enough or spent < plan["warmup_ns"]:
            part = timed_slice(engine, max(enough, 1))
            spent += sum(part)
            warmup += part
        emit({"event": "warmup", "job": job, "ns": warmup})
    order = random.Random(plan["seed"])  # noqa: S311 - an order of turns, not a secret
    # Another model's turn has cooled the caches; a few calls bring them back, kept as warm-up.
    settle = plan["settle_iterations"] if len(engines) > 1 else 0
    for size in _slices(plan["iterations"], plan["slice_iterations"]):
        turns = list(engines)
        order.shuffle(turns)
        for job in turns:
            if settle:
                emit({"event": "warmup", "job": job, "ns": timed_slice(engines[job], settle)})
            emit({"event": "samples", "job": job, "ns": timed_slice(engines[job], size)})


def _slices(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


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


def probe(names: Sequence[str]) -> dict[str, Any]:
    """The device's facts and, for each runtime named, its version or why it cannot be used."""
    runtimes: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            runtimes[name] = {"version": runtime_version(name)}
        except Exception as error:
            runtimes[name] = {"missing": f"{error}", "hint": hint(name)}
    return {"event": "probe", "facts": facts.facts(), "runtimes": runtimes}


def _event_writer() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for events alone: what a runtime prints goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        stream.write(json.dumps(event, separators=(",", ":")) + "\n")
        stream.flush()

    return emit


def main(arguments: Sequence[str]) -> int:
    """Run as a program; the exit code is 0 only if the last line is ``done`` or ``probe``."""
    # A host that went away must not leave a measuring process behind on the device.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    emit = _event_writer()
    if arguments[0] == "--probe":
        emit(probe(arguments[1:] or RUNTIMES))
        return 0
    try:
        plan = json.loads(Path(arguments[0]).read_text())
        signal.alarm(plan["deadline_s"])
        measure(plan, emit)
    except MissingRuntime as error:
        emit({"event": "error", "kind": "runtime-missing", "message": str(error)})
        return 1
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        emit({"event": "error", "kind": "failed", "message": message[:2000]})
        return 1
    return 0
