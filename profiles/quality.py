"""Whether data may be believed: every reason to refuse it, and what to do about each.

Pure functions of what is stored.  A run that is refused is left out and made again; a trial is
refused when too few runs are left, or when what they say moves.  What is refused is kept, marked,
and never averaged in.  What a device does not tell is never a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from profiles.energy import energy_of_run, energy_reasons
from profiles.findings import Reason, ReasonCode
from profiles.records import Plan, Run, Trial, TrialKind
from profiles.series import drifted, moved
from profiles.units import format_celsius, format_mhz, plausible_mdegc

#: A clock that moves by more than this share of itself moves a latency by as much, which is the
#: half-width that an interval is to have where a recipe does not say otherwise.
CLOCK_SHARE = 0.02
#: Threads that wait for a processor, or one that a hypervisor takes away, for more than this share
#: of the time are disturbed by more than a system's own housekeeping.
WAITED_SHARE = 0.05
#: Where a device has no gate for foreign load, others may use so much of its cores.
FOREIGN_SHARE = 0.25
#: The processors' counters count in steps of this, in ms, for each core.
#: Source: proc(5), /proc/stat: units of USER_HZ, 1/100 of a second.
TICK_MS = 10
#: What is timed for less than this cannot be judged by such counters; the whole process can.
LEAST_MS = 10 * TICK_MS

#: What a kind of trial is there to show is no reason against it.
_SHOWN: Mapping[TrialKind, frozenset[ReasonCode]] = {
    "sustained": frozenset({"throttled", "frequency", "not-stationary"}),
    "app": frozenset({"frequency", "not-stationary"}),
}
#: Nothing of these is timed.
_UNTIMED: frozenset[TrialKind] = frozenset({"memory", "operators"})
#: These are looked at for their latency, which may move.
_SERIES: frozenset[TrialKind] = frozenset({"latency", "sustained", "app"})

_LET_COOL = "let it cool between runs, lower its temperature gate, or give it a fan"
_PIN = "measure pinned, or accept it with measure.tolerate: [frequency]"
_ALONE = "end what else runs on the device, or give it a longer gates.settle_s to calm down"
_STEADY = "warm up for longer (measure.warmup_seconds), measure pinned, or see what else runs there"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial's data are worth.

    Args:
        status: ``accepted`` or ``refused``.
        reasons: why it is refused; none where it is accepted.
        remarks: what to keep in mind about it.
        runs: those that count, in the order made; also of a refused trial.
    """

    status: str
    reasons: tuple[Reason, ...]
    remarks: tuple[Reason, ...]
    runs: tuple[Run, ...]

    def why(self) -> str:
        """The reasons in one line, with what to do."""
        return "; ".join(f"{each.text} ({each.advice})" for each in self.reasons)


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A complete run.

    Args:
        refused: what it is refused for; it counts where there is nothing.
        remarks: what is only to be remarked upon, because it is tolerated or looked for.
    """

    run: Run
    refused: tuple[Reason, ...]
    remarks: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What others took while a run was timed, in cores; ``None`` for what is not told.

    What one step of the counters may make of nothing is taken off.

    Args:
        foreign_cores: worked for others.
        waited_cores: were wanted, and not had, by its threads.
        stolen_cores: were taken away by a hypervisor.
    """

    foreign_cores: float | None
    waited_cores: float | None
    stolen_cores: float | None


def judge_run(run: Run, plan: Plan) -> tuple[Reason, ...]:
    """Everything that speaks against one run, tolerated or not."""
    if plan.kind in _UNTIMED:
        return ()
    found = [_throttled(run), _clock_moved(run), _foreign_load(run)]
    energy = energy_reasons(energy_of_run(run.details)) if plan.kind == "energy" else ()
    return (*(reason for reason in found if reason), *energy)


def counting_runs(trial: Trial) -> tuple[Run, ...]:
    """The runs that count: complete, and not refused."""
    return tuple(judged.run for judged in judge_runs(trial) if not judged.refused)


