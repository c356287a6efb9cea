"""A connected device, held for one visit: agents in place, runs measured.

Sessions are made by :func:`devices.visit.visit`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from devices.agent.agent import PLAN_FORMAT
from devices.conditions.journal import PATIENCE_S, still_applied
from devices.conditions.preflight import StateSink, settle
from devices.conditions.visit import applied
from devices.inventory import Device
from devices.lab import DeviceState
from devices.launch import Agents, clear_leftovers, host_word
from devices.lease import Lease
from devices.meter import Meter, Sampling, find_meter
from devices.push import RemoteStore
from devices.recorder import RunRecorder
from devices.transport.base import Transport
from profiles.errors import AgentError, ConnectionLost, DeviceError, NotReady
from profiles.records import Condition, Io, Plan

_RUNTIMES_DEADLINE_S = 120.0
_PROBE_DEADLINE_S = 5.0
_PLAN_DEADLINE_S = 30.0
_PATIENCE_BEYOND_S = 300
SLICE_ITERATIONS = 50
BLOCK_SLICE_ITERATIONS = 20
SETTLE_ITERATIONS = 5
#: What the host adds to the agent's own deadline: the agent is to give up first, and say so.
_GRACE_S = 30


@dataclass(frozen=True, slots=True)
class Job:
    """One artifact to be measured: its file, its inputs and files with one value for each.

    ``expect`` names the delegates that must really take part in it.
    """

    id: str
    path: Path
    io: Io
    input_files: tuple[Path, ...]
    expect: tuple[str, ...] = ()


class Session:
    """A connected device.

    Args:
        device: of the inventory.
        connect: opens a connection, makes sure that it is the device that is held, and returns
            what it says of itself.
        lease: under which it is held.
        note: tells the lab what the device is up to.
    """

    def __init__(
        self,
        device: Device,
        connect: Callable[[], tuple[Transport, dict[str, Any]]],
        lease: Lease,
        note: Callable[[DeviceState, str], None],
    ) -> None:
        self.device = device
        self.lease = lease
        self._connect = connect
        self._note = note
        # Of the condition in force: its governor, and what its way back is known by.
        self._governor: str | None = None
        self._token = ""
        self._open()

    def _open(self) -> None:
        self.transport, self.facts = self._connect()
        self.store = RemoteStore(
            self.transport, self.device.folder, limit_bytes=self.device.details().store_bytes
        )
        self._agents = Agents(self.device, self.facts, self.ensure)

    def condition(self, asked: Condition) -> Condition:
        """A condition that is asked for, with what the device adds to it."""
        return replace(
            asked,
            governor=self._governor or self.facts.get("governor", "unknown"),
            power_source=self.facts.get("power_source", "unknown"),
        )

    @contextmanager
    def under(
        self,
        condition: Condition,
        on_state: StateSink,
        *,
        deadline_s: int,
        tolerate: Sequence[str] = (),
    ) -> Iterator[Mapping[str, Any]]:
        """Bring the device under a condition, and back in every way out.

        Args:
            condition: its cores and mode are looked at.
            on_state: told while the device is waited for, and why.
            deadline_s: of one run; while one lasts, nothing is put back.
            tolerate: codes of reasons that data are not to be refused for.

        Yields:
            For the record of each run: the device's state, what it is, and the limits it is to keep
            while it measures.

        Raises:
            NotReady: what must hold does not; every reason is said.
        """
        known = {"limits": self._limits(tolerate), "device": self._described()}
        if self.device.is_scripted:
            yield known
            return
        with applied(
            self.transport,
            self.device.folder,
            self.facts,
            self.device.all_gates(),
            condition,
            holder=host_word(),
            on_state=self._telling(on_state),
            again=self._living,
            patience_s=max(PATIENCE_S, deadline_s + _PATIENCE_BEYOND_S),
        ) as found:
            self._note(DeviceState.READY, "")
            self._governor, self._token = found.readings.governor, found.token
            try:
                yield {**found.environment(), **known}
            finally:
                self._governor, self._token = None, ""

    def _limits(self, tolerate: Sequence[str]) -> dict[str, Any]:
        return {
            "foreign_load_cores": self.device.all_gates().max_foreign_load_cores,
            "throttle_mdegc": self.device.details().throttle_mdegc,
            "temperature_zones": list(self.device.all_gates().temperature_zones),
            "tolerate": list(tolerate),
        }

    def _described(self) -> dict[str, Any]:
        """What of the device's facts decides its latencies; what it does not tell is left out."""
        names = {
            "kernel": "kernel",
            "os_build": "os_build",
            "governor": "governor",
            "power_source": "power_source",
            "clock": "clock_source",
            "cores": "cores",
        }
        return {mine: self.facts[name] for mine, name in names.items() if name in self.facts}

    def meter(self) -> Meter:
        """The device's power sensor.

        Raises:
            MeterError: it has none that can be read.
        """
        return find_meter(self.device, self.facts)

    def settle(self, condition: Condition, on_state: StateSink) -> Mapping[str, Any]:
        """Before a run: wait for what passes with time.

        Returns:
            The device's state as it is now, or nothing where it is not looked at again.

        Raises:
            NotReady: if the device does not come within its gates in time.
        """
        gates, pinned = self.device.all_gates(), condition.mode == "pinned"
        if self.device.is_scripted or not (gates.pass_with_time or pinned):
            return {}
        system = str(self.facts.get("system", "linux"))
        told = self._telling(on_state)
        found = settle(self.transport, system, gates, condition, on_state=told)
        if found.refusals:
            raise NotReady(
                [str(refusal) for refusal in found.refusals],
                [refusal.advice for refusal in found.refusals],
            )
        self._note(DeviceState.READY, "")
        return {**found.readings.environment(), "waited_s": found.waited_s}

    def _telling(self, on_state: StateSink) -> StateSink:
        def tell(state: str, why: str) -> None:
            still_applied(self.transport, self.device.folder, self._token)
            self._note(DeviceState(state), why)
            on_state(state, why)

        return tell

    def _living(self) -> Transport:
        """The connection, or a new one where it is lost."""
        try:
            self.transport.probe(deadline_s=_PROBE_DEADLINE_S)
        except DeviceError:
            self.transport.close()
            self._open()
        return self.transport

    def probe(self, runtimes: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """For each of these runtimes: ``version`` and ``delegates``, or ``missing`` and ``hint``.

        A runtime whose agent cannot run on the device is missing, with the reason.
        """
        found: dict[str, Mapping[str, Any]] = {}
        for agent in sorted({self.device.agent_for(runtime) for runtime in runtimes}):
            mine = [name for name in runtimes if self.device.agent_for(name) == agent]
            try:
                found |= self._ask(agent, mine)
            except AgentError as error:
                found |= {name: {"missing": error.message, "hint": error.hint} for name in mine}
        return found

    def _ask(self, agent: str, runtimes: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        command, words = self._agents.probe(agent, runtimes)
        done = self.transport.run([*command, "--probe", *words], deadline_s=_RUNTIMES_DEADLINE_S)
        if done.exit_code != 0:
            raise AgentError(
                f"{command[0]} cannot run the agent: {done.complaint()}", self._agents.advice(agent)
            )
        try:
            event = json.loads(done.stdout)
            return {name: dict(event["runtimes"][name]) for name in runtimes}
        except (ValueError, KeyError, TypeError) as error:
            said = done.stdout[:120].decode(errors="replace")
            raise AgentError(
                f"{command[0]} does not answer as the agent does: {said!r}",
                f"{self._agents.advice(agent)}; its logins must print nothing",
            ) from error

    def run(
        self,
        runtime: str,
        jobs: Sequence[Job],
        *,
        condition: Condition,
        plan: Plan,
        seed: int,
        deadline_s: int,
        recorder: RunRecorder,
        sampling: Sampling | None = None,
    ) -> None:
        """One run: a fresh agent process that measures all of ``jobs`` in turns.

        Args:
            runtime: which runtime executes them.
            jobs: one for a whole model; several share the process and take turns.
            condition: threads, core mask and delegate.
            plan: kind, iterations, warm-up, shortest window.
            seed: of the order of turns.
            deadline_s: longest time the process may take.
            recorder: takes what the device delivers, as it comes.
            sampling: what the power sensor is read by, for energy.

        Raises:
            AgentError: the agent failed, or died without a word.
            LeaseLost: another holder has taken the device over meanwhile.
            ConnectionLost: as the transport says, and where the device is not pinned any more.
            DeadlineExceeded: as the transport says.
        """
        command = self._agents.measure(self.device.agent_for(runtime))
        program = self._plan(runtime, jobs, condition, plan, seed, deadline_s, sampling)
        # A host that slept must not disturb who measures there now, and a push may take its time.
        self.lease.check()
        still_applied(self.transport, self.device.folder, self._token)
        try:
            done = self.transport.run(
                [*command, program], deadline_s=deadline_s + _GRACE_S, on_line=recorder.line
            )
        except AgentError:
            self.lease.check()
            # We no longer listen, but it may go on until it next has something to say.
            clear_leftovers(self.transport, self.device.folder)
            raise
        except DeviceError:
            self.lease.check()  # a run that breaks off may also have been disturbed before
            raise
        self.lease.check()
        if recorder.error:
            raise AgentError(f"{runtime}: {recorder.error['message']}")
        if not recorder.done or done.exit_code != 0:
            # Its output is its events: none of them says why it ended.
            why = replace(done, stdout=b"").complaint()
            raise AgentError(f"the agent ended without a result: {why}")
        recorder.demand(plan)

    def _plan(
        self,
        runtime: str,
        jobs: Sequence[Job],
        condition: Condition,
        plan: Plan,
        seed: int,
        deadline_s: int,
        sampling: Sampling | None,
    ) -> str:
        files = [job.path for job in jobs] + [file for job in jobs for file in job.input_files]
        remote = self.ensure(files)
        content = {
            "format": PLAN_FORMAT,
            "kind": plan.kind,
            "runtime": runtime,
            "library": self._agents.library(runtime),
            "delegate": condition.delegate,
            "threads": condition.threads,
            "core_mask": condition.core_mask,
            "deadline_s": deadline_s,
            "warmup_iterations": plan.warmup_iterations,
            "warmup_ns": plan.warmup_ns,
            "iterations": plan.iterations,
            "window_ns": max(plan.window_ns, sampling.window_ns if sampling else 0),
            "period_ns": plan.period_ns,
            "meter": sampling
            and {
                "period_ns": sampling.period_ns,
                "files": list(sampling.files),
                "command": list(sampling.command),
            },
            "slice_iterations": SLICE_ITERATIONS if len(jobs) == 1 else BLOCK_SLICE_ITERATIONS,
            "settle_iterations": SETTLE_ITERATIONS,
            "seed": seed,
            "jobs": [
                {
                    "id": job.id,
                    "path": remote[job.path],
                    "expect": list(job.expect),
                    "inputs": [
                        {"path": remote[file], "shape": list(spec.shape), "dtype": spec.dtype}
                        for spec, file in zip(job.io.inputs, job.input_files, strict=True)
                    ],
                }
                for job in jobs
            ],
        }
        # Always the same file: one for each run would fill the store.
        there = f"{self.device.folder}/plan.json"
        with TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(content))
            self.transport.push(path, there, deadline_s=_PLAN_DEADLINE_S)
        return there

    def ensure(self, files: Sequence[Path]) -> dict[Path, str]:
        """See that these files are on the device; for each its path there."""
        try:
            return self.store.ensure(files)
        except ConnectionLost:
            # A copy may be repeated, over a new connection: a lost one can only be closed.
            self.transport.close()
            self._open()
            return self.store.ensure(files)
