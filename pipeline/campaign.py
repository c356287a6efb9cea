"""Measuring many artifacts on one device: interleaved, resumable, nothing twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import Device
from devices.lab import Lab
from devices.meter import Meter
from devices.session import Job, Session
from devices.visit import give_up, serial_of, visit
from pipeline.data import Images
from pipeline.rounds import Ground, Rounds, Tally
from pipeline.spool import Spool
from pipeline.stage import Workspace
from profiles.canonical import digest
from profiles.durable import write_whole
from profiles.errors import DeadlineExceeded, DeviceError, MeterError, StaleFence
from profiles.measure import ANY_DELEGATE, Measure
from profiles.quality import judge, tolerated
from profiles.records import Artifact, Condition, Plan, Trial
from profiles.store import trial_key

#: After visits in a row that broke off without one more run, wait so long in seconds; a board takes
#: up to a minute to restart.  A device that was never reached is not waited for.
PAUSES_S = (0.5, 5.0, 20.0, 60.0)
#: How long to wait for another holder: a doctor's visit is short.
_WAIT_S = 60.0
#: In the workspace: for each trial that no sensor was found for, what the device had then.
METERS = "meters.json"


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
    plans: Sequence[Plan] | None = None,
) -> list[Trial]:
    """Measure artifacts on a device, or find them measured.

    Every run is a fresh process; each round visits all artifacts once, in a random order, so that
    a drift of the device falls on all alike.  Each run is stored as soon as it ends: after a kill
    or a broken link the same call goes on where it was, and a campaign that is complete does not
    touch the device.  A link that breaks is taken up again in a new visit; the run it broke is
    kept, marked, and made anew, as is one whose data are refused.  What breaks it every time,
    beside the latencies, is left, and the rest goes on.

    Args:
        workspace: whose store takes the samples.
        device: to measure on.
        subjects: what to measure; their parity has been checked.
        settings: thread counts, limits of time, what is tolerated.
        together: let all artifacts of a runtime share each process and take turns in it, for
            blocks that are far smaller than a process' start.
        plans: what to measure of each, in this order; all that ``settings`` ask for if not given.

    Returns:
        The trials, one for each artifact, thread count and plan.  Each is closed, with a reason
        where it is not accepted; one that the time was not enough for is open, to be gone on with.

    Raises:
        DeviceError: if the device cannot be reached, or leaves before all latencies are measured;
            what was measured is kept.
    """
    campaign = _Campaign(workspace, device, subjects, settings, together, plans or settings.plans())
    broken: list[DeviceError] = []
    while due := campaign.due():
        workspace.progress(f"measure: connecting to {device.id}")
        runs, campaign.tally.turn = campaign.tally.runs, frozenset()
        try:
            with visit(device, wait_s=_WAIT_S) as session:
                campaign.go(session, due)
        except DeviceError as error:
            broken = [error] if campaign.tally.runs > runs else [*broken, error]
            if not (error.retryable and campaign.reached) or len(broken) > len(PAUSES_S):
                if any(trial.plan.kind == "latency" for trial in campaign.due()):
                    if all(isinstance(one, DeadlineExceeded) for one in broken) and broken[1:]:
                        give_up(device, error)
                    raise
                campaign.leave(error)
                broken = []
                continue
            workspace.progress(f"measure: {error}; trying again")
            time.sleep(PAUSES_S[len(broken) - 1])
    return workspace.store.trials([trial.key for trial in campaign.wanted])


def condition_of(settings: Measure, runtime: str, threads: int) -> Condition:
    """What is asked for of a runtime."""
    asked = settings.delegates.get(runtime)
    return Condition(
        threads=threads,
        core_mask=settings.core_mask,
        mode=settings.mode,
        delegate=None if asked == ANY_DELEGATE else asked,
    )


def _sensors(facts: Mapping[str, Any]) -> str:
    """What a device has that tells power, as one word."""
    return digest(facts.get("meters", []))


class _Campaign:
    """What is to be measured, and how far it is."""

    def __init__(
        self,
        workspace: Workspace,
        device: Device,
        subjects: Sequence[Subject],
        settings: Measure,
        together: bool,
        plans: Sequence[Plan],
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._device = device
        self._settings = settings
        self._together = together
        self._subjects = {subject.artifact.sha256: subject for subject in subjects}
        self._spool = Spool(workspace.root / "run.spool")
        self._spool.recover(self._store)
        self._began_s = time.monotonic()
        self.tally = Tally()
        self.reached = False
        serial = serial_of(device)
        trials = [
            self._blank(subject.artifact, threads, self._at_device(plan), serial)
            for plan in plans
            for threads in settings.threads
            for subject in subjects
        ]
        self.wanted = list({trial.key: trial for trial in trials}.values())
        self._begin_again()
        self._judge_again()

    def _judge_again(self) -> None:
        """Set aside what was accepted for the sake of what is tolerated no more."""
        now = frozenset(self._settings.tolerate)
        refused = {
            trial.key
            for trial in self._store.trials([trial.key for trial in self.wanted])
            if trial.status == "accepted" and tolerated(trial) - now
            if judge(trial, now).status != "accepted"
        }
        for group in self._groups(self.wanted) if refused else ():
            keys = {trial.key for trial in group}
            in_turns = self._together or group[0].plan.turns
            if keys & refused:
                self._store.set_aside(sorted(keys if in_turns else keys & refused))

    def _begin_again(self) -> None:
        """Set aside what was measured in turns with trials that an earlier campaign gave up."""
        turns = [t for t in self.wanted if self._together or t.plan.turns]
        for group in self._groups(turns):
            keys = [trial.key for trial in group]
            if any(t.status in ("refused", "failed") for t in self._store.trials(keys)):
                self._store.set_aside(keys)

    def _at_device(self, plan: Plan) -> Plan:
        """A plan, with what the inventory says of the power sensor."""
        return replace(plan, meter=self._device.meter_word()) if plan.kind == "energy" else plan

    def _blank(self, artifact: Artifact, threads: int, plan: Plan, serial: str) -> Trial:
        condition = condition_of(self._settings, artifact.runtime, threads)
        place = self._device.place(serial, artifact.runtime)
        return Trial(
            key=trial_key(artifact.sha256, place, artifact.runtime, condition, plan),
            artifact_sha256=artifact.sha256,
            device_id=self._device.id,
            device_serial=serial,
            transport=self._device.transport_name,
            runtime=artifact.runtime,
            agent=self._device.agent_for(artifact.runtime),
            condition=condition,
            plan=plan,
            emulated=self._device.is_emulated,
        )

    def tell(self, state: str, why: str) -> None:
        """Pass a state of the device on to whoever waits for it."""
        self._workspace.progress(f"measure: {self._device.id} is {state}: {why}")

    def due(self) -> list[Trial]:
        """Trials that are neither measured nor, in this campaign, found impossible."""
        found = self._store.trials([trial.key for trial in self.wanted])
        unknown = [trial for trial in found if trial.status == "unknown"]
        done = {trial.key for trial in found if trial.status == "accepted"}
        done |= {trial.key for trial in unknown} - self._answerable(unknown)
        return [t for t in self.wanted if t.key not in done | self.tally.ended]

    def _answerable(self, unknown: Sequence[Trial]) -> set[str]:
        """Of trials that the device could not tell anything for, those that it may by now.

        That is where the sensors that the lab last saw on it, in a visit or by ``devices doctor``,
        are not those there were when it could not: the device itself is not touched.
        """
        if not unknown:
            return set()
        now = {seen.serial: _sensors(seen.facts) for seen in Lab().devices()}
        then = self._sensors_then()
        return {
            trial.key
            for trial in unknown
            if trial.device_serial in now and now[trial.device_serial] != then.get(trial.key)
        }

    def _sensors_then(self) -> dict[str, str]:
        path = self._workspace.root / METERS
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def leave(self, error: DeviceError) -> None:
        """Go on without what broke the visit, or where the device is gone, without all.

        What is still open says so, and is gone on with by the next call.
        """
        due = {trial.key for trial in self.due()}
        left = due & self.tally.turn if error.retryable else set()
        for trial in self._store.trials(sorted(left or due)):
            if trial.status == "open":
                self._store.close_trial(trial.key, "open", str(error), fence=trial.fence)
        self.tally.ended |= left or due

    def go(self, session: Session, due: Sequence[Trial]) -> None:
        """Measure as much as one visit allows."""
        self.reached = True
        meter, why = self._meter(session, due)
        ground = Ground(
            workspace=self._workspace,
            spool=self._spool,
            session=session,
            settings=self._settings,
            readings={},
            meter=meter,
            job=self._job,
            name=self._name,
            tell=self.tell,
            ends_s=self._ends_s(),
            together=self._together,
        )
        with session.under(
            due[0].condition,
            self.tell,
            deadline_s=max(ground.deadline_s(trial.plan) for trial in due),
            tolerate=self._settings.tolerate,
        ) as readings:
            ready = self._ready(session, due, why)
            for group in self._groups(ready):
                Rounds(replace(ground, readings=readings), group, self.tally).measure()

    def _ends_s(self) -> float | None:
        budget = self._settings.budget_minutes
        return None if budget is None else self._began_s + 60 * budget

    def _meter(self, session: Session, due: Sequence[Trial]) -> tuple[Meter | None, str]:
        """The device's power sensor where energy is due, or why there is none."""
        if not any(trial.plan.kind == "energy" for trial in due):
            return None, ""
        try:
            return session.meter(), ""
        except MeterError as error:
            return None, f"{error.message} ({error.hint})" if error.hint else error.message

    def _ready(self, session: Session, trials: Sequence[Trial], meterless: str) -> list[Trial]:
        """Open the trials that the device can measure; close the others with the reason."""
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
                self._close(opened, session, "failed", f"{reason}; {found['hint']}")
            elif trial.plan.kind == "energy" and meterless:
                self._close(opened, session, "unknown", meterless)
                then = {**self._sensors_then(), opened.key: _sensors(session.facts)}
                write_whole(self._workspace.root / METERS, json.dumps(then, indent=2).encode())
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

    def _close(self, trial: Trial, session: Session, status: str, reason: str) -> None:
        self._store.close_trial(trial.key, status, reason, fence=session.lease.fence)
        self.tally.ended.add(trial.key)

    def _groups(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Trials that share rounds: of one kind; together also those that can share a process."""
        groups: dict[tuple[object, ...], list[Trial]] = {}
        for trial in trials:
            process = (trial.runtime, trial.condition.threads) if self._together else ()
            groups.setdefault((trial.plan, *process), []).append(trial)
        return list(groups.values())

    def _job(self, trial: Trial) -> Job:
        subject = self._subjects[trial.artifact_sha256]
        asked = self._settings.delegates.get(trial.runtime)
        expect = () if asked else subject.delegates
        artifact = subject.artifact
        return Job(trial.key, artifact.path, artifact.io.closed(), subject.input_files, expect)

    def _name(self, trials: Sequence[Trial]) -> str:
        if len(trials) > 1:
            return f"{len(trials)} blocks in turns"
        artifact = self._subjects[trials[0].artifact_sha256].artifact
        return f"{artifact.variant} {artifact.format}"