def judge(trial: Trial, tolerate: Collection[str] | None = None) -> Verdict:
    """Whether a trial's data are accepted, and what is to be said about them.

    Args:
        trial: with all its runs.
        tolerate: codes that are tolerated; those that each run was made under if not given.
    """
    judged_runs = judge_runs(trial, tolerate)
    runs = tuple(judged.run for judged in judged_runs if not judged.refused)
    refused = [reason for judged in judged_runs for reason in judged.refused]
    noted = [reason for judged in judged_runs for reason in judged.remarks]
    total = len(judged_runs)
    left_out = _summed(refused, total, "refused")
    reasons, remarks = [], _summed(noted, total, "concerned")
    if len(runs) < trial.plan.runs:
        text = f"{len(runs)} of {trial.plan.runs} runs could be had"
        advice = "see what the others were refused for" if refused else "run again for the rest"
        reasons = [Reason("too-few-runs", text, advice), *left_out]
    else:
        remarks = [*left_out, *remarks]
    if shaky := _not_stationary(runs, trial.plan.kind):
        may = shaky.code in _accepted(runs[-1], trial.plan.kind, tolerate)
        (remarks if may else reasons).append(shaky)
    return Verdict("refused" if reasons else "accepted", tuple(reasons), tuple(remarks), runs)


def judge_runs(trial: Trial, tolerate: Collection[str] | None = None) -> tuple[JudgedRun, ...]:
    """Each complete run of a trial, in the order made; arguments as for :func:`judge`."""
    complete = [run for run in trial.runs if run.complete]
    # Of the pilot alone: runs that come later do not change which of it count.
    pilot = complete[: trial.plan.runs]
    usual = _usual_clock(pilot) if trial.plan.kind not in _UNTIMED else None
    found = []
    for run in complete:
        accepted = _accepted(run, trial.plan.kind, tolerate)
        reasons = [*judge_run(run, trial.plan), *_odd_clock(run, usual)]
        refused = tuple(reason for reason in reasons if reason.code not in accepted)
        remarks = tuple(reason for reason in reasons if reason.code in accepted)
        found.append(JudgedRun(run, refused, remarks))
    return tuple(found)


def tolerated(trial: Trial) -> frozenset[str]:
    """The codes that any of a trial's complete runs was made to tolerate."""
    return frozenset(code for run in trial.runs if run.complete for code in _tolerated(run))


def _accepted(run: Run, kind: TrialKind, tolerate: Collection[str] | None) -> frozenset[str]:
    """The codes that are no reason against a run."""
    tolerates = _tolerated(run) if tolerate is None else frozenset(tolerate)
    return _SHOWN.get(kind, frozenset[str]()) | tolerates


def _summed(reasons: Sequence[Reason], total: int, what: str) -> list[Reason]:
    """One reason for each code, the first one's figures standing for all."""
    by_code: dict[ReasonCode, list[Reason]] = {}
    for reason in reasons:
        by_code.setdefault(reason.code, []).append(reason)
    return [
        Reason(code, f"{len(same)} of {total} runs {what}: {same[0].text}", same[0].advice)
        for code, same in by_code.items()
    ]


def _throttled(run: Run) -> Reason | None:
    before, limit = _part(run, "preflight"), _limits(run).get("throttle_mdegc")
    hottest = _hottest(run)
    if (before.get("thermal_status") or 0) > 0:
        text = f"its thermal status was {before['thermal_status']}, not 0"
    elif before.get("throttled"):
        text = "the system held its processors back to cool them"
    elif None not in (limit, hottest) and hottest >= limit:
        slows = f"slows down from {format_celsius(limit)} °C upward"
        text = f"it was {format_celsius(hottest)} °C warm, and {slows}"
    else:
        return None
    return Reason("throttled", text, _LET_COOL)


def _hottest(run: Run) -> Any:
    """The hottest zone in m°C, or ``None``.

    Where only some of a device's zones count it is of what was read, with names, before the process
    began: what the agent reads has none.
    """
    zones = _limits(run).get("temperature_zones")
    named = _part(run, "preflight").get("temperatures_mdegc") or {}
    counts = {
        name: not zones or any(fnmatchcase(name, pattern) for pattern in zones) for name in named
    }
    told: list[Any] = []
    if zones:
        told.append({name: mdegc for name, mdegc in named.items() if counts[name]})
    if all(counts.values()):
        told += [_part(run, when).get("temperatures_mdegc") for when in ("warm", "after")]
    return max((mdegc for one in told for mdegc in plausible(one)), default=None)


def plausible(told: Mapping[str, int] | Sequence[int] | None) -> tuple[int, ...]:
    """The temperatures in m°C of one look at a device, without numbers that cannot be one."""
    values = told.values() if isinstance(told, Mapping) else told or ()
    return tuple(mdegc for value in values if (mdegc := plausible_mdegc(value)) is not None)


def _clocks(run: Run) -> list[int]:
    return [khz for _, _, khz in run.details.get("slices", ()) if khz]


