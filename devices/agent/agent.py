"""Measure artifacts on this device with one runtime; one process is one run.

    python agent.pyz PLAN.json              measure, one JSON object a line on standard output
    python agent.pyz --probe [RUNTIME...]   say which runtimes work here

The native agent (``native/agent.c``) takes the same plans and says the same lines.

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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from devices.agent.engines import (
    ENGINES,
    RUNTIMES,
    Engine,
    Fallback,
    available_delegates,
    hint,
    prove,
    runtime_version,
)
from devices.agent.environment import environment

PLAN_FORMAT = 3
#: How long after its deadline an agent is ended that could not end itself, in s.
DEADLINE_GRACE_S = 5
#: Of inputs in memory, in bytes: a cache line.
ALIGNMENT = 64

Emit = Callable[[dict[str, Any]], None]


class MissingRuntime(Exception):
    """The plan's runtime cannot be used here."""


def measure(plan: dict[str, Any], emit: Emit) -> None:
    """Carry out one run of a plan, handing every event to ``emit`` as it happens."""
    _check(plan)
    if plan["core_mask"] is not None:
        _pin(plan["core_mask"])
    runtime = plan["runtime"]
    try:
        version = runtime_version(runtime)
    except Exception as error:
        raise MissingRuntime(f"{error}; {hint(runtime)}") from error
    emit(
        {"event": "hello", "agent": "python", "runtime": runtime, "version": version, "build": None}
    )
    emit({"event": "environment", "when": "before", **environment()})
    engines = {job["id"]: _load(plan, job, emit) for job in plan["jobs"]}
    _take_turns(engines, plan, emit)
    emit({"event": "environment", "when": "after", **environment()})
    emit({"event": "done"})


def _check(plan: dict[str, Any]) -> None:
    if plan["format"] != PLAN_FORMAT:
        raise ValueError(f"plan format {plan['format']}, this agent speaks {PLAN_FORMAT}")
    if plan["slice_iterations"] < 1:
        raise ValueError("a slice has at least one iteration")
    ids = [job["id"] for job in plan["jobs"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"two jobs share a name: {', '.join(ids)}")


def _pin(mask: str) -> None:
    """Run on these cores and no others; a mask the kernel grants in part only is refused."""
    bits = int(mask, 16)
    wanted = {core for core in range(bits.bit_length()) if bits >> core & 1}
    os.sched_setaffinity(0, wanted)
    if os.sched_getaffinity(0) != wanted:
        raise ValueError(f"core_mask {mask}: not all of its cores are there")


def _load(plan: dict[str, Any], job: dict[str, Any], emit: Emit) -> Engine:
    inputs = [_read_input(spec) for spec in job["inputs"]]
    start = time.perf_counter_ns()
    engine = ENGINES[plan["runtime"]](job["path"], plan["threads"], plan.get("delegate"))
    loaded = time.perf_counter_ns()
    engine.feed(inputs)
    engine.prepare()
    called = time.perf_counter_ns()
    engine.call()
    first = time.perf_counter_ns()
    delegates = _delegates(engine, plan, job)
    emit(
        {
            "event": "loaded",
            "job": job["id"],
            "load_ns": loaded - start,
            "first_ns": first - called,
            "delegates": delegates,
            "threads": engine.threads,
        }
    )
    return engine


def _delegates(engine: Engine, plan: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """What executes the model; refused, if it is not what was asked for and is expected."""
    found = engine.delegates()
    asked = [plan["delegate"]] if plan.get("delegate") else []
    for wanted in [*asked, *(job.get("expect") or ())]:
        if wanted not in found:
            raise Fallback(
                f"{job['id']}: {wanted} takes no part in it:"
                f" {plan['runtime']} executes it with {', '.join(found) or 'unknown'}"
            )
    return found


def _read_input(spec: dict[str, Any]) -> Any:
    import numpy

    raw = numpy.fromfile(spec["path"], dtype="uint8")
    # Aligned as the native agent's are: kernels read such inputs up to some percent faster.
    room = numpy.empty(raw.size + ALIGNMENT, dtype="uint8")
    start = -room.ctypes.data % ALIGNMENT
    aligned = room[start : start + raw.size]
    aligned[:] = raw
    return aligned.view(spec["dtype"]).reshape(spec["shape"])


def _take_turns(engines: dict[str, Engine], plan: dict[str, Any], emit: Emit) -> None:
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
            start_ns = time.monotonic_ns()
            taken = timed_slice(engines[job], size)
            emit({"event": "samples", "job": job, "ns": taken, "start_ns": start_ns, "khz": None})


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
    """For each runtime named: its version and delegates, or why it cannot be used.

    A name may bring the path of a C library (``NAME=PATH``), which is for the native agent.
    """
    runtimes: dict[str, dict[str, Any]] = {}
    for name in (argument.partition("=")[0] for argument in names):
        try:
            version = runtime_version(name)
            prove(name)
            runtimes[name] = {"version": version, "delegates": available_delegates(name)}
        except Exception as error:
            runtimes[name] = {"missing": _one_line(error), "hint": hint(name)}
    return {"event": "probe", "agent": "python", "runtimes": runtimes}


class EventWriter:
    """Keeps standard output for events alone: what a runtime prints goes to standard error."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._turn = threading.Lock()
        os.dup2(2, 1)

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event as one line, at once."""
        with self._turn:
            self._stream.write(json.dumps(event, separators=(",", ":")) + "\n")
            self._stream.flush()


def _end_by(deadline_s: int, emit: Emit) -> None:
    """Let this process end in ``deadline_s``, saying so, whatever it is doing then.

    A Python signal handler would wait for the runtime's call to return; a thread does not.  It
    sleeps until then.  Where even that cannot run, the kernel's alarm ends the process.
    """

    def end() -> None:
        emit({"event": "error", "kind": "deadline", "message": "the plan's deadline passed"})
        os._exit(1)

    timer = threading.Timer(deadline_s, end)
    timer.daemon = True
    timer.start()
    signal.alarm(deadline_s + DEADLINE_GRACE_S)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:2000]


def main(arguments: Sequence[str]) -> int:
    """Run as a program; the exit code is 0 only if the last line is ``done`` or ``probe``."""
    # A host that went away must not leave a measuring process behind on the device.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    emit = EventWriter()
    if arguments[0] == "--probe":
        emit(probe(arguments[1:] or RUNTIMES))
        return 0
    try:
        plan = json.loads(Path(arguments[0]).read_text())
        _end_by(plan["deadline_s"], emit)
        measure(plan, emit)
    except MissingRuntime as error:
        return _failed("runtime-missing", _one_line(error), emit)
    except Fallback as error:
        return _failed("fallback", _one_line(error), emit)
    except Exception as error:
        return _failed("failed", f"{type(error).__name__}: {_one_line(error)}", emit)
    return 0


def _failed(kind: str, message: str, emit: Emit) -> int:
    emit({"event": "error", "kind": kind, "message": message})
    return 1
