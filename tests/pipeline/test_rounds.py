"""Rounds of a campaign: kinds, turns, when it is enough, and taking it up again."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from devices.lab import DeviceState, Lab
from devices.session import Session
from pipeline import campaign, rounds
from pipeline.flow import Failure, measure_all
from pipeline.rounds import ending, wants_more
from pipeline.stage import Workspace
from profiles.errors import ConnectionLost, DeadlineExceeded
from profiles.measure import Measure
from profiles.records import Run, Trial
from profiles.store import Store
from tests import builders
from tests.pipeline.scripted import Bench, bench, settings, watch
from tests.profiles.test_quality import watched

METERS = Path(__file__).parent.parent / "golden/meters"
ALL = {"app": True, "memory": True, "energy": True, "sustained_seconds": 2.0}


@pytest.fixture
def one(tmp_path: Path) -> Bench:
    made = bench(tmp_path)
    made.truth()
    return made


def by_kind(trials: list[Trial]) -> dict[str, Trial]:
    return {trial.plan.kind: trial for trial in trials}


# When it is enough


PLAN = builders.plan(runs=3, max_runs=6, target=0.02)


def runs(*levels: float, refused: tuple[int, ...] = ()) -> tuple[Run, ...]:
    return tuple(
        watched(number, [round(100_000 * level)], foreign_cores=4.0 * (number in refused))
        for number, level in enumerate(levels)
    )


@pytest.mark.parametrize(
    ("levels", "refused", "more"),
    [
        ((), (), True),
        ((1.0, 1.0), (), True),
        ((1.0, 1.0, 1.0), (), False),
        ((1.0, 1.05, 0.95), (), True),  # what the pilot varies by wants all that may be made
        ((1.0, 1.05, 0.95, 1.0, 1.0), (), True),
        ((1.0, 1.05, 0.95, 1.0, 1.0, 1.0), (), False),
        ((1.0, 1.0, 1.0), (1,), True),
        ((1.0, 1.0, 1.0, 1.0), (1,), False),
        ((1.0,) * 5, (1, 2, 3), True),
        ((1.0,) * 6, (1, 2, 3, 4), False),  # three extra are as many as it has at least
        ((1.0,) * 2, (0, 1), True),
        ((1.0,) * 3, (0, 1, 2), False),
    ],
)
def test_how_many_runs_there_are(levels, refused, more):
    trial = builders.trial(plan_=PLAN, runs=runs(*levels, refused=refused))
    assert wants_more(trial) is more


@pytest.mark.parametrize(
    ("together", "most", "takers"), [(True, 3, 2), (True, 6, 1), (False, 3, 1)]
)
def test_what_shares_a_process_does_so_to_the_end(together, most, takers):
    """One block's refused run is made again beside the others, whose caches it had."""
    plan = replace(PLAN, max_runs=most)
    done = builders.trial(sha256="a" * 64, plan_=plan, runs=runs(1.0, 1.0, 1.0))
    due = builders.trial(sha256="b" * 64, plan_=plan, runs=runs(1.0, 1.0, 1.0, refused=(1,)))
    ground: Any = SimpleNamespace(session=None, workspace=SimpleNamespace(store=None))
    ground.together = together
    made = rounds.Rounds(ground, [done, due], rounds.Tally())
    assert [len(turn) for turn in made._turns(3)] == [takers]
    assert rounds.Rounds(ground, [done], rounds.Tally())._turns(3) == []


def test_a_trial_ends_with_its_reason():
    enough = builders.trial(plan_=PLAN, runs=runs(1.0, 1.0, 1.0))
    assert ending(enough) == ("accepted", "the interval is within 2 % after 3 runs")
    few = builders.trial(plan_=PLAN, runs=runs(1.0, 1.0, 1.0, refused=(0, 1, 2)))
    status, reason = ending(few)
    assert status == "refused"
    assert "others kept 4 cores busy" in reason
    assert "end what else runs" in reason


