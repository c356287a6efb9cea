"""One visit to a device, from lease to raw samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from devices.agent.agent import PLAN_FORMAT
from devices.agent.program import build
from devices.inventory import Device
from devices.lease import lease
from devices.push import RemoteStore
from devices.transport.base import Transport
from profiles.errors import AgentError, ConnectionLost, DeviceError, EdgeError
from profiles.records import Condition, Io, Plan, Samples

PROBE_DEADLINE_S = 120.0
#: Longest time one run of the agent may take before it, and then we, give up.
RUN_DEADLINE_S = 900
SLICE_ITERATIONS = 50
BLOCK_SLICE_ITERATIONS = 20
SETTLE_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class Job:
    """One artifact to be measured: its file, its inputs and files with one value for each."""

    id: str
    path: Path
    io: Io
    input_files: tuple[Path, ...]


@dataclass(slots=True)
class Recording:
    """What one job's part of an agent process has delivered so far."""

    load_ns: int | None = None
    first_ns: int | None = None
    delegates: tuple[str, ...] = ()
    warmup: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def warmup_ns(self) -> Samples:
        """Warm-up calls in ns."""
        return np.array(self.warmup, dtype=np.int64)

    def samples_ns(self) -> Samples:
        """Timed calls in ns."""
        return np.array(self.samples, dtype=np.int64)


