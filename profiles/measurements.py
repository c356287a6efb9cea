"""From a trial's raw runs to a measurement: a pure function, so that aggregates stay views."""

from __future__ import annotations

import statistics

from profiles.records import Condition, Measurement, Parity, Trial
from profiles.schema import ArtifactRow
from profiles.statistics import Summary, summarise


def conclude(trial: Trial | None, parity: Parity | None, artifact: ArtifactRow) -> Measurement:
    """The measurement of one artifact that a trial amounts to.

    Args:
        trial: the visit to the device, or ``None`` for an artifact that was not measured because
            it failed parity.
        parity: the artifact's parity, where it was checked.
        artifact: the artifact's row in the store.
    """
    status, reason = _verdict(trial, parity)
    accepted = status == "accepted"
    complete = [run for run in trial.runs if run.complete] if trial and accepted else []
    summary: Summary | None = None
    if complete:
        summary = summarise([run.samples_ns for run in complete])
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
        status=status,
        reason=reason,
        n=summary.n if summary else 0,
        runs=summary.runs if summary else 0,
        median_ns=summary.median_ns if summary else None,
        ci95_ns=summary.ci95_ns if summary else None,
        p90_ns=summary.p90_ns if summary else None,
        load_ns=_median([run.load_ns for run in complete]),
        first_ns=_median([run.first_ns for run in complete]),
        size_bytes=artifact.size_bytes,
        parity=parity,
        agent=trial.agent if trial else "unknown",
        delegates=trial.delegates if trial else (),
        device_serial=trial.device_serial if trial else "unknown",
        device_build=trial.device_build if trial else "unknown",
    )


def _verdict(trial: Trial | None, parity: Parity | None) -> tuple[str, str]:
    if parity is not None and not parity.passed:
        return "refused", f"parity: {parity.reason}"
    if trial is None:
        return "refused", "parity was not checked"
    return trial.status, trial.reason


def _median(values: list[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