def test_what_was_refused_is_no_lack_of_time():
    shaky = builders.trial(plan_=PLAN, runs=runs(1.0, 1.05, 0.95, 1.0, 1.0, refused=(3, 4)))
    status, reason = ending(shaky)
    assert status == "accepted"
    assert reason.startswith("3 runs count, 2 were refused; the interval is ±")


def test_a_trial_that_the_time_was_not_enough_for_stays_open():
    begun = builders.trial(plan_=PLAN, runs=runs(1.0, 1.0))
    status, reason = ending(begun, "the budget of 5 minutes ended")
    assert status == "open"
    assert reason.startswith("the budget of 5 minutes ended after 2 of 3 runs; run again")
    wide = builders.trial(plan_=PLAN, runs=runs(1.0, 1.05, 0.95, 1.0))
    status, reason = ending(wide, "the budget of 5 minutes ended")
    assert status == "accepted"
    assert reason.startswith("the budget of 5 minutes ended: 4 runs were made")


# Turns


def test_a_round_visits_each_artifact_once_in_an_order_of_its_own(tmp_path, monkeypatch):
    made = bench(tmp_path, artifacts=6)
    made.truth()
    watch(made, monkeypatch)
    made.measure(settings(app=True, runs=4, max_runs=4))
    kinds = [plan["kind"] for plan in made.asked]
    assert kinds == ["latency"] * 24 + ["app"] * 18
    jobs = [plan["jobs"][0]["id"] for plan in made.asked]
    found = [tuple(jobs[start : start + 6]) for start in range(0, len(jobs), 6)]
    assert all(len(set(round_)) == 6 for round_ in found)
    assert len(set(found[:4])) == 4
    assert [plan["seed"] for plan in made.asked[:24:6]] == [0, 1, 2, 3]


def test_only_blocks_share_a_process(tmp_path, monkeypatch):
    made = bench(tmp_path, artifacts=3)
    made.truth()
    watch(made, monkeypatch)
    made.measure(settings(max_runs=3, threads=(1, 2)), together=True)
    assert [len(plan["jobs"]) for plan in made.asked] == [3] * 6
    assert [plan["threads"] for plan in made.asked] == [1] * 3 + [2] * 3


def test_runs_say_in_which_round_of_which_visit_they_were_made(tmp_path, monkeypatch):
    """Their numbers do not: the second begins anew after the link broke in its second run."""
    made = bench(tmp_path, artifacts=2)
    made.truth()
    monkeypatch.setattr(campaign, "PAUSES_S", (0.0,))

    def cut(_: dict[str, Any]) -> None:
        if len(made.asked) == 4:
            raise ConnectionLost("cut")

    watch(made, monkeypatch, afterwards=cut)
    trials = made.measure(settings(max_runs=3))
    first, second = sorted(trials, key=lambda trial: len(trial.runs))
    when = [[run.environment["preflight"] for run in trial.runs] for trial in (first, second)]
    assert [each["round"] for each in when[0]] == [0, 1, 2]
    assert [each["round"] for each in when[1]] == [0, 1, 1, 2]
    fences = [[each["fence"] for each in told] for told in when]
    old, new = fences[0][0], fences[0][-1]
    assert new > old
    assert fences == [[old, old, new], [old, old, new, new]]


@pytest.mark.parametrize("status", ["refused", "failed"])
@pytest.mark.parametrize("together", [False, True])
def test_what_took_turns_with_what_failed_is_measured_again_with_it(
    tmp_path, monkeypatch, status, together
):
    made = bench(tmp_path, artifacts=3)
    made.truth()
    plan = replace(settings(max_runs=3).plan(), turns="" if together else "pair-1")
    first = made.measure(settings(), together=together, plans=[plan])
    with Store(made.store) as store:
        store.close_trial(first[1].key, status, "hot", fence=first[1].fence)
    watch(made, monkeypatch)
    again = made.measure(settings(), together=together, plans=[plan])
    assert [trial.status for trial in again] == ["accepted"] * 3
    assert [[run.complete for run in trial.runs] for trial in again] == [
        [False] * 3 + [True] * 3
    ] * 3
    assert [len(asked["jobs"]) for asked in made.asked] == ([3] * 3 if together else [1] * 9)
    # And once it is accepted nothing is.
    made.measure(settings(), together=together, plans=[plan])
    assert len(made.asked) == (3 if together else 9)


