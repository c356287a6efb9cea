"""From trials' raw runs to a measurement: pure functions, so that aggregates stay views."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from profiles.comparison import effect
from profiles.energy import energy_of_run, summarise_energy
from profiles.findings import Energy, Figure, Measurement, Memory, Reason
from profiles.quality import Verdict, counting_runs, judge
from profiles.records import Condition, Parity, Run, Samples, Trial, TrialKind
from profiles.schema import ArtifactRow
from profiles.statistics import Summary, summarise

#: Trials of one artifact at one place, one of each kind.
Siblings = Mapping[TrialKind, Trial]

_CLOSED = ("accepted", "refused")


def summary_of(trial: Trial) -> Summary:
    """The latency that a trial's counting runs amount to; nothing refused is in it.

    Raises:
        ValueError: if no run counts.
    """
    return _summary(trial, [run.samples_ns for run in counting_runs(trial)])


def siblings(trials: Iterable[Trial]) -> list[Siblings]:
    """Trials that are of one artifact, device, way there, runtime, agent and condition asked for.

    Each group has one latency; of other kinds, of which there may be several under different plans,
    the last that was accepted, or the last.  Of energy only the last sensor and calibration count:
    what another said is no answer.  In which state a device was found, its governor and power
    source, may differ from one to the next; :func:`conclude` says so.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        known = trial.device_serial != "unknown"
        place = trial.device_serial if known else trial.device_id
        key = (trial.artifact_sha256, place, trial.transport, trial.runtime, trial.agent)
        asked = tuple(trial.condition.requested().items())
        groups.setdefault((*key, asked), []).append(trial)
    found: list[Siblings] = []
    for group in groups.values():
        others: dict[TrialKind, Trial] = {}
        meters = [trial.plan.meter for trial in group if trial.plan.kind == "energy"]
        present = [t for t in group if t.plan.kind != "energy" or t.plan.meter == meters[-1]]
        for trial in sorted(present, key=lambda each: each.status == "accepted"):
            others[trial.plan.kind] = trial
        latencies = [trial for trial in group if trial.plan.kind == "latency"]
        found += [{**others, "latency": trial} for trial in latencies]
    return found


def conclude(trials: Siblings, parity: Parity | None, artifact: ArtifactRow) -> Measurement:
    """The measurement of one artifact that its trials amount to.

    Args:
        trials: by kind; none for an artifact that was not measured because it failed parity.
        parity: the artifact's parity, where it was checked.
        artifact: the artifact's row in the store.
    """
    passed = parity is None or parity.passed
    trial = trials.get("latency")
    verdict = judge(trial) if trial and passed and trial.status in _CLOSED else None
    made = _unmeasured(artifact, parity, trial)
    made = replace(made, **_status(trial, parity, verdict))
    if passed:
        made = _with_others(made, trials)
    if trial is None or verdict is None or made.status != "accepted":
        return made
    summary = _summary(trial, [run.samples_ns for run in verdict.runs])
    app = trials["app"] if made.app_ns and "app" not in made.unknown else None
    return replace(
        made,
        n=summary.n,
        runs=summary.runs,
        median_ns=summary.median_ns,
        ci95_ns=summary.ci95_ns,
        p90_ns=summary.p90_ns,
        load_ns=_median([run.load_ns for run in verdict.runs]),
        first_ns=_median([run.first_ns for run in verdict.runs]),
        mean_ns=summary.mean_ns,
        p99_ns=summary.p99_ns,
        min_ns=summary.min_ns,
        mad_ns=summary.mad_ns,
        app_ratio=_ratio(trial, app) if app else None,
    )


def _unmeasured(artifact: ArtifactRow, parity: Parity | None, trial: Trial | None) -> Measurement:
    """What is known before the samples are looked at."""
    return Measurement(
        artifact_sha256=artifact.sha256,
        trial=trial.key if trial else "",
        model=artifact.model,
        variant=artifact.variant,
        role=artifact.role,
        format=artifact.format,
        runtime=trial.runtime if trial else "",
        runtime_version=trial.runtime_version if trial else "unknown",
        device=trial.device_id if trial else "",
        emulated=trial.emulated if trial else False,
        transport=trial.transport if trial else "",
        condition=trial.condition if trial else Condition(),
        status="",
        reason="",
        n=0,
        runs=0,
        median_ns=None,
        ci95_ns=None,
        p90_ns=None,
        load_ns=None,
        first_ns=None,
        size_bytes=artifact.size_bytes,
        parity=parity,
        agent=trial.agent if trial else "unknown",
        delegates=trial.delegates if trial else (),
        device_serial=trial.device_serial if trial else "unknown",
        device_build=trial.device_build if trial else "unknown",
        turns=trial.plan.turns if trial else "",
    )


