"""The rounds of a campaign in one visit: who is due, how often, and what becomes of each trial.

A round visits every artifact that is still due once, in a random order of its own, so that a drift
of the device falls on all alike.  How many runs there are follows from what is stored: a visit that
takes a trial up again decides as one that was never broken off.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from devices.conditions.preflight import StateSink
from devices.meter import Meter, Sampling, understood
from devices.recorder import RunRecorder
from devices.session import Job, Session
from pipeline.spool import Spool, make_run
from pipeline.stage import Workspace
from profiles.errors import AgentError, LeaseLost
from profiles.measure import Measure
from profiles.quality import counting_runs, judge
from profiles.records import Plan, Run, Trial
from profiles.stopping import runs_wanted, why_stopped

#: An energy run has three: idle, active, idle.
MOST_WINDOWS = 3


def wants_more(trial: Trial) -> bool:
    """Whether a trial is due for another run.

    Refused runs are made again, up to as many as it has runs at least; where none of the first
    counts, more would not either.
    """
    medians = _medians(trial)
    attempts, wanted = _attempts(trial), runs_wanted(medians, trial.plan)
    if len(medians) >= wanted or (not medians and attempts >= trial.plan.runs):
        return False
    return attempts < wanted + trial.plan.runs


def ending(trial: Trial, early: str = "") -> tuple[str, str]:
    """The status and the reason with which a trial is closed.

    Args:
        trial: with all its runs.
        early: why no more runs can be made now, where more were due.
    """
    verdict = judge(trial)
    if early and len(verdict.runs) < trial.plan.runs:
        # What there is stays: the next campaign goes on from here.
        runs = f"{len(verdict.runs)} of {trial.plan.runs} runs"
        return "open", f"{early} after {runs}; run again to go on"
    if verdict.status == "refused":
        return "refused", verdict.why()
    medians = _medians(trial)
    stopped = why_stopped(medians, trial.plan, _attempts(trial) - len(medians))
    return "accepted", f"{early}: {stopped}" if early else stopped


def _medians(trial: Trial) -> list[float]:
    return [float(np.median(run.samples_ns)) for run in counting_runs(trial)]


def _attempts(trial: Trial) -> int:
    return sum(run.complete for run in trial.runs)


@dataclass(slots=True)
class Tally:
    """What a campaign has come to over all its visits.

    Args:
        runs: made to their end.
        ended: keys of the trials that this campaign is done with, measured or not.
        turn: keys of the trials that a process is measuring now; what breaks off breaks theirs.
    """

    runs: int = 0
    ended: set[str] = field(default_factory=set)
    turn: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ground:
    """What the rounds of one visit stand on.

    Args:
        session: the visit.
        readings: the device's state, for the record of each run.
        meter: its power sensor, where energy is due and it has one.
        job: what the agent is to do for a trial.
        name: a trial's artifact in a few words.
        tell: told while the device is waited for.
        ends_s: the monotonic second after which nothing new is begun; ``None`` for never.
        together: whether trials of one group share each process and take turns in it.
    """

    workspace: Workspace
    spool: Spool
    session: Session
    settings: Measure
    readings: Mapping[str, Any]
    meter: Meter | None
    job: Callable[[Trial], Job]
    name: Callable[[Sequence[Trial]], str]
    tell: StateSink
    ends_s: float | None
    together: bool

    def sampling(self, plan: Plan) -> Sampling | None:
        """What the power sensor is read by; only for energy."""
        return self.meter.sampling() if self.meter and plan.kind == "energy" else None

    def deadline_s(self, plan: Plan) -> int:
        """Longest time one process may take: a plan's windows come on top of the recipe's."""
        sampling = self.sampling(plan)
        window_ns = max(plan.window_ns, sampling.window_ns if sampling else 0)
        return self.settings.deadline_seconds + math.ceil(MOST_WINDOWS * window_ns / 1e9)


class Rounds:
    """Rounds over trials of one kind.

    Args:
        ground: what they stand on.
        trials: open ones, with their runs so far.
        tally: taken along.
    """

    def __init__(self, ground: Ground, trials: Sequence[Trial], tally: Tally) -> None:
        self._ground = ground
        self._session = ground.session
        self._store = ground.workspace.store
        self._trials = {trial.key: trial for trial in trials}
        self._due = {trial.key for trial in trials if wants_more(trial)}
        self._tally = tally

    def measure(self) -> None:
        """Make rounds until no trial is due, or the time is over; then close them all.

        Raises:
            DeviceError: the visit has broken off; trials that were not closed go on in the next.
        """
        early = ""
        for round_ in itertools.count():
            for turn in self._turns(round_):
                if self._is_over():
                    early = f"the budget of {self._ground.settings.budget_minutes:g} minutes ended"
                    break
                self._take(turn, round_)
            if early or not self._due:
                break
        for trial in self._trials.values():
            if trial.key not in self._tally.ended:
                status, reason = ending(trial, early if trial.key in self._due else "")
                self._close(trial, status, reason)

    def _is_over(self) -> bool:
        ends_s = self._ground.ends_s
        return ends_s is not None and time.monotonic() >= ends_s

    def _turns(self, round_: int) -> list[list[Trial]]:
        """The trials of a round, by process.

        What shares its processes, and has a fixed number of runs, does so to the end: a block whose
        refused run was made again alone would find other caches.
        """
        together = self._ground.together
        due = [
            trial
            for trial in self._trials.values()
            if (trial.key in self._due or (together and self._stays(trial)))
            and _attempts(trial) <= round_
        ]
        if not any(trial.key in self._due for trial in due):
            return []
        np.random.default_rng([due[0].plan.seed, round_]).shuffle(due)
        return [due] if together else [[trial] for trial in due]

    def _stays(self, trial: Trial) -> bool:
        fixed = trial.plan.max_runs == trial.plan.runs
        return fixed and trial.key not in self._tally.ended

    def _take(self, turn: Sequence[Trial], round_: int) -> None:
        """One turn: the device is within its gates, and measures."""
        ground, plan = self._ground, turn[0].plan
        most = max(runs_wanted(_medians(trial), plan) for trial in turn)
        kind = "" if plan.kind == "latency" else f"{plan.kind}, "
        ground.workspace.progress(
            f"measure: {self._session.device.id} {kind}round {round_ + 1}/{max(most, round_ + 1)},"
            f" {ground.name(turn)}"
        )
        now = self._session.settle(turn[0].condition, ground.tell)
        try:
            self._one_process(turn, round_, {**ground.readings, **now, **self._when(round_)})
        except AgentError as error:
            for trial in turn:
                self._due.discard(trial.key)
                self._close(trial, "failed", error.message)

    def _when(self, round_: int) -> dict[str, int]:
        """What runs are paired by: a run's number counts those that broke off, too."""
        return {"round": round_, "fence": self._session.lease.fence}

    def _close(self, trial: Trial, status: str, reason: str) -> None:
        self._store.close_trial(trial.key, status, reason, fence=self._session.lease.fence)
        self._tally.ended.add(trial.key)

    def _one_process(
        self, trials: Sequence[Trial], round_: int, readings: Mapping[str, Any]
    ) -> None:
        """One agent process; whatever it delivers is stored, also when it or the link breaks."""
        ground, first = self._ground, trials[0]
        recorder = RunRecorder([trial.key for trial in trials], ground.spool.line)
        complete = lost = False
        numbers = {trial.key: len(trial.runs) for trial in trials}
        ground.spool.begin(numbers, self._session.lease.fence, readings)
        self._tally.turn = frozenset(numbers)
        try:
            self._session.run(
                first.runtime,
                [ground.job(trial) for trial in trials],
                condition=first.condition,
                plan=first.plan,
                seed=first.plan.seed * 1000 + round_,
                deadline_s=ground.deadline_s(first.plan),
                recorder=recorder,
                sampling=ground.sampling(first.plan),
            )
            complete = True
            self._tally.turn = frozenset()
        except LeaseLost:
            lost = True  # another was on the device meanwhile: these samples mean nothing
            raise
        finally:
            heard = [key for key, job in recorder.recordings.items() if job.warmup or job.samples]
            self._keep(
                {
                    key: make_run(number, complete, recorder, key, readings)
                    for key, number in numbers.items()
                    if complete or (key in heard and not lost)
                }
            )
            ground.spool.end()

    def _keep(self, runs: Mapping[str, Run]) -> None:
        """Store the runs of one process, and see whose last they were."""
        runs = {key: self._understood(self._trials[key], run) for key, run in runs.items()}
        self._store.add_runs(runs, fence=self._session.lease.fence)
        for key, run in runs.items():
            self._tally.runs += run.complete
            trial = self._trials[key]
            trial = self._trials[key] = replace(trial, runs=(*trial.runs, run))
            if not wants_more(trial):
                self._due.discard(key)

    def _understood(self, trial: Trial, run: Run) -> Run:
        meter = self._ground.meter
        if run.complete and meter and trial.plan.kind == "energy":
            return replace(run, details=understood(meter, run.details))
        return run
