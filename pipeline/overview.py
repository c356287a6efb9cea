"""A workspace's measurements side by side: speed-ups against FP32, and the Pareto front."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.flow import SUMMARY
from profiles.errors import UsageError
from profiles.findings import Measurement
from profiles.measurements import siblings
from profiles.quality import counting_runs
from profiles.records import Run, Trial, TrialKind
from profiles.store import Store

BASELINE = "fp32"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement in context.

    Args:
        measurement: the measurement.
        speedup: latency of the FP32 variant of the same model, format, device and condition over
            this one's; above 1 is faster; ``None`` where either is unknown.
        slower: whether it takes longer than that FP32 variant by more than their intervals allow
            for.
        on_front: whether nothing measured on the same device and condition is at once at least as
            accurate, as fast and as small, and better in one of them.
    """

    measurement: Measurement
    speedup: float | None
    slower: bool
    on_front: bool


def rows(measurements: Sequence[Measurement]) -> list[Row]:
    """Measurements with their speed-up and their place relative to the front."""
    baselines = {_setting(m): m for m in measurements if m.variant == BASELINE and m.median_ns}
    on_front: set[int] = set()
    for place in {place_of(m) for m in measurements}:
        members = [m for m in measurements if place_of(m) == place]
        scored = [
            (m, (-m.parity.accuracy, m.median_ns, m.size_bytes))
            for m in members
            if m.median_ns is not None and m.parity is not None
        ]
        on_front |= {id(scored[i][0]) for i in pareto_front([score for _, score in scored])}
    result = []
    for m in measurements:
        baseline = baselines.get(_setting(m))
        speedup, slower = _against(m, baseline)
        result.append(Row(m, speedup, slower, id(m) in on_front))
    return result


def _against(m: Measurement, baseline: Measurement | None) -> tuple[float | None, bool]:
    """By how much a measurement is faster than another, and whether it is surely slower."""
    if baseline is None or not (baseline.median_ns and m.median_ns):
        return None, False
    lowest = (m.ci95_ns or (m.median_ns,))[0]
    highest = (baseline.ci95_ns or (baseline.median_ns,))[-1]
    return baseline.median_ns / m.median_ns, lowest > highest


def _setting(m: Measurement) -> tuple[Any, ...]:
    """What a variant shares with the FP32 one that it is compared with."""
    return (m.model, m.format, m.condition.delegate, m.agent, *place_of(m))


def place_of(m: Measurement) -> tuple[Any, ...]:
    """Where and in what state it was measured; only figures of one place are compared.

    Runtimes, their delegates and agents are what one chooses among there.
    """
    return (m.device, replace(m.condition, delegate=None))


def pareto_front(scores: ArrayLike) -> NDArray[np.int64]:
    """Indices of the rows of ``scores`` (n, objectives; less is better) that none dominates."""
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.size == 0:
        return np.array([], dtype=np.int64)
    no_worse = (matrix[:, None, :] <= matrix[None, :, :]).all(2)
    better = (matrix[:, None, :] < matrix[None, :, :]).any(2)
    dominated = (no_worse & better).any(0)
    return np.flatnonzero(~dominated)


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything a report shows of a workspace: what its last whole run came to.

    Artifacts of earlier runs stay in the store, and in ``device-lab results``.

    Args:
        name: of the model, or the workspace's folder where nothing has been run to the end.
        rows: of variants and candidates, not of blocks.
        summary: what ``run.json`` holds, or an empty mapping.
    """

    name: str
    rows: tuple[Row, ...]
    summary: dict[str, Any]


def overview(root: Path) -> Overview:
    """Read a workspace.

    Raises:
        UsageError: if there is none.
    """
    measured = read_measurements(root)
    path = root / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else {}
    if summary:
        found = (summary["search"] or {}).get("candidates", [])
        current = {tuple(row) for row in summary["measurements"]}
        current |= {(c["trial"], f"{summary['name']}-search", c["description"]) for c in found}
        measured = [m for m in measured if (m.trial, m.model, m.variant) in current]
    return Overview(summary.get("name", root.name), tuple(rows(measured)), summary)


def read_measurements(root: Path, *, blocks: bool = False) -> list[Measurement]:
    """The measurements in a workspace; of blocks, and of what was in turns with others, if asked.

    Raises:
        UsageError: if there is no workspace.
    """
    database = root / "store.db"
    if not database.exists():
        raise UsageError(f"{root} is no workspace", f"device-lab run RECIPE --workspace {root}")
    with Store(database) as store:
        return [m for m in store.measurements() if blocks or not (m.role == "block" or m.turns)]


@dataclass(frozen=True, slots=True)
class Material:
    """The raw runs that a measurement is made of.

    Args:
        trials: by kind; none of an artifact that was not measured.
        counted: for each of them, the runs whose data are in the measurement: none of a trial
            that was not accepted.
    """

    trials: Mapping[TrialKind, Trial] = field(default_factory=dict)
    counted: Mapping[TrialKind, tuple[Run, ...]] = field(default_factory=dict)


def read_material(root: Path, measurements: Sequence[Measurement]) -> list[Material]:
    """The raw runs behind each of these measurements of a workspace, in the same order."""
    with Store(root / "store.db") as store:
        trials = store.trials()
    groups = {trial.key: group for group in siblings(trials) for trial in group.values()}
    return [_material(groups.get(m.trial, {})) for m in measurements]


def _material(trials: Mapping[TrialKind, Trial]) -> Material:
    counted = {
        kind: counting_runs(trial) if trial.status == "accepted" else ()
        for kind, trial in trials.items()
    }
    return Material(trials, counted)
