"""Measuring many artifacts on one device: interleaved, resumable, nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from devices.inventory import Device
from devices.session import Job, RunRecorder, Session, visit
from pipeline.data import Images
from pipeline.stage import Workspace
from profiles.durable import write_whole
from profiles.errors import AgentError
from profiles.recipe import Measure
from profiles.records import Artifact, Condition, Run, Trial
from profiles.store import trial_key


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
    touch the device.

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
    wanted = [
        _blank(device, subject, Condition(threads, settings.core_mask), settings)
        for threads in settings.threads
        for subject in subjects
    ]
    by_sha = {subject.artifact.sha256: subject for subject in subjects}
    keys = [trial.key for trial in wanted]
    accepted = {t.key for t in workspace.store.trials(keys) if t.status == "accepted"}
    due = list({trial.key: trial for trial in wanted if trial.key not in accepted}.values())
    if due:
        workspace.progress(f"measure: connecting to {device.id}")
        with visit(device) as session:
            due = _ready(workspace, session, due)
            for group in _groups(due, together):
                _measure_group(workspace, session, group, by_sha, together)
    return workspace.store.trials(keys)


def _blank(device: Device, subject: Subject, condition: Condition, settings: Measure) -> Trial:
    artifact, plan = subject.artifact, settings.plan()
    return Trial(
        key=trial_key(artifact.sha256, device.identity, artifact.runtime, condition, plan),
        artifact_sha256=artifact.sha256,
        device_id=device.id,
        transport=device.transport_name,
        runtime=artifact.runtime,
        condition=condition,
        plan=plan,
        emulated=device.is_emulated,
    )


def _ready(workspace: Workspace, session: Session, trials: Sequence[Trial]) -> list[Trial]:
    """Open the trials whose runtime works on the device; fail the others with the reason."""
    probe = session.probe(sorted({trial.runtime for trial in trials}))
    ready = []
    for trial in trials:
        found = probe.runtimes[trial.runtime]
        condition = probe.condition(trial.condition.threads, trial.condition.core_mask)
        seen = replace(trial, condition=condition, runtime_version=found.get("version", "unknown"))
        opened = workspace.store.open_trial(seen)
        if "missing" in found:
            reason = f"{trial.runtime} is missing on the device: {found['missing']}"
            workspace.store.close_trial(trial.key, "failed", f"{reason}; {found['hint']}")
        else:
            ready.append(opened)
    return ready


def _groups(trials: Sequence[Trial], together: bool) -> list[list[Trial]]:
    """Trials that share a visit's rounds: all of them, or those that can share a process."""
    if not together:
        return [list(trials)] if trials else []
    groups: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.runtime, trial.condition.threads), []).append(trial)
    return list(groups.values())


def _measure_group(
    workspace: Workspace,
    session: Session,
    trials: Sequence[Trial],
    subjects: dict[str, Subject],
    together: bool,
) -> None:
    open_trials = {trial.key: trial for trial in trials}
    complete = {t.key: sum(run.complete for run in t.runs) for t in trials}
    numbers = {t.key: len(t.runs) for t in trials}
    plan = trials[0].plan
    for round_ in range(plan.runs):
        due = [t for t in open_trials.values() if complete[t.key] <= round_]
        np.random.default_rng([plan.seed, round_]).shuffle(due)
        for turn in [due] if together and due else [[trial] for trial in due]:
            workspace.progress(
                f"measure: {session.device.id} round {round_ + 1}/{plan.runs},"
                f" {_name(turn, subjects)}"
            )
            try:
                _one_process(workspace, session, turn, subjects, round_, numbers)
            except AgentError as error:
                for trial in turn:
                    workspace.store.close_trial(trial.key, "failed", error.message)
                    del open_trials[trial.key]
    for key in open_trials:
        workspace.store.close_trial(key, "accepted")


def _one_process(
    workspace: Workspace,
    session: Session,
    trials: Sequence[Trial],
    subjects: dict[str, Subject],
    round_: int,
    numbers: dict[str, int],
) -> None:
    """One agent process; whatever it delivers is stored, also when it or the link breaks."""
    first = trials[0]
    jobs = [
        Job(t.key, subject.artifact.path, subject.artifact.io, subject.input_files)
        for t in trials
        for subject in [subjects[t.artifact_sha256]]
    ]
    recorder = RunRecorder([trial.key for trial in trials])
    complete = False
    try:
        session.run(
            first.runtime,
            jobs,
            condition=first.condition,
            plan=first.plan,
            seed=first.plan.seed * 1000 + round_,
            recorder=recorder,
        )
        complete = True
    finally:
        for trial in trials:
            recording = recorder.recordings[trial.key]
            if complete or recording.warmup or recording.samples:
                run = Run(
                    number=numbers[trial.key],
                    complete=complete,
                    warmup_ns=recording.warmup_ns(),
                    samples_ns=recording.samples_ns(),
                    load_ns=recording.load_ns,
                    first_ns=recording.first_ns,
                    peak_bytes=recorder.peak_bytes,
                    environment={
                        **recorder.environment,
                        "delegates": list(recording.delegates),
                        "runtime_version": recorder.version,
                    },
                )
                workspace.store.add_run(trial.key, run)
                numbers[trial.key] += 1


def _name(trials: Sequence[Trial], subjects: dict[str, Subject]) -> str:
    if len(trials) > 1:
        return f"{len(trials)} blocks in turns"
    artifact = subjects[trials[0].artifact_sha256].artifact
    return f"{artifact.variant} {artifact.format}"