def test_what_did_not_take_turns_is_not_measured_again_with_what_failed(tmp_path, monkeypatch):
    made = bench(tmp_path, artifacts=2)
    made.truth()
    first = made.measure(settings(max_runs=3))
    with Store(made.store) as store:
        store.close_trial(first[1].key, "refused", "hot", fence=first[1].fence)
    watch(made, monkeypatch)
    made.measure(settings(max_runs=3))
    assert {asked["jobs"][0]["id"] for asked in made.asked} == {first[1].key}


def test_each_artifact_stops_when_it_is_known_well_enough(tmp_path, monkeypatch):
    made = bench(tmp_path, artifacts=5)
    made.truth(between_runs=[0.0, 0.04])
    trials = made.measure(settings(runs=3, max_runs=12))
    counts = [len(trial.runs) for trial in trials]
    assert min(counts) < max(counts) <= 12
    assert all(not wants_more(trial) for trial in trials)


def test_a_complete_campaign_asks_for_nothing(one, monkeypatch):
    watch(one, monkeypatch)
    trials = one.measure(settings(**ALL))
    made = len(one.asked)
    monkeypatch.setattr(type(one.device), "connect", None)
    again = one.measure(settings(**ALL))
    assert [(t.key, t.status, len(t.runs)) for t in again] == [
        (t.key, t.status, len(t.runs)) for t in trials
    ]
    assert len(one.asked) == made


# Kinds


def test_every_kind_is_measured(one, monkeypatch):
    watch(one, monkeypatch)
    trials = by_kind(one.measure(settings(**ALL)))
    assert set(trials) == {"latency", "memory", "app", "sustained", "energy"}
    statuses = {kind: trial.status for kind, trial in trials.items()}
    assert statuses.pop("energy") == "unknown"
    assert set(statuses.values()) == {"accepted"}
    assert trials["energy"].reason.startswith("it shows no power sensor")
    assert trials["energy"].runs == ()
    plans = {plan["kind"]: plan for plan in one.asked}
    assert set(plans) == set(statuses)
    assert plans["app"]["period_ns"] > 0
    assert plans["sustained"]["window_ns"] == 2_000_000_000
    (found,) = one.measurements()
    assert found.status == "accepted"
    assert found.memory.peak_bytes > found.memory.base_bytes
    assert found.app_ratio.value == pytest.approx(1.0, rel=0.01)
    assert found.sustained_ns.runs == 3
    assert found.energy is None
    assert dict(found.unknown) == {"energy": trials["energy"].reason}


def test_only_the_plans_that_are_given_are_measured(one):
    wanted = settings(**ALL)
    (trial,) = one.measure(wanted, plans=[wanted.plan()])
    assert trial.plan.kind == "latency"


def test_what_was_unknown_is_asked_again_once_there_is_another_sensor(one, monkeypatch):
    """Of which a visit, or the doctor, has told the lab; nothing else touches the device."""
    wanted = settings(energy=True)
    assert by_kind(one.measure(wanted))["energy"].status == "unknown"
    visits = []
    connect = type(one.device).connect

    def connecting(device: Any) -> Any:
        visits.append(1)
        return connect(device)

    monkeypatch.setattr(type(one.device), "connect", connecting)
    one.measure(wanted)
    assert visits == []
    lab = Lab()
    (known,) = lab.devices()
    driver = {"meters": [{"kind": "hwmon", "name": "ina219", "path": "/sys/x", "files": []}]}
    lab.remember("board", known.serial, {**known.facts, **driver})
    # This device tells of none when it is visited: it is unknown still, and is not asked again.
    assert by_kind(one.measure(wanted))["energy"].status == "unknown"
    assert visits == [1]
    one.measure(wanted)
    assert visits == [1]


