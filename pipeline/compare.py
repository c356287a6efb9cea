"""Is it slower than before?  Workspaces of several visits, or two artifact files in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import measure_files
from pipeline.overview import overview
from pipeline.stage import Progress
from profiles.canonical import digest, file_sha256
from profiles.comparison import effect, medians_by_round
from profiles.errors import UsageError
from profiles.findings import Measurement
from profiles.measure import Measure
from profiles.quality import counting_runs
from profiles.records import Condition, Trial
from profiles.regression import Change, Nights, Rounds, regressions
from profiles.statistics import geometric_mean
from profiles.store import Store


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
        status: of the latency now, ``accepted`` or why there is none; empty if not measured.
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
    status: str

    @property
    def is_lost(self) -> bool:
        """Whether something that had a latency has none now: it was refused, or has failed."""
        return self.before_ns is not None and self.status in ("refused", "failed")


@dataclass(frozen=True, slots=True)
class _Latency:
    """The latency of one artifact in one workspace: no medians if it is not accepted."""

    measurement: Measurement
    medians_ns: tuple[float, ...]
    pilot: int


#: What must be the same on both sides: another agent or condition is another figure.
_Setting = tuple[Any, ...]
_Visit = Mapping[_Setting, _Latency]
#: What became of a latency that is not accepted.
_LOST = {"refused": "was refused", "failed": "failed", "open": "was not finished"}


def compare_workspaces(
    baseline: Path, workspace: Path, history: Sequence[Path] = ()
) -> list[Comparison]:
    """Compare the latencies of a workspace with those of earlier ones.

    Of a workspace in which a recipe was run it is those of the last run that are compared: what an
    earlier build took is not what it takes now.  Of others, those of the latest artifacts.

    Args:
        baseline: what it is compared with.
        workspace: the new visit.
        history: visits before the baseline; a verdict takes three in all, for what visits differ
            by cannot be seen in fewer.

    Returns:
        One for each model, variant, format, device and condition that was accepted in the
        workspace or the baseline.

    Raises:
        UsageError: if one is no workspace, is named twice, or the two have nothing in common.
    """
    roots = [*history, baseline, workspace]
    if len({root.resolve() for root in roots}) < len(roots):
        raise UsageError("one workspace is named twice", "name a workspace for each visit")
    visits = [_visit(root) for root in roots]
    settings = {
        setting: [_look_up(visit, setting) for visit in visits]
        for visit in visits[-2:]
        for setting, latency in visit.items()
        if latency.medians_ns
    }
    if not any(before and now for *_, before, now in settings.values()):
        raise UsageError(
            f"{baseline} and {workspace} have no accepted latency in common",
            "it takes the same model, variant, format, device, agent and condition in both",
        )
    shown = [settings[setting] for setting in sorted(settings, key=repr)]
    changes = regressions([_nights(sides) for sides in shown])
    return [
        _of_visits(str(baseline), sides, str(workspace), change)
        for sides, change in zip(shown, changes, strict=True)
    ]


def _nights(sides: Sequence[_Latency | None]) -> Nights:
    *earlier, now = [side.medians_ns if side else () for side in sides]
    m = next(side.measurement for side in sides if side and side.medians_ns)
    return Nights(m.variant, tuple(earlier), now, repr(_place(m)))


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
    turns = f"compare-{digest(sorted(shas))}"
    plan = replace(settings.plan(), turns=turns, max_runs=settings.runs)
    found = measure_files(paths, device_id, inventory, root, settings, progress, [plan])
    before, now = [next(m for m in found if m.artifact_sha256 == sha) for sha in shas]
    return _of_files(paths, before, now, root)


def _of_files(
    paths: tuple[Path, Path], before: Measurement, now: Measurement, root: Path
) -> Comparison:
    with Store(root / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials([before.trial, now.trial])}
    sides = [
        medians_by_round(trials[m.trial]) if m.status == "accepted" else {} for m in (before, now)
    ]
    shared = sorted(sides[0].keys() & sides[1].keys())
    first, second = [tuple(side[at] for at in shared) for side in sides]
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
        status=now.status,
    )


def _run_medians(trial: Trial) -> tuple[float, ...]:
    return tuple(float(np.median(run.samples_ns)) for run in counting_runs(trial))


def _visit(root: Path) -> _Visit:
    """By setting, what a workspace says of the latest artifact: accepted, if it ever was."""
    measurements = [row.measurement for row in overview(root).rows]
    with Store(root / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials([m.trial for m in measurements])}
    begun = {key: place for place, key in enumerate(trials)}
    found: dict[_Setting, _Latency] = {}
    for m in sorted(measurements, key=lambda m: begun.get(m.trial, -1)):
        known = found.get(_setting(m))
        same = known and known.measurement.artifact_sha256 == m.artifact_sha256
        if m.status == "accepted":
            trial = trials[m.trial]
            found[_setting(m)] = _Latency(m, _run_medians(trial), trial.plan.runs)
        elif not (same and known and known.medians_ns):
            found[_setting(m)] = _Latency(m, (), 0)
    return found


def _look_up(visit: _Visit, setting: _Setting) -> _Latency | None:
    """A setting's latency; or its artifact's refusal, which was of no device: by parity."""
    artifact = setting[:_PLACE]
    nowhere = (one for key, one in visit.items() if key[:_PLACE] == artifact)
    refused = next((one for one in nowhere if not one.measurement.trial), None)
    return visit.get(setting, refused)


#: How many parts of a setting are the artifact's; the others are the place's.
_PLACE = 3


def _setting(m: Measurement) -> _Setting:
    return (m.model, m.variant, m.format, *_place(m))


def _place(m: Measurement) -> tuple[Any, ...]:
    device = m.device if m.device_serial == "unknown" else m.device_serial
    return (device, m.transport, m.agent, m.condition)


def _of_visits(
    baseline: str, sides: Sequence[_Latency | None], workspace: str, change: Change
) -> Comparison:
    *_, before, now = sides
    earlier = [side for side in sides[:-1] if side and side.medians_ns]
    new = now if now and now.medians_ns else None
    m = (new or earlier[-1]).measurement
    if new is None:
        change = replace(change, reason=_missing(now, workspace))
    elif not earlier:
        change = replace(change, reason=_missing(before, baseline))
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
        status=now.measurement.status if now else "",
    )


def _missing(side: _Latency | None, workspace: str) -> str:
    if side is None:
        return f"it was not measured in {workspace}"
    m = side.measurement
    return f"it {_LOST[m.status]} in {workspace}: {m.reason}"
