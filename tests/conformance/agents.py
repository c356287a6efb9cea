"""The agents of this machine, each with a runtime and a model, for the suites of both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent.native import runtime_libraries
from devices.agent.tiny import tiny_model as tiny_bytes
from tests.builders import TinyModel, agent_plan

Events = list[dict[str, Any]]
EXECUTED_BY = {"onnxruntime": "CPUExecutionProvider", "litert": "XNNPACK"}
#: Every event's keys.
KEYS = {
    "hello": {"event", "agent", "runtime", "version", "build"},
    "loaded": {"event", "job", "load_ns", "first_ns", "delegates", "threads"},
    "warmup": {"event", "job", "ns"},
    "samples": {"event", "job", "ns", "start_ns", "khz"},
    "memory": {"event", "job", "base_bytes", "loaded_bytes", "peak_bytes", "file_bytes"},
    "mark": {"event", "what", "start_ns", "end_ns", "calls"},
    "power": {"event", "at_ns", "values"},
    "operators": {"event", "job", "trace"},
    "done": {"event"},
    "error": {"event", "kind", "message"},
}
#: The environment's, and those of them that not every device tells.
TOLD = {"event", "when", "at_ns", "frequencies_khz", "temperatures_mdegc", "clock"}
MAY_BE_TOLD = {"load_1min", "busy_ms", "stolen_ms", "own_ms", "waited_ms", "governors"}


@dataclass(frozen=True)
class Agent:
    """An agent on this machine, one runtime for it, and a model in that runtime's format."""

    kind: str
    command: tuple[str, ...]
    runtime: str
    library: str | None
    model: dict[str, Any]
    folder: Path

    def job(self, id_: str = "tiny", **changes: Any) -> dict[str, Any]:
        return {**self.model, "id": id_, **changes}

    def plan(self, jobs: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Path:
        given = {"runtime": self.runtime, "library": self.library, "delegate": None, **changes}
        plan = agent_plan([self.job()] if jobs is None else jobs, **given)
        return self.write(json.dumps(plan))

    def write(self, text: str | bytes) -> Path:
        path = self.folder / "plan.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        words = [*self.command, *map(str, arguments)]
        return subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, **options)

    def run(
        self, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.command, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **(env or {})},
            capture_output=True,
            timeout=60,
            check=False,
        )

    def measure(self, jobs: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Events:
        done = self.run(self.plan(jobs, **changes))
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return events_of(done)

    def refuse(self, plan: Path) -> Events:
        """The events of a plan that cannot be carried out: the last one says why."""
        done = self.run(plan)
        events = events_of(done)
        assert done.returncode == 1
        assert events[-1]["event"] == "error"
        assert set(events[-1]) == KEYS["error"]
        assert events[-1]["message"]
        assert "\n" not in events[-1]["message"]
        assert b"Traceback" not in done.stderr
        return events


def agent_for(kind: str, runtime: str, programs: Any, tiny: TinyModel, folder: Path) -> Agent:
    command = programs[kind]
    if isinstance(command, str):
        pytest.skip(command)
    library = runtime_libraries().get(runtime)
    if kind == "native" and library is None:
        pytest.skip(f"no C library of {runtime} among the packages here")
    model = tiny.plan_job() if runtime == "onnxruntime" else litert_job(folder)
    return Agent(kind, command, runtime, library and str(library), model, folder)


def litert_job(folder: Path) -> dict[str, Any]:
    (folder / "tiny.tflite").write_bytes(tiny_bytes("litert"))
    np.array([[-1, 0, 1, 2]], dtype=np.float32).tofile(folder / "x.bin")
    given = {"path": str(folder / "x.bin"), "shape": [1, 4], "dtype": "float32"}
    return {"path": str(folder / "tiny.tflite"), "inputs": [given]}


def events_of(done: subprocess.CompletedProcess[bytes]) -> Events:
    """Every line is one JSON object, or this raises."""
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def kinds(events: Events) -> list[str]:
    """Names of the events in order, repetitions folded."""
    return [kind for kind, _ in groupby(event["event"] for event in events)]


def of(events: Events, name: str) -> Events:
    """The events of this name, which have its keys."""
    found = [event for event in events if event["event"] == name]
    assert all(set(event) == KEYS[name] for event in found)
    return found


def environments(events: Events) -> Events:
    """What the device said of itself: before, warm and after."""
    return [event for event in events if event["event"] == "environment"]


def warmups(events: Events) -> Events:
    return [event for event in events if event["event"] == "warmup"]


def samples(events: Events, job: str = "tiny", kind: str = "samples") -> list[int]:
    mine = [event for event in events if event["event"] == kind and event["job"] == job]
    return [ns for event in mine for ns in event["ns"]]
