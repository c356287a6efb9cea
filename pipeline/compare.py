"""Is it slower than before?  Workspaces of several visits, or two artifact files in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import measure_files
from pipeline.overview import read_measurements
from pipeline.stage import Progress
from profiles.canonical import digest, file_sha256
from profiles.comparison import effect
from profiles.errors import UsageError
from profiles.quality import counting_runs
from profiles.recipe import Measure
from profiles.records import Condition, Measurement, Trial
from profiles.regression import Change, Nights, Rounds, regressions
from profiles.statistics import geometric_mean
from profiles.store import Store

#: Seeds of comparisons lie below: a device's agent takes a thousand times that, in 32 bits.
_SEEDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """One artifact, or a pair of files, before and now.

    Args:
        model, variant, format, device, emulated, condition: what was compared.
        before, now: how the two sides are called: workspaces or files.
        before_ns, now_ns: geometric mean of the run medians that were compared; over several
            visits before, of the visits' means.  ``None`` for a side without an accepted
            measurement.
        visits: how many there were before, the baseline included; 1 for files in turns.
        runs: how many runs were made now.
        change: the verdict, and the ratio of now to before with its interval.
    """

    model: str
    variant: str
    format: str
    device: str
    emulated: bool
    condition: Condition
    before: str
    now: str
    before_ns: float | None
    now_ns: float | None
    visits: int
    runs: int
    change: Change


@dataclass(frozen=True, slots=True)
class _Visit:
    """The accepted latency of one artifact in one workspace."""

    measurement: Measurement
    medians_ns: tuple[float, ...]
    pilot: int


#: What must be the same on both sides: another agent or condition is another figure.
_Setting = tuple[Any, ...]


def compare_workspaces(
    baseline: Path, workspace: Path, history: Sequence[Path] = ()
) -> list[Comparison]:
    """Compare the latest accepted latencies of a workspace with those of earlier ones.

    Args:
        baseline: what it is compared with.
        workspace: the new visit.
        history: visits before the baseline; a verdict takes three in all, for what visits differ
            by cannot be seen in fewer.

    Returns:
        One for each model, variant, format, device and condition of the workspace or the baseline.

    Raises:
        UsageError: if one is no workspace, is named twice, or the two have nothing in common.
    """
    roots = [*history, baseline, workspace]
    if len({root.resolve() for root in roots}) < len(roots):
        raise UsageError("one workspace is named twice", "name a workspace for each visit")
    *before, now = [_visits(root) for root in roots]
    if not now.keys() & before[-1].keys():
        raise UsageError(
            f"{baseline} and {workspace} have no accepted latency in common",
            "it takes the same model, variant, format, device, agent and condition in both",
        )
    settings = sorted(now.keys() | before[-1].keys(), key=repr)
    sides = [([visits.get(setting) for visits in before], now.get(setting)) for setting in settings]
    changes = regressions(
        [
            Nights(repr(setting), tuple(_medians(visit) for visit in earlier), _medians(new))
            for setting, (earlier, new) in zip(settings, sides, strict=True)
        ]
    )
    return [
        _of_visits(
            str(baseline), [visit for visit in earlier if visit], str(workspace), new, change
        )
        for (earlier, new), change in zip(sides, changes, strict=True)
    ]


def compare_files(
    paths: tuple[Path, Path],
    device_id: str,
    inventory: Path,
    root: Path,
    settings: Measure,
    progress: Progress,
) -> Comparison:
    """Measure two artifact files in turns, in one visit, and compare them round by round.

    The same files on the same device are not measured again: their comparison is taken up, or
    found, in the workspace.

    Args:
        paths: what was before, and what is now.
        device_id, inventory: where.
        root: workspace for the results.
        settings: threads, iterations and how many rounds: ``runs``.
        progress: told what goes on.

    Raises:
        UsageError: for files that cannot be used or are the same, or an unknown device.
        DeviceError: if the device cannot be reached or leaves.
    """
    for path in paths:
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
    shas = [file_sha256(path) for path in paths]
    if shas[0] == shas[1]:
        raise UsageError(f"{paths[0]} and {paths[1]} are the same file, byte for byte")
    # Trials of their own: what was measured in another visit was not measured in turns with it.
    seed = int(digest(["compare", shas])[:12], 16) % _SEEDS
    fixed = {
        "max_runs": settings.runs,
        "seed": seed,
        "app": False,
        "memory": False,
        "energy": False,
    }
    found = measure_files(
        paths, device_id, inventory, root, settings.model_copy(update=fixed), progress
    )
    before, now = [next(m for m in found if m.artifact_sha256 == sha) for sha in shas]
    return _of_files(paths, before, now, root)


def _of_files(
    paths: tuple[Path, Path], before: Measurement, now: Measurement, root: Path
) -> Comparison:
    with Store(root / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials([before.trial, now.trial])}
    sides = [_by_round(trials[m.trial]) if m.status == "accepted" else {} for m in (before, now)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    first, second = [tuple(side[number] for number in shared) for side in sides]
    [change] = regressions([Rounds(paths[1].name, first, second)])
    for path, m in zip(paths, (before, now), strict=True):
        if m.status != "accepted":
            change = replace(change, reason=f"{path.name} is {m.status}: {m.reason}")
    return Comparison(
        model=paths[1].name,
        variant=now.variant,
        format=now.format,
        device=now.device,
        emulated=now.emulated,
        condition=now.condition,
        before=str(paths[0]),
        now=str(paths[1]),
        before_ns=geometric_mean(first) if first else None,
        now_ns=geometric_mean(second) if second else None,
        visits=1,
        runs=len(shared),
        change=change,
    )


def _by_round(trial: Trial) -> dict[int, float]:
    """The medians of the runs that count, by the round they were made in."""
    return {run.number: float(np.median(run.samples_ns)) for run in counting_runs(trial)}


def _visits(root: Path) -> dict[_Setting, _Visit]:
    """By setting, the latest accepted latency in a workspace."""
    measurements = [m for m in read_measurements(root) if m.status == "accepted"]
    with Store(root / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials([m.trial for m in measurements])}
    begun = list(trials)
    return {
        _setting(m): _Visit(
            m, tuple(_by_round(trials[m.trial]).values()), trials[m.trial].plan.runs
        )
        for m in sorted(measurements, key=lambda m: begun.index(m.trial))
    }


def _setting(m: Measurement) -> _Setting:
    place = m.device if m.device_serial == "unknown" else m.device_serial
    return (m.model, m.variant, m.format, place, m.transport, m.agent, m.condition)


def _medians(visit: _Visit | None) -> tuple[float, ...]:
    return visit.medians_ns if visit else ()


def _of_visits(
    baseline: str, earlier: Sequence[_Visit], workspace: str, new: _Visit | None, change: Change
) -> Comparison:
    m = (new or earlier[-1]).measurement
    if not earlier:
        change = replace(change, reason=f"it was not measured in {baseline}")
    elif new is None:
        change = replace(change, reason=f"it was not measured in {workspace}")
    elif len(earlier) == 1:
        # What the visits' own runs vary by is known, and better than nothing; not a verdict.
        last = earlier[-1]
        within = effect(
            last.medians_ns, new.medians_ns, paired=False, pilots=(last.pilot, new.pilot)
        )
        reason = f"{change.reason}; the interval is of these two visits alone"
        change = replace(change, effect=within, reason=reason)
    means = [geometric_mean(visit.medians_ns) for visit in earlier]
    return Comparison(
        model=m.model,
        variant=m.variant,
        format=m.format,
        device=m.device,
        emulated=m.emulated,
        condition=m.condition,
        before=baseline,
        now=workspace,
        before_ns=geometric_mean(means) if means else None,
        now_ns=geometric_mean(new.medians_ns) if new else None,
        visits=len(earlier),
        runs=len(new.medians_ns) if new else 0,
        change=change,
    )