def _status(
    trial: Trial | None, parity: Parity | None, verdict: Verdict | None
) -> Mapping[str, Any]:
    """Whether there is a latency, and why not; what a store has accepted stays accepted."""
    if parity is not None and not parity.passed:
        return {"status": "refused", "reason": f"parity: {parity.reason}"}
    if trial is None:
        return {"status": "refused", "reason": "parity was not checked"}
    if verdict is None:
        return {"status": trial.status, "reason": trial.reason}
    if trial.status == "refused":
        found = {"reasons": verdict.reasons, "remarks": verdict.remarks}
        return {"status": trial.status, "reason": trial.reason, **found}
    if not verdict.runs:
        return {"status": "refused", "reason": "no run of it counts", "reasons": verdict.reasons}
    # A rule that is newer than the trial has found what nobody looked for then.
    remarks = (*verdict.reasons, *verdict.remarks)
    return {"status": trial.status, "reason": "", "stopped": trial.reason, "remarks": remarks}


def _with_others(made: Measurement, trials: Siblings) -> Measurement:
    """The figures of the other kinds, each with its own verdict; or why there is none."""
    found: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    remarks = list(made.remarks)
    others: Sequence[tuple[TrialKind, str, Callable[[Trial, Sequence[Run]], Any]]] = (
        ("memory", "memory", _memory),
        ("app", "app_ns", _latency),
        ("sustained", "sustained_ns", _warm_latency),
        ("energy", "energy", _energy),
    )
    for kind, field, figure in others:
        trial = trials.get(kind)
        if trial is None:
            continue
        verdict = judge(trial)
        if trial.status == "accepted":
            found[field] = figure(trial, verdict.runs)
        if found.get(field) is None:
            unknown[kind] = trial.reason or f"its measurement is {trial.status}"
            continue
        state = _other_state(trial, trials.get("latency"))
        if state and kind == "app":
            unknown[kind] = f"there is no ratio to the latency: {state.text}"
        remarks += [
            replace(remark, text=f"{kind}: {remark.text}")
            for remark in (*verdict.reasons, *verdict.remarks, *([state] if state else ()))
        ]
    return replace(made, **found, unknown=unknown, remarks=tuple(remarks))


def _other_state(trial: Trial, latency: Trial | None) -> Reason | None:
    """What to say where the device was found in another state than for the latency."""
    if latency is None or trial.condition == latency.condition:
        return None
    here, there = trial.condition, latency.condition
    told = [
        f"its {name} was {found}, {usual} for the latency"
        for name, found, usual in (
            ("governor", here.governor, there.governor),
            ("power source", here.power_source, there.power_source),
        )
        if found != usual
    ]
    return Reason("another-state", " and ".join(told), "measure all in one state to compare them")


def _memory(_: Trial, runs: Sequence[Run]) -> Memory | None:
    told = [run.details["memory"] for run in runs if run.details.get("memory")]
    if not told:
        return None
    names = ("base_bytes", "loaded_bytes", "peak_bytes", "file_bytes")
    base, loaded, peak, file = (_median([each.get(name) for each in told]) for name in names)
    if base is None or loaded is None:
        return None
    return Memory(
        base_bytes=round(base),
        loaded_bytes=round(loaded),
        peak_bytes=None if peak is None else round(peak),
        file_bytes=None if file is None else round(file),
        runs=len(told),
    )


def _energy(_: Trial, runs: Sequence[Run]) -> Energy | None:
    return summarise_energy([energy_of_run(run.details) for run in runs]) if runs else None


def _latency(trial: Trial, runs: Sequence[Run]) -> Figure | None:
    return _figure(trial, [run.samples_ns for run in runs])


def _warm_latency(trial: Trial, runs: Sequence[Run]) -> Figure | None:
    """Of the second half of each run's time, when heat shows."""
    return _figure(trial, [_second_half(run) for run in runs])


def _second_half(run: Run) -> Samples:
    slices = run.details.get("slices") or [[0, len(run.samples_ns), None]]
    half_ns = (slices[0][0] + slices[-1][0]) / 2
    before = sum(calls for start_ns, calls, _ in slices if start_ns < half_ns)
    return run.samples_ns[before:]


def _figure(trial: Trial, runs: Sequence[Samples]) -> Figure | None:
    if not runs:
        return None
    summary = _summary(trial, runs)
    return Figure(summary.median_ns, summary.ci95_ns, summary.n, summary.runs)


def _summary(trial: Trial, runs: Sequence[Samples]) -> Summary:
    return summarise(runs, pilot=trial.plan.runs)


def _ratio(bench: Trial, app: Trial) -> Figure:
    """How many times the bench's latency an application sees."""
    before, after = [
        [float(np.median(run.samples_ns)) for run in counting_runs(trial)] for trial in (bench, app)
    ]
    found = effect(before, after, paired=False, pilots=(bench.plan.runs, app.plan.runs))
    calls = sum(len(run.samples_ns) for run in counting_runs(app))
    return Figure(found.ratio, found.ci95, calls, len(after))


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
