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

import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from devices.agent.bench import Bench, Refused
from devices.agent.engines import (
    RUNTIMES,
    Fallback,
    available_delegates,
    hint,
    prove,
    runtime_build,
    runtime_version,
)
from devices.agent.environment import environment
from devices.agent.kinds import KINDS
from devices.agent.loading import Emit
from devices.agent.sampler import Sampler
from devices.agent.timing import CoreClocks

PLAN_FORMAT = 3
#: How long after its deadline an agent is ended that could not end itself, in s.
DEADLINE_GRACE_S = 5
#: A year; sums of such times do not overflow where numbers have 64 bits.
_LONGEST_NS = 31_536_000_000_000_000
_MANY = 10**9
#: What may be asked for: the least and the most, the same as of the native agent.
_RANGES = {
    "threads": (1, 1024),
    "deadline_s": (1, _MANY),
    "warmup_iterations": (0, _MANY),
    "warmup_ns": (0, _LONGEST_NS),
    "iterations": (1, _MANY),
    "slice_iterations": (1, _MANY),
    "settle_iterations": (0, _MANY),
    "window_ns": (0, _LONGEST_NS),
    "period_ns": (0, _LONGEST_NS),
    "seed": (-(2**63), 2**63 - 1),
}
_KEYS = {"format", "kind", "runtime", "core_mask", "meter", "jobs", *_RANGES}


class MissingRuntime(Exception):
    """The plan's runtime cannot be used here."""


def measure(plan: dict[str, Any], emit: Emit, sampler: Optional[Sampler] = None) -> None:  # noqa: UP045
    """Carry out one run of a plan, handing every event to ``emit`` as it happens.

    Args:
        plan: one that :func:`check` has passed.
        emit: takes the events.
        sampler: of the power sensor that the plan names, for energy.
    """
    if plan["core_mask"] is not None:
        _pin(plan["core_mask"])
    runtime = plan["runtime"]
    try:
        version = runtime_version(runtime)
    except Exception as error:
        raise MissingRuntime(f"{error}; {hint(runtime)}") from error
    hello = {"event": "hello", "agent": "python", "runtime": runtime, "version": version}
    emit({**hello, "build": runtime_build(runtime)})
    emit(environment("before", sampler.pid if sampler else 0))
    KINDS[plan["kind"]](Bench(plan, emit, CoreClocks(), sampler))
    emit(environment("after"))
    emit({"event": "done"})


def check(plan: dict[str, Any]) -> None:
    """Refuse what contradicts itself before anything is done about it."""
    if plan["format"] != PLAN_FORMAT:
        raise Refused(f"plan format {plan['format']}, this agent speaks {PLAN_FORMAT}")
    missing = sorted(_KEYS - plan.keys())
    if missing:
        raise Refused(f"the plan has no {', '.join(missing)}")
    kind, ids = plan["kind"], [job["id"] for job in plan["jobs"]]
    if kind not in KINDS:
        raise Refused(f"kind {kind}: this agent knows {', '.join(KINDS)}")
    for name, (least, most) in _RANGES.items():
        _check_range(name, plan[name], least, most)
    if not ids:
        raise Refused("the plan has no jobs")
    if len(set(ids)) < len(ids):
        raise Refused(f"two jobs share a name: {', '.join(ids)}")
    if kind != "latency" and len(ids) != 1:
        raise Refused(f"kind {kind} takes one job and was given {len(ids)}")
    if kind == "energy":
        _check_meter(plan["meter"])


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise Refused(f"{name} is a whole number from {least} to {most}, not {value!r}")


def _check_meter(meter: Optional[dict[str, Any]]) -> None:  # noqa: UP045
    if meter is None or not (meter["files"] or meter["command"]):
        raise Refused("the plan names nothing to read energy from")
    _check_range("the meter's period_ns", meter["period_ns"], 1, _LONGEST_NS)


def _pin(mask: str) -> None:
    """Run on these cores and no others; a mask the kernel grants in part only is refused."""
    bits = int(mask, 16)
    wanted = {core for core in range(bits.bit_length()) if bits >> core & 1}
    os.sched_setaffinity(0, wanted)
    if os.sched_getaffinity(0) != wanted:
        raise Refused(f"core_mask {mask}: not all of its cores are there")


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
        check(plan)
        # Before there is any other thread: see there.
        sampler = Sampler(plan["meter"]) if plan["kind"] == "energy" else None
        _end_by(plan["deadline_s"], emit)
        measure(plan, emit, sampler)
    except MissingRuntime as error:
        return _failed("runtime-missing", _one_line(error), emit)
    except Fallback as error:
        return _failed("fallback", _one_line(error), emit)
    except Refused as error:
        return _failed("failed", _one_line(error), emit)
    except Exception as error:
        return _failed("failed", f"{type(error).__name__}: {_one_line(error)}", emit)
    return 0


def _failed(kind: str, message: str, emit: Emit) -> int:
    emit({"event": "error", "kind": kind, "message": message})
    return 1