def recording(folder: Path) -> Path:
    """An INA219 at 1 W, 3 W while there are calls, and 1 W again."""
    at_ns = np.arange(0, 30_000_000_000, 20_000_000)
    busy = (at_ns >= 10_000_000_000) & (at_ns < 20_000_000_000)
    values = [[str(3_000_000 if each else 1_000_000)] for each in busy]
    marks = [
        {
            "what": what,
            "start_ns": place * 10_000_000_000,
            "end_ns": (place + 1) * 10_000_000_000 - 100_000_000,
            "calls": 1000 if what == "active" else 0,
        }
        for place, what in enumerate(("idle-before", "active", "idle-after"))
    ]
    power = {"at_ns": at_ns.tolist(), "values": values}
    sensor = json.loads((METERS / "ina219.json").read_text())
    path = folder / "recording.json"
    path.write_text(json.dumps({**sensor, "marks": marks, "power": power}))
    return path


def test_a_meter_that_the_inventory_gains_is_asked(one, tmp_path):
    assert by_kind(one.measure(settings(energy=True)))["energy"].status == "unknown"
    metered = bench(tmp_path, meter={"replay": str(recording(tmp_path))})
    trial = by_kind(metered.measure(settings(energy=True)))["energy"]
    assert (trial.status, len(trial.runs)) == ("accepted", 5), trial.reason
    assert trial.plan.meter
    assert {"trace", "meter", "power", "marks"} <= set(trial.runs[0].details)
    (found,) = metered.measurements()
    assert found.energy.net_uj.value == pytest.approx(2e6 * 9.9 / 1000, rel=0.01)
    assert "ina219" in found.energy.meter
    assert "energy" not in found.unknown


def fail_kind(kind: str, error: BaseException) -> Callable[[dict[str, Any]], None]:
    def trouble(plan: dict[str, Any]) -> None:
        if plan["kind"] == kind:
            raise error

    return trouble


def test_another_kind_that_fails_leaves_the_latency_alone(one, monkeypatch):
    def broken(plan: dict[str, Any]) -> None:
        if plan["kind"] == "app":
            raise rounds.AgentError("the application died")

    watch(one, monkeypatch, broken)
    trials = by_kind(one.measure(settings(app=True, memory=True)))
    assert {kind: trial.status for kind, trial in trials.items()} == {
        "latency": "accepted",
        "memory": "accepted",
        "app": "failed",
    }
    (found,) = one.measurements()
    assert found.status == "accepted"
    assert found.median_ns
    assert "the application died" in found.unknown["app"]


def test_a_device_that_leaves_after_the_latencies_loses_none(one, monkeypatch):
    monkeypatch.setattr(campaign, "PAUSES_S", ())
    watch(one, monkeypatch, fail_kind("app", ConnectionLost("cut")))
    trials = by_kind(one.measure(settings(app=True)))
    assert trials["latency"].status == "accepted"
    assert trials["app"].status == "open"
    assert "cut" in trials["app"].reason


def test_a_device_that_leaves_before_is_an_error(one, monkeypatch):
    monkeypatch.setattr(campaign, "PAUSES_S", ())
    watch(one, monkeypatch, fail_kind("latency", ConnectionLost("cut")))
    with pytest.raises(ConnectionLost):
        one.measure(settings(app=True))