def _clock_moved(run: Run) -> Reason | None:
    clocks = _clocks(run)
    if not clocks or max(clocks) <= min(clocks) * (1 + CLOCK_SHARE):
        return None
    low, high = format_mhz(min(clocks)), format_mhz(max(clocks))
    text = f"the clock moved between {low} and {high} MHz while it was timed"
    return Reason("frequency", text, _PIN)


def _usual_clock(runs: Iterable[Run]) -> float | None:
    """The clock that most runs are near to; of equally many the one that came first."""
    clocks = [float(np.median(clocks)) for run in runs if (clocks := _clocks(run))]
    alike = {clock: sum(_near(clock, other) for other in clocks) for clock in clocks}
    return max(alike, key=alike.__getitem__, default=None)


def _odd_clock(run: Run, usual: float | None) -> Iterator[Reason]:
    clocks = _clocks(run)
    if usual is None or not clocks or _near(clock := float(np.median(clocks)), usual):
        return
    # A clock that moves is told by itself.
    if not _clock_moved(run):
        text = f"it ran at {format_mhz(clock)} MHz, others at {format_mhz(usual)} MHz"
        yield Reason("frequency", text, _PIN)


def _near(one: float, other: float) -> bool:
    return max(one, other) <= min(one, other) * (1 + CLOCK_SHARE)


def _foreign_load(run: Run) -> Reason | None:
    seen = disturbance(run)
    cores = _cores(run)
    limit = _limits(run).get("foreign_load_cores")
    if limit is None and cores:
        limit = FOREIGN_SHARE * cores
    if limit is not None and (seen.foreign_cores or 0) > limit:
        foreign = f"{seen.foreign_cores:.2g} cores"
        text = f"others kept {foreign} busy while it was timed, not at most {limit:g}"
        return Reason("foreign-load", text, _ALONE)
    if (waited := seen.waited_cores or 0) > WAITED_SHARE:
        text = f"its threads waited for a processor for {100 * waited:.0f} % of the time"
        return Reason("foreign-load", text, _ALONE)
    if (stolen := seen.stolen_cores or 0) > WAITED_SHARE:
        text = f"the hypervisor took its processors away for {100 * stolen:.0f} % of the time"
        return Reason("foreign-load", text, "measure where no other virtual machines run")
    return None


def disturbance(run: Run) -> Disturbance:
    """What others took of the time that a run is judged by."""
    begin, end = _watched(run)
    elapsed_ms = (_spent(begin, end, "at_ns") or 0) / 1e6
    if elapsed_ms <= 0:
        return Disturbance(None, None, None)
    coarse_ms = TICK_MS * (_cores(run) or 1)

    def cores(spent_ms: Any, step_ms: int) -> float | None:
        return None if spent_ms is None else max(spent_ms - step_ms, 0) / elapsed_ms

    busy, own = _spent(begin, end, "busy_ms"), _spent(begin, end, "own_ms")
    return Disturbance(
        cores(None if None in (busy, own) else busy - own, coarse_ms),
        # One turn of another is no load.
        cores(_spent(begin, end, "waited_ms"), TICK_MS),
        cores(_spent(begin, end, "stolen_ms"), coarse_ms),
    )


def _cores(run: Run) -> Any:
    return _part(run, "preflight").get("device", {}).get("cores")


def _watched(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Readings before and after what is judged: the timed part, or where it is short, all of it."""
    before, warm, after = (_part(run, when) for when in ("before", "warm", "after"))
    timed_ms = (_spent(warm, after, "at_ns") or 0) / 1e6
    return (before if timed_ms < LEAST_MS and "at_ns" in before else warm), after


def _not_stationary(runs: Sequence[Run], kind: TrialKind) -> Reason | None:
    """A jump in most of the runs, or a drift over them.

    One run that jumps is what several runs are made for.
    """
    if kind not in _SERIES or not runs:
        return None
    told = [text for run in runs if (text := moved(run.samples_ns))]
    if 2 * len(told) > len(runs):
        text = f"in {len(told)} of {len(runs)} runs {told[0]}"
        return Reason("not-stationary", text, _STEADY)
    if text := drifted([float(np.median(run.samples_ns)) for run in runs]):
        return Reason("not-stationary", text, _STEADY)
    return None


def _part(run: Run, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.environment.get(name) or {}
    return found


def _limits(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _part(run, "preflight").get("limits") or {}
    return found


def _tolerated(run: Run) -> frozenset[ReasonCode]:
    return frozenset(_limits(run).get("tolerate") or ())


def _spent(begin: Mapping[str, Any], end: Mapping[str, Any], name: str) -> Any:
    """How far a counter went on meanwhile; ``None`` where it is not told."""
    return end[name] - begin[name] if name in begin and name in end else None
