"""The public fake: a device whose answers are written down beforehand.

It keeps files in a folder and runs ordinary commands there for real, so that it passes the same
conformance suite as the other transports; only the programs it has a script for are played.
:func:`play_agent` is the script of an agent whose latencies are a fixed function of the artifact,
for tests and dry runs that must come out the same every time; :mod:`devices.transport.truth` says
which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devices.agent.engines import RUNTIMES
from devices.meter.replay import events
from devices.transport.base import Completed, LineSink, LineSplitter, quote
from devices.transport.local import LocalTransport
from devices.transport.truth import Truth, by_round

#: When a scripted device's timed part begins, by its clock.
_BEGIN_NS = 1_000_000_000
_LEAST_NS = 1_000_000_000
_RUNTIME_BYTES = 10_000_000

Event = dict[str, Any]
Script = Callable[[Path, Sequence[str]], bytes]


class ScriptedTransport(LocalTransport):
    """A local folder with scripted programs.

    Args:
        home: the folder that stands for the device's file system.
        scripts: from a program's name to what it writes to standard output, given
            the home folder and its arguments.
    """

    name = "scripted"

    def __init__(self, home: Path, scripts: Mapping[str, Script]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        super().__init__(home)
        self._scripts = scripts

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """Play the first program there is a script for; without one, run the command."""
        quote(argv)  # for the errors the contract promises
        played = [place for place, word in enumerate(argv) if word in self._scripts]
        if not played:
            return super().run(argv, deadline_s=deadline_s, on_line=on_line)
        # A program may come behind the shell that starts it.
        output = self._scripts[argv[played[0]]](self._home, argv[played[0] + 1 :])
        lines = LineSplitter(on_line)
        lines.feed(output)
        lines.finish()
        return Completed(output, b"", 0)


def play_agent(home: Path, arguments: Sequence[str]) -> bytes:
    """What the agent would print on a device whose latencies are known.

    See :class:`devices.transport.truth.Truth`; the same plan always has the same answer.
    """
    if arguments[1] == "--probe":
        names = [argument.partition("=")[0] for argument in arguments[2:]]
        found = {"version": "scripted", "delegates": ["scripted"]}
        runtimes = dict.fromkeys(names or RUNTIMES, found)
        return _lines([{"event": "probe", "agent": "python", "runtimes": runtimes}])
    plan = json.loads((home / arguments[1]).read_text())
    if plan["kind"] == "operators" and plan["runtime"] != "onnxruntime":
        message = f"{plan['runtime']} has no profile of operators"
        return _lines([_hello(plan), {"event": "error", "kind": "failed", "message": message}])
    return _lines([_hello(plan), *_measured(home, plan), {"event": "done"}])


def _hello(plan: Mapping[str, Any]) -> Event:
    return {
        "event": "hello",
        "agent": "python",
        "runtime": plan["runtime"],
        "version": "scripted",
        "build": None,
    }


def _measured(home: Path, plan: Mapping[str, Any]) -> Iterator[Event]:
    truth, kind = Truth.of(home), plan["kind"]
    sizes = {job["id"]: (home / job["path"]).stat().st_size for job in plan["jobs"]}
    latencies = {job["id"]: truth.latencies_ns(plan, job, sizes[job["id"]]) for job in plan["jobs"]}
    calls_ns = sum(sum(ns) for ns in latencies.values())
    # What the device counts in steps of 10 ms must show in runs that take less.
    timed_ns = max(calls_ns, plan["window_ns"], _LEAST_NS)
    clock = _Clock(truth, plan)
    yield clock.environment("before", 0)
    for job, ns in latencies.items():
        yield {
            "event": "loaded",
            "job": job,
            "load_ns": 10 * ns[0],
            "first_ns": 2 * ns[0],
            "delegates": ["scripted"],
            "threads": plan["threads"],
        }
    if kind != "memory":
        yield from ({"event": "warmup", "job": job, "ns": ns[:1]} for job, ns in latencies.items())
    yield clock.environment("warm", 0)
    for job, ns in latencies.items():
        yield from _slices(plan, job, ns, timed_ns, truth.clocks_khz(plan))
        yield from _extras(plan, job, ns, sizes[job])
    yield clock.environment("after", timed_ns)


def _slices(
    plan: Mapping[str, Any], job: str, ns: Sequence[int], timed_ns: int, clocks: Sequence[int]
) -> Iterator[Event]:
    """The timed calls, spread over the timed part."""
    for first in range(0, len(ns), plan["slice_iterations"]):
        late = 2 * first >= len(ns)
        yield {
            "event": "samples",
            "job": job,
            "ns": ns[first : first + plan["slice_iterations"]],
            "start_ns": _BEGIN_NS + timed_ns * first // len(ns),
            "khz": clocks[-1 if late else 0] if clocks else None,
        }


def _extras(plan: Mapping[str, Any], job: str, ns: Sequence[int], size: int) -> Iterator[Event]:
    """What only this kind of trial has."""
    if plan["kind"] == "memory":
        yield {
            "event": "memory",
            "job": job,
            "base_bytes": _RUNTIME_BYTES,
            "loaded_bytes": _RUNTIME_BYTES + 2 * size,
            "peak_bytes": _RUNTIME_BYTES + 3 * size,
            "file_bytes": size,
        }
    if plan["kind"] == "operators":
        call = {"cat": "Session", "name": "model_run", "ts": 0, "dur": ns[0] // 1000}
        node = {"cat": "Node", "name": "scripted_kernel_time", "ts": 0, "dur": ns[0] // 1000}
        node["args"] = {"op_name": "Scripted"}
        yield {"event": "operators", "job": job, "trace": [call, node]}
    if plan["kind"] == "energy":
        yield from events(Path(plan["meter"]["files"][0]))


class _Clock:
    """The device's clock and counters: one thread of ours works all the time, and others."""

    def __init__(self, truth: Truth, plan: Mapping[str, Any]) -> None:
        self._foreign_cores = by_round(truth.foreign_load_cores, plan) or 0.0
        self._clocks = truth.clocks_khz(plan)
        self._mdegc = by_round(truth.mdegc, plan)

    def environment(self, when: str, passed_ns: int) -> Event:
        """What the agent says of the device's state, so long after it was warm."""
        own_ms = passed_ns // 1_000_000
        return {
            "event": "environment",
            "when": when,
            "at_ns": _BEGIN_NS + passed_ns,
            "load_1min": 0.0,
            "clock": "scripted",
            "frequencies_khz": self._clocks[-1:],
            "temperatures_mdegc": [] if self._mdegc is None else [self._mdegc],
            "busy_ms": round(own_ms * (1 + self._foreign_cores)),
            "own_ms": own_ms,
            "stolen_ms": 0,
            "waited_ms": 0,
        }


def _lines(said: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in said)