class RunRecorder:
    """Collects the agent's events; what it holds is valid at any moment, broken link or not.

    Args:
        jobs: ids of the jobs in the plan.
    """

    def __init__(self, jobs: Sequence[str]) -> None:
        self.recordings = {job: Recording() for job in jobs}
        self.environment: dict[str, Any] = {}
        self.version = "unknown"
        self.peak_bytes: int | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    def line(self, text: str) -> None:
        """Take one line of the agent's output.

        Raises:
            AgentError: if it is not one of the agent's events.
        """
        try:
            event = json.loads(text)
            getattr(self, f"_on_{event['event']}")(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AgentError(f"the agent said something unexpected: {text[:120]!r}") from error

    def _on_hello(self, event: Mapping[str, Any]) -> None:
        self.version = event["version"]

    def _on_environment(self, event: Mapping[str, Any]) -> None:
        self.environment[event["when"]] = {
            key: value for key, value in event.items() if key not in ("event", "when")
        }

    def _on_loaded(self, event: Mapping[str, Any]) -> None:
        recording = self.recordings[event["job"]]
        delegates = tuple(str(name) for name in event["delegates"])
        recording.load_ns, recording.first_ns = _latencies([event["load_ns"], event["first_ns"]])
        recording.delegates = delegates

    def _on_warmup(self, event: Mapping[str, Any]) -> None:
        self.recordings[event["job"]].warmup += _latencies(event["ns"])

    def _on_samples(self, event: Mapping[str, Any]) -> None:
        self.recordings[event["job"]].samples += _latencies(event["ns"])

    def _on_done(self, event: Mapping[str, Any]) -> None:
        self.peak_bytes = event["peak_bytes"]
        self.done = True

    def _on_error(self, event: Mapping[str, Any]) -> None:
        self.error = {"kind": event["kind"], "message": event["message"]}


def _latencies(values: Any) -> list[int]:
    """Latencies as a clock gives them: a time of 0 was never measured."""
    if not isinstance(values, list) or not all(
        type(ns) is int and 0 < ns < 1 << 63 for ns in values
    ):
        raise ValueError("latencies are positive integers")
    return values


@dataclass(frozen=True, slots=True)
class Probe:
    """What a device said of itself: facts, and per runtime a version or what is missing."""

    facts: Mapping[str, Any]
    runtimes: Mapping[str, Mapping[str, str]]

    def condition(self, threads: int, core_mask: str | None = None) -> Condition:
        """The condition of a measurement on this device as it is now."""
        return Condition(
            threads=threads,
            core_mask=core_mask,
            governor=self.facts.get("governor", "unknown"),
            power_source=self.facts.get("power_source", "unknown"),
        )


class Session:
    """A connected device with the agent in place; made by :func:`visit`."""

    transport: Transport
    _store: RemoteStore
    _agent: str

    def __init__(self, device: Device) -> None:
        profile = device.details()
        self.device = device
        self._python = device.python or profile.python
        self._root = device.root or profile.root
        self._connect()

    def _connect(self) -> None:
        self.transport = _connecting().__call__(self.device.connect)
        self._store = RemoteStore(self.transport, self._root)

    def install(self) -> None:
        """Put the agent there."""
        with TemporaryDirectory() as folder:
            agent = build(Path(folder) / "agent.pyz")
            self._agent = self._ensure([agent])[agent]

    def probe(self, runtimes: Sequence[str] = ()) -> Probe:
        """Ask for the device's facts and for these runtimes (all, if none is named).

        Raises:
            AgentError: if the device has no usable Python.
        """
        done = self.transport.run(
            [self._python, self._agent, "--probe", *runtimes], deadline_s=PROBE_DEADLINE_S
        )
        if done.exit_code != 0:
            raise AgentError(
                f"{self._python} cannot run the agent: {done.complaint()}",
                "set 'python' of this device to a Python 3.9 or newer that has the runtimes",
            )
        try:
            event = json.loads(done.stdout)
            return Probe(event["facts"], event["runtimes"])
        except (ValueError, KeyError, TypeError) as error:
            said = done.stdout[:120].decode(errors="replace")
            raise AgentError(
                f"{self._python} does not answer as the agent does: {said!r}",
                "is 'python' of this device a Python, and do its logins print nothing?",
            ) from error

    def run(
        self,
        runtime: str,
        jobs: Sequence[Job],
        *,
        condition: Condition,
        plan: Plan,
        seed: int,
        recorder: RunRecorder,
        on_event: Callable[[], None] = lambda: None,
    ) -> None:
        """One run: a fresh agent process that measures all of ``jobs`` in turns.

        Args:
            runtime: which runtime executes them.
            jobs: one for a whole model; several share the process and take turns.
            condition: threads and core mask.
            plan: iterations and warm-up.
            seed: of the order of turns.
            recorder: takes what the device delivers, as it comes.
            on_event: called after each line, for progress.

        Raises:
            AgentError: the agent failed, or died without a word.
            ConnectionLost, DeadlineExceeded: as the transport says.
        """
        program = self._plan(runtime, jobs, condition, plan, seed)

        def on_line(text: str) -> None:
            recorder.line(text)
            on_event()

        done = self.transport.run(
            [self._python, self._agent, program],
            deadline_s=RUN_DEADLINE_S + 30,
            on_line=on_line,
        )
        if recorder.error:
            raise AgentError(f"{runtime}: {recorder.error['message']}")
        if not recorder.done:
            raise AgentError(f"the agent ended without a result: {done.complaint()}")

    def _plan(
        self, runtime: str, jobs: Sequence[Job], condition: Condition, plan: Plan, seed: int
    ) -> str:
        files = [job.path for job in jobs] + [file for job in jobs for file in job.input_files]
        remote = self._ensure(files)
        content = {
            "format": PLAN_FORMAT,
            "runtime": runtime,
            "threads": condition.threads,
            "core_mask": condition.core_mask,
            "deadline_s": RUN_DEADLINE_S,
            "warmup_iterations": plan.warmup_iterations,
            "warmup_ns": plan.warmup_ns,
            "iterations": plan.iterations,
            "slice_iterations": SLICE_ITERATIONS if len(jobs) == 1 else BLOCK_SLICE_ITERATIONS,
            "settle_iterations": SETTLE_ITERATIONS,
            "seed": seed,
            "jobs": [
                {
                    "id": job.id,
                    "path": remote[job.path],
                    "inputs": [
                        {"path": remote[file], "shape": list(spec.shape), "dtype": spec.dtype}
                        for spec, file in zip(job.io.inputs, job.input_files, strict=True)
                    ],
                }
                for job in jobs
            ],
        }
        with TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(content))
            return self._ensure([path])[path]

    def _ensure(self, files: Sequence[Path]) -> dict[Path, str]:
        try:
            return self._store.ensure(files)
        except ConnectionLost:
            # A copy may be repeated, over a new connection: a lost one can only be closed.
            self.transport.close()
            self._connect()
            return self._store.ensure(files)


@contextmanager
def visit(device: Device, wait_s: float = 0.0) -> Iterator[Session]:
    """Lease a device, connect, put the agent there; give everything back on any way out.

    Args:
        device: of the inventory.
        wait_s: how long to wait for another holder of the device.

    Raises:
        DeviceError: every one of them names the device.
    """
    try:
        with lease(device.id, wait_s):
            session = Session(device)
            try:
                session.install()
                yield session
            finally:
                session.transport.close()
    except DeviceError as error:
        error.device = error.device or device.id
        raise


def _connecting() -> Retrying:
    """Three attempts, for errors that may pass."""
    return Retrying(
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.2, max=2),
        retry=retry_if_exception(lambda error: isinstance(error, EdgeError) and error.retryable),
        reraise=True,
    )