def test_what_loses_the_device_every_time_is_left_and_the_rest_goes_on(one, monkeypatch):
    """Nor is a device taken out of use for what is not its latency."""
    monkeypatch.setattr(campaign, "PAUSES_S", (0.0, 0.0))
    watch(one, monkeypatch, fail_kind("memory", DeadlineExceeded("out of memory")))
    wanted = settings(app=True, memory=True, sustained_seconds=2.0)
    trials = by_kind(one.measure(wanted))
    memory = trials.pop("memory")
    assert (memory.status, memory.reason) == ("open", "board: out of memory")
    assert {kind: trial.status for kind, trial in trials.items()} == {
        "latency": "accepted",
        "app": "accepted",
        "sustained": "accepted",
    }
    assert [plan["kind"] for plan in one.asked].count("memory") == 3
    assert Lab().state_of(one.device.address) is not DeviceState.QUARANTINED
    monkeypatch.undo()
    assert by_kind(one.measure(wanted))["memory"].status == "accepted"


def test_a_device_that_is_gone_is_waited_for_once(one, monkeypatch):
    """What is left then is all that is open, not each kind in turn."""
    monkeypatch.setattr(campaign, "PAUSES_S", (0.0, 0.0))
    watch(one, monkeypatch, fail_kind("memory", ConnectionLost("gone")))
    one.measure()
    visits = []
    settle = Session.settle

    def gone(*told: Any) -> Any:
        visits.append(1)
        if len(visits) > 1:
            raise ConnectionLost("gone")
        return settle(*told)

    monkeypatch.setattr(Session, "settle", gone)
    trials = by_kind(one.measure(settings(app=True, memory=True)))
    assert {kind: trial.status for kind, trial in trials.items()} == {
        "latency": "accepted",
        "app": "open",
        "memory": "open",
    }
    assert len(visits) == 3


def test_a_device_that_leaves_keeps_what_it_has_measured(one, tmp_path, monkeypatch):
    """Of two artifacts the second has no latency yet; an earlier setting's is not this run's."""
    monkeypatch.setattr(campaign, "PAUSES_S", ())
    one.measure(settings(iterations=30))
    (earlier,) = one.measure(settings(iterations=30))
    (kept,) = one.measure()
    (tmp_path / "more").mkdir()
    two = bench(tmp_path / "more", artifacts=2)
    other = two.subjects[1]
    watch(one, monkeypatch, fail_kind("latency", ConnectionLost("cut")))
    monkeypatch.setattr("pipeline.flow.input_file", lambda *_: other.input_files[0])
    checked = [
        SimpleNamespace(artifact=subject.artifact, parity=builders.parity(), device=None)
        for subject in (one.subjects[0], other)
    ]
    data = SimpleNamespace(arrays=SimpleNamespace(test=SimpleNamespace(x=np.zeros((1, 8)))))
    failures: list[Failure] = []
    workspace = Workspace.open(tmp_path / "work")
    try:
        workspace.store.put_artifact(other.artifact)
        recipe = SimpleNamespace(measure=settings())
        keys = measure_all(workspace, recipe, checked, one.device, data, failures)
    finally:
        workspace.close()
    assert kept.key in keys
    assert earlier.key not in keys
    assert len(keys) == 2  # the other is open
    assert [failure.reason for failure in failures] == ["board: cut"]


def test_a_run_names_what_failed_beside_the_latency(one, monkeypatch, tmp_path):
    trials = [
        builders.trial(plan_=builders.plan(kind=kind), status=status, reason="so")
        for kind, status in (
            ("latency", "accepted"),
            ("energy", "unknown"),
            ("app", "failed"),
            ("memory", "refused"),
        )
    ]
    monkeypatch.setattr("pipeline.flow.measure", lambda *_: trials)
    monkeypatch.setattr("pipeline.flow.input_file", lambda *_: tmp_path)
    made = builders.artifact(variant="int8")
    checked = [SimpleNamespace(artifact=made, parity=builders.parity(), device=None)]
    data = SimpleNamespace(arrays=SimpleNamespace(test=SimpleNamespace(x=np.zeros((1, 8)))))
    failures: list[Failure] = []
    recipe = SimpleNamespace(measure=Measure())
    keys = measure_all(None, recipe, checked, one.device, data, failures)
    assert keys == {trial.key for trial in trials}
    assert [failure.what for failure in failures] == [
        "app of int8 onnx on board",
        "memory of int8 onnx on board",
    ]


