"""Measuring many artifacts on one device: interleaved, resumable, nothing twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import Device
from devices.recorder import RunRecorder
from devices.session import Job, Session
from devices.visit import give_up, serial_of, visit
from pipeline.data import Images
from pipeline.spool import Spool, make_run
from pipeline.stage import Workspace
from profiles.durable import write_whole
from profiles.errors import (
    AgentError,
    DeadlineExceeded,
    DeviceError,
    LeaseLost,
    StaleFence,
)
from profiles.recipe import ANY_DELEGATE, Measure
from profiles.records import Artifact, Condition, Trial
from profiles.store import trial_key

#: After visits in a row that broke off without one more run, wait so long in seconds; a board takes
#: up to a minute to restart.  A device that was never reached is not waited for.
PAUSES_S = (0.5, 5.0, 20.0, 60.0)
#: How long to wait for another holder: a doctor's visit is short.
_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Subject:
    """An artifact to measure and a file with a real value for each of its inputs.

    ``delegates`` took part in it on this host; a device on which they do not is refused, for its
    figure would be another's.  Empty where this is not known.
    """

    artifact: Artifact
    input_files: tuple[Path, ...]
    delegates: tuple[str, ...] = ()


def input_file(workspace: Workspace, values: Images) -> Path:
    """One input as raw little-endian bytes, in the workspace, by content."""
    folder = workspace.root / "inputs"
    folder.mkdir(exist_ok=True)
    content = np.ascontiguousarray(values, dtype="<f4").tobytes()
    path = folder / f"{hashlib.sha256(content).hexdigest()}.bin"
    if not path.exists():
        write_whole(path, content)
    return path


def measure(
    workspace: Workspace,
    device: Device,
    subjects: Sequence[Subject],
    settings: Measure,
    *,
    together: bool = False,
) -> list[Trial]:
    """Measure artifacts on a device, or find them measured.

    Every run is a fresh process; each round visits all artifacts once, in a random order, so that
    a drift of the device falls on all alike.  Each run is stored as soon as it ends: after a kill
    or a broken link the same call goes on where it was, and a campaign that is complete does not
    touch the device.  A link that breaks is taken up again in a new visit; the run it broke is
    kept, marked, and made anew.

    Args:
        workspace: whose store takes the samples.
        device: to measure on.
        subjects: what to measure; their parity has been checked.
        settings: runs, iterations, warm-up, thread counts.
        together: let all artifacts of a runtime share each process and take turns in it, for
            blocks that are far smaller than a process' start.

    Returns:
        The trials, closed; one that the agent could not measure is ``failed`` with its reason.

    Raises:
        DeviceError: if the device cannot be reached or leaves; what was measured is kept.
    """
    campaign = _Campaign(workspace, device, subjects, settings, together)
    broken: list[DeviceError] = []
    while due := campaign.due():
        workspace.progress(f"measure: connecting to {device.id}")
        runs = campaign.runs
        try:
            with visit(device, wait_s=_WAIT_S) as session:
                campaign.go(session, due)
        except DeviceError as error:
            broken = [error] if campaign.runs > runs else [*broken, error]
            if not (error.retryable and campaign.reached) or len(broken) > len(PAUSES_S):
                if all(isinstance(one, DeadlineExceeded) for one in broken) and len(broken) > 1:
                    give_up(device, error)
                raise
            workspace.progress(f"measure: {error}; trying again")
            time.sleep(PAUSES_S[len(broken) - 1])
    return workspace.store.trials([trial.key for trial in campaign.wanted])


class _Campaign:
    """What is to be measured, and how far it is."""

    def __init__(
        self,
        workspace: Workspace,
        device: Device,
        subjects: Sequence[Subject],
        settings: Measure,
        together: bool,
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._device = device
        self._settings = settings
        self._together = together
        self._subjects = {subject.artifact.sha256: subject for subject in subjects}
        self._plan = settings.plan()
        self._spool = Spool(workspace.root / "run.spool")
        self._spool.recover(self._store)
        self.runs = 0
        self.reached = False
        serial = serial_of(device)
        trials = [
            self._blank(subject.artifact, threads, serial)
            for threads in settings.threads
            for subject in subjects
        ]
        self.wanted = list({trial.key: trial for trial in trials}.values())
        self._failed: set[str] = set()

    def _blank(self, artifact: Artifact, threads: int, serial: str) -> Trial:
        asked = self._settings.delegates.get(artifact.runtime)
        condition = Condition(
            threads=threads,
            core_mask=self._settings.core_mask,
            mode=self._settings.mode,
            delegate=None if asked == ANY_DELEGATE else asked,
        )
        place = self._device.place(serial, artifact.runtime)
        return Trial(
            key=trial_key(artifact.sha256, place, artifact.runtime, condition, self._plan),
            artifact_sha256=artifact.sha256,
            device_id=self._device.id,
            device_serial=serial,
            transport=self._device.transport_name,
            runtime=artifact.runtime,
            agent=self._device.agent_for(artifact.runtime),
            condition=condition,
            plan=self._plan,
            emulated=self._device.is_emulated,
        )

    def tell(self, state: str, why: str) -> None:
        """Pass a state of the device on to whoever waits for it."""
        self._workspace.progress(f"measure: {self._device.id} is {state}: {why}")

    def due(self) -> list[Trial]:
        """Trials that are neither measured nor, in this campaign, found impossible."""
        keys = [trial.key for trial in self.wanted]
        accepted = {t.key for t in self._store.trials(keys) if t.status == "accepted"}
        return [t for t in self.wanted if t.key not in accepted | self._failed]

    def go(self, session: Session, due: Sequence[Trial]) -> None:
        """Measure as much as one visit allows."""
        self.reached = True
        deadline_s = self._settings.deadline_seconds
        with session.under(due[0].condition, self.tell, deadline_s=deadline_s) as readings:
            for group in self._groups(self._ready(session, due)):
                self._measure_group(session, group, readings)

    def _ready(self, session: Session, trials: Sequence[Trial]) -> list[Trial]:
        """Open the trials whose runtime works on the device; fail the others with the reason."""
        runtimes = session.probe(sorted({trial.runtime for trial in trials}))
        ready = []
        for trial in trials:
            found = runtimes[trial.runtime]
            seen = replace(
                trial,
                condition=session.condition(trial.condition),
                runtime_version=found.get("version", "unknown"),
                emulated=trial.emulated or bool(session.facts.get("emulated")),
                device_build=session.facts.get("os_build", "unknown"),
            )
            opened = self._open(session, seen)
            if "missing" in found:
                reason = f"{trial.runtime} is missing on the device: {found['missing']}"
                self._fail([opened], session, f"{reason}; {found['hint']}")
            else:
                ready.append(opened)
        return ready

    def _open(self, session: Session, trial: Trial) -> Trial:
        try:
            return self._store.open_trial(replace(trial, fence=session.lease.fence))
        except StaleFence as error:
            # Of a lab that is lost, or of a clock that was ahead: the device is ours all the same.
            session.lease.raise_above(error.newer or 0)
            return self._store.open_trial(replace(trial, fence=session.lease.fence))

    def _fail(self, trials: Sequence[Trial], session: Session, reason: str) -> None:
        for trial in trials:
            self._store.close_trial(trial.key, "failed", reason, fence=session.lease.fence)
            self._failed.add(trial.key)

    def _groups(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Trials that share a visit's rounds: all of them, or those that can share a process."""
        if not self._together:
            return [list(trials)] if trials else []
        groups: dict[tuple[str, int], list[Trial]] = {}
        for trial in trials:
            groups.setdefault((trial.runtime, trial.condition.threads), []).append(trial)
        return list(groups.values())

    def _measure_group(
        self, session: Session, trials: Sequence[Trial], readings: Mapping[str, Any]
    ) -> None:
        complete = {t.key: sum(run.complete for run in t.runs) for t in trials}
        numbers = {t.key: len(t.runs) for t in trials}
        for round_ in range(self._plan.runs):
            left = [t for t in trials if t.key not in self._failed]
            due = [t for t in left if complete[t.key] <= round_]
            np.random.default_rng([self._plan.seed, round_]).shuffle(due)
            for turn in [due] if self._together and due else [[trial] for trial in due]:
                self._workspace.progress(
                    f"measure: {session.device.id} round {round_ + 1}/{self._plan.runs},"
                    f" {self._name(turn)}"
                )
                session.settle(turn[0].condition, self.tell)
                try:
                    self._one_process(session, turn, round_, numbers, readings)
                except AgentError as error:
                    self._fail(turn, session, error.message)
        for trial in trials:
            if trial.key not in self._failed:
                self._store.close_trial(trial.key, "accepted", fence=session.lease.fence)

    def _one_process(
        self,
        session: Session,
        trials: Sequence[Trial],
        round_: int,
        numbers: dict[str, int],
        readings: Mapping[str, Any],
    ) -> None:
        """One agent process; whatever it delivers is stored, also when it or the link breaks."""
        first = trials[0]
        recorder = RunRecorder([trial.key for trial in trials], self._spool.line)
        complete = lost = False
        mine = {trial.key: numbers[trial.key] for trial in trials}
        self._spool.begin(mine, session.lease.fence, readings)
        try:
            session.run(
                first.runtime,
                [self._job(trial) for trial in trials],
                condition=first.condition,
                plan=first.plan,
                seed=first.plan.seed * 1000 + round_,
                deadline_s=self._settings.deadline_seconds,
                recorder=recorder,
            )
            complete = True
        except LeaseLost:
            lost = True  # another was on the device meanwhile: these samples mean nothing
            raise
        finally:
            for trial in trials:
                recording = recorder.recordings[trial.key]
                if complete or ((recording.warmup or recording.samples) and not lost):
                    run = make_run(numbers[trial.key], complete, recorder, trial.key, readings)
                    self._store.add_run(trial.key, run, fence=session.lease.fence)
                    numbers[trial.key] += 1
                    self.runs += complete
            self._spool.end()

    def _job(self, trial: Trial) -> Job:
        subject = self._subjects[trial.artifact_sha256]
        asked = self._settings.delegates.get(trial.runtime)
        expect = () if asked else subject.delegates
        artifact = subject.artifact
        return Job(trial.key, artifact.path, artifact.io, subject.input_files, expect)

    def _name(self, trials: Sequence[Trial]) -> str:
        if len(trials) > 1:
            return f"{len(trials)} blocks in turns"
        artifact = self._subjects[trials[0].artifact_sha256].artifact
        return f"{artifact.variant} {artifact.format}"