# Time


def test_nothing_new_is_begun_once_the_budget_is_over(tmp_path, monkeypatch):
    made = bench(tmp_path, artifacts=2)
    made.truth(between_runs=[0.05, 0.05])
    watch(made, monkeypatch)
    minutes = itertools.count(0, 20.0)  # one look at the clock each 20 s
    clock = SimpleNamespace(monotonic=lambda: next(minutes))
    monkeypatch.setattr(rounds, "time", clock)
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=lambda: 0.0))
    trials = made.measure(settings(runs=3, max_runs=9, app=True, budget_minutes=150 / 60))
    latencies = [trial for trial in trials if trial.plan.kind == "latency"]
    assert len(made.asked) == 8
    assert [len(trial.runs) for trial in latencies] == [4, 4]
    assert {trial.status for trial in latencies} == {"accepted"}
    assert all("the budget of 2.5 minutes ended" in trial.reason for trial in latencies)
    apps = [trial for trial in trials if trial.plan.kind == "app"]
    assert [(trial.status, len(trial.runs)) for trial in apps] == [("open", 0)] * 2
    assert all("0 of 3 runs; run again" in trial.reason for trial in apps)
    monkeypatch.undo()
    again = made.measure(settings(runs=3, max_runs=9, app=True))
    assert {trial.status for trial in again} == {"accepted"}
    assert [len(t.runs) for t in again if t.plan.kind == "latency"] == [4, 4]


def test_a_process_may_take_its_windows_on_top_of_the_deadline(one, monkeypatch):
    watch(one, monkeypatch)
    one.measure(settings(sustained_seconds=100, deadline_seconds=60))
    deadlines = {plan["kind"]: plan["deadline_s"] for plan in one.asked}
    assert deadlines["latency"] == 60
    assert deadlines["sustained"] >= 160


# Killed


def outcome(store: Path) -> list[Any]:
    """What counts of each trial, however often it was broken off."""
    with Store(store) as opened:
        return [
            (
                trial.artifact_sha256,
                trial.plan.kind,
                trial.status,
                trial.reason,
                [run.samples_ns.tolist() for run in trial.runs if run.complete],
            )
            for trial in sorted(opened.trials(), key=lambda t: (t.artifact_sha256, t.plan.kind))
        ]


def measure_until(made: Bench, runs_left: int, wanted: Measure, together: bool) -> bool:
    """Measure in a process that is killed before its n-th run is stored; whether it was."""
    child = os.fork()
    if child == 0:
        patch = pytest.MonkeyPatch()
        left = itertools.count(runs_left, -1)

        def kill(_: dict[str, Any]) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(made, patch, afterwards=kill)
        try:
            made.measure(wanted, together=together)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("together", [False, True])
def test_killed_again_and_again_it_stops_at_the_same(tmp_path, together):
    truth = {
        "between_runs": [0.0, 0.05],
        "foreign_load_cores": [0, 4.0, 0],
        "khz": [2_000_000] * 3 + [1_000_000, 2_000_000],
    }
    wanted = settings(runs=3, max_runs=6, app=not together)
    benches = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        made = bench(tmp_path / name, artifacts=2)
        made.truth(**truth)
        benches.append(made)
    calm, killed = benches
    calm.measure(wanted, together=together)
    deaths = 0
    while measure_until(killed, 2 if together else 5, wanted, together):
        deaths += 1
    assert deaths >= 2
    assert outcome(killed.store) == outcome(calm.store)
    with Store(killed.store) as store:  # what was said before each death is kept
        broken = [run for trial in store.trials() for run in trial.runs if not run.complete]
    assert len(broken) >= deaths
    assert all(len(run.samples_ns) for run in broken)
