"""What speaks against runs and trials: every reason, its figures, and what is merely said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.quality import counting_runs, disturbance, judge, judge_run, judge_runs, tolerated
from profiles.records import Plan, Run, Trial
from tests import builders

ELAPSED_MS = 10_000
PLAN = builders.plan()


def watched(
    number: int = 0,
    samples: Sequence[int] | None = None,
    *,
    foreign_cores: float = 0.0,
    elapsed_ms: int = ELAPSED_MS,
    waited_ms: int = 0,
    stolen_ms: int = 0,
    khz: Sequence[int | None] = (None,),
    mdegc: Sequence[int] = (),
    cores: int | None = 4,
    limits: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    **changes: Any,
) -> Run:
    """A run of a device that tells everything, all of it quiet unless told otherwise."""
    start = {"at_ns": 5_000_000, "busy_ms": 700, "own_ms": 90, "waited_ms": 3, "stolen_ms": 8}
    spent = {
        "at_ns": elapsed_ms * 1_000_000,
        "busy_ms": elapsed_ms + round(foreign_cores * elapsed_ms),
        "own_ms": elapsed_ms,
        "waited_ms": waited_ms,
        "stolen_ms": stolen_ms,
    }
    environment = {
        "warm": start,
        "after": {
            **{name: start[name] + spent[name] for name in start},
            "temperatures_mdegc": list(mdegc),
        },
        "preflight": {
            "limits": {
                "foreign_load_cores": None,
                "throttle_mdegc": None,
                "tolerate": [],
                **(limits or {}),
            },
            "device": {} if cores is None else {"cores": cores},
            **(before or {}),
        },
    }
    details = {"slices": [[index * 1000, 50, clock] for index, clock in enumerate(khz)]}
    calls = builders.run().samples_ns if samples is None else np.array(samples, dtype=np.int64)
    made = builders.run(number, environment=environment, details=details, samples=calls)
    return replace(made, **changes)


def trial(*runs: Run, plan: Plan = PLAN) -> Trial:
    return builders.trial(plan_=plan, runs=tuple(runs))


def codes(reasons: Any) -> list[str]:
    return [reason.code for reason in reasons]


def texts(run: Run, plan: Plan = PLAN) -> str:
    return "; ".join(reason.text for reason in judge_run(run, plan))


# One run


@pytest.mark.parametrize("run", [watched(), watched(cores=None), builders.run()])
def test_a_quiet_run_and_one_that_tells_nothing_are_not_refused(run):
    assert judge_run(run, PLAN) == ()


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (watched(before={"thermal_status": 2}), "thermal status was 2"),
        (watched(before={"throttled": True}), "held its processors back"),
        (
            watched(mdegc=[45_000, 80_000], limits={"throttle_mdegc": 80_000}),
            "80.0 °C warm, and slows down from 80.0 °C",
        ),
    ],
)
def test_a_device_that_is_throttled(run, told):
    (reason,) = judge_run(run, PLAN)
    assert reason.code == "throttled"
    assert told in reason.text
    assert "cool" in reason.advice


@pytest.mark.parametrize(
    "run",
    [
        watched(before={"thermal_status": 0, "throttled": False}),
        watched(mdegc=[79_999], limits={"throttle_mdegc": 80_000}),
        watched(mdegc=[99_000]),
    ],
)
def test_a_device_that_is_merely_warm(run):
    assert judge_run(run, PLAN) == ()


def test_a_device_that_was_too_warm_when_it_began():
    run = watched(limits={"throttle_mdegc": 80_000})
    run.environment["warm"]["temperatures_mdegc"] = [85_000]
    assert "85.0 °C" in texts(run)


def test_what_cannot_be_a_temperature_is_none():
    """A zone in another unit, as Qualcomm's have it, and one that is not there."""
    run = watched(mdegc=[4_200_000, 45_000, 0, -273_000], limits={"throttle_mdegc": 80_000})
    assert judge_run(run, PLAN) == ()
    run.environment["warm"]["temperatures_mdegc"] = [85_000]
    assert "it was 85.0 °C warm" in texts(run)
    assert judge_run(watched(mdegc=[0], limits={"throttle_mdegc": -10_000}), PLAN) == ()


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"cpu-0": 70_000, "modem": 95_000}, ""),
        ({"cpu-0": 70_000, "cpu-1": 82_000, "modem": 95_000}, "82.0 °C"),
        ({"cpu-0": 4_200_000, "modem": 95_000}, ""),
        ({"modem": 95_000}, ""),
        # It has no others: the agent's are these.
        ({"cpu-0": 70_000}, "95.0 °C"),
    ],
)
def test_where_only_some_zones_count_the_others_heat_is_no_reason(named, told):
    limits = {"throttle_mdegc": 80_000, "temperature_zones": ["cpu*"]}
    run = watched(mdegc=[95_000], limits=limits, before={"temperatures_mdegc": named})
    assert codes(judge_run(run, PLAN)) == (["throttled"] if told else [])
    assert told in texts(run)


@pytest.mark.parametrize(
    ("khz", "moved"),
    [
        ([2_400_000] * 4, False),
        ([2_400_000, 2_360_000], False),
        ([2_400_000, 2_400_000, 2_340_000], True),
        ([1_800_000, 2_400_000], True),
        ([None, None], False),
        ([None, 2_400_000], False),
    ],
)
def test_a_clock_that_moves_while_it_is_timed(khz, moved):
    found = judge_run(watched(khz=khz), PLAN)
    assert codes(found) == (["frequency"] if moved else [])
    if moved:
        assert f"between {min(khz) // 1000} and 2400 MHz" in found[0].text
        assert "pinned" in found[0].advice


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"foreign_cores": 0.99}, False),
        ({"foreign_cores": 1.02}, True),
        ({"foreign_cores": 0.3, "limits": {"foreign_load_cores": 0.25}}, True),
        ({"foreign_cores": 2.0, "limits": {"foreign_load_cores": 3.0}}, False),
        ({"foreign_cores": 0.02, "limits": {"foreign_load_cores": 0.0}}, True),
        ({"foreign_cores": 9.0, "cores": None}, False),
        # What the counters' steps may make of nothing is not a load.
        ({"foreign_cores": 2.0, "elapsed_ms": 20}, False),
        ({"elapsed_ms": 20, "waited_ms": 10}, False),
        ({"waited_ms": 499}, False),
        ({"waited_ms": 600}, True),
        ({"stolen_ms": 500}, False),
        ({"stolen_ms": 600}, True),
        ({"elapsed_ms": 0, "waited_ms": 600}, False),
    ],
)
def test_a_load_of_others(options, refused):
    assert codes(judge_run(watched(**options), PLAN)) == (["foreign-load"] if refused else [])


def test_a_load_of_others_is_told_with_figures():
    (reason,) = judge_run(watched(foreign_cores=2.5), PLAN)
    assert "others kept 2.5 cores busy" in reason.text
    assert "not at most 1" in reason.text
    assert "waited for a processor for 12 %" in texts(watched(waited_ms=1200))


@pytest.mark.parametrize(("elapsed_ms", "refused"), [(99, True), (101, False)])
def test_a_timed_part_too_short_for_the_counters_is_judged_by_the_whole_process(
    elapsed_ms, refused
):
    run = watched(elapsed_ms=elapsed_ms)
    warm = run.environment["warm"]
    second_ago = {"at_ns": warm["at_ns"] - 10**9, "busy_ms": warm["busy_ms"] - 3_000}
    run.environment["before"] = {**warm, **second_ago}
    assert codes(judge_run(run, PLAN)) == (["foreign-load"] if refused else [])


def test_counters_that_are_not_told_are_no_reason():
    run = watched(foreign_cores=3.0)
    del run.environment["after"]["own_ms"]
    assert judge_run(run, PLAN) == ()


@pytest.mark.parametrize("kind", ["memory", "operators"])
def test_what_is_not_timed_cannot_be_disturbed(kind):
    disturbed = [
        watched(number, foreign_cores=3.0, khz=[1_000_000, 2_000_000], before={"throttled": True})
        for number in range(3)
    ]
    assert judge(trial(*disturbed, plan=replace(PLAN, kind=kind))).status == "accepted"


# A trial


def test_refused_runs_are_left_out_and_remarked_upon():
    runs = [watched(number, foreign_cores=2.0 if number in (1, 4) else 0.0) for number in range(5)]
    verdict = judge(trial(*runs))
    assert verdict.status == "accepted"
    assert [run.number for run in verdict.runs] == [0, 2, 3]
    assert verdict.reasons == ()
    (remark,) = verdict.remarks
    assert remark.code == "foreign-load"
    assert remark.text.startswith("2 of 5 runs refused: others kept 2 cores busy")
    assert counting_runs(trial(*runs)) == verdict.runs


def test_a_trial_with_too_few_good_runs_is_refused_and_says_why():
    runs = [watched(0), *(watched(number, before={"throttled": True}) for number in (1, 2, 3))]
    verdict = judge(trial(*runs))
    assert verdict.status == "refused"
    assert codes(verdict.reasons) == ["too-few-runs", "throttled"]
    assert verdict.reasons[0].text == "1 of 3 runs could be had"
    assert "3 of 4 runs refused: the system held" in verdict.why()
    assert "give it a fan" in verdict.why()
    assert len(verdict.runs) == 1
    assert verdict.remarks == ()


def test_interrupted_runs_neither_count_nor_speak_against_it():
    broken = watched(1, complete=False, foreign_cores=4.0, khz=[1, 10**9])
    verdict = judge(trial(watched(0), broken, watched(2), watched(3)))
    assert (verdict.status, verdict.remarks) == ("accepted", ())
    assert [run.number for run in verdict.runs] == [0, 2, 3]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("throttled", {"before": {"thermal_status": 3}}),
        ("frequency", {"khz": [1_000_000, 2_000_000]}),
        ("foreign-load", {"foreign_cores": 3.0}),
    ],
)
def test_what_is_tolerated_is_remarked_upon_and_counts(code, options):
    def three(tolerate: list[str]) -> Trial:
        limits = {"tolerate": tolerate}
        return trial(*(watched(number, limits=limits, **options) for number in range(3)))

    refused, tolerated = judge(three([])), judge(three([code]))
    assert refused.status == "refused"
    assert (tolerated.status, codes(tolerated.remarks)) == ("accepted", [code])
    assert tolerated.remarks[0].text.startswith("3 of 3 runs concerned: ")
    assert len(tolerated.runs) == 3
    others = {"throttled", "frequency", "foreign-load"} - {code}
    assert judge(three(sorted(others))).status == "refused"


def test_a_run_at_another_clock_than_most_is_refused():
    runs = [watched(number, khz=[2_400_000] * 2) for number in range(4)]
    runs.insert(2, watched(9, khz=[1_800_000] * 2))
    verdict = judge(trial(*runs))
    assert [run.number for run in verdict.runs] == [0, 1, 2, 3]
    assert "1 of 5 runs refused: it ran at 1800 MHz, others at 2400 MHz" in verdict.remarks[0].text


def test_of_two_clocks_that_are_as_frequent_the_first_counts():
    clocks = (2_400_000, 2_400_000, 1_800_000, 1_800_000)
    runs = [watched(number, khz=[clock]) for number, clock in enumerate(clocks)]
    assert [run.number for run in counting_runs(trial(*runs))] == [0, 1]


def test_runs_that_come_later_do_not_change_the_usual_clock():
    clocks = [2_400_000, 1_800_000, 2_400_000, 1_800_000, 1_800_000, 1_800_000]
    runs = [watched(number, khz=[clock]) for number, clock in enumerate(clocks)]
    for made in range(3, len(runs) + 1):
        assert [run.number for run in counting_runs(trial(*runs[:made]))] == [0, 2]


def test_each_run_is_told_with_what_it_is_refused_for_and_what_is_tolerated():
    noisy = watched(1, foreign_cores=3.0, limits={"tolerate": ["foreign-load"]})
    odd = watched(2, khz=[1_800_000])
    broken = watched(3, complete=False, foreign_cores=3.0)
    quiet = [watched(number, khz=[2_400_000]) for number in (0, 4)]
    found = judge_runs(trial(quiet[0], noisy, quiet[1], odd, broken))
    assert [judged.run.number for judged in found] == [0, 1, 4, 2]
    assert [codes(judged.refused) for judged in found] == [[], [], [], ["frequency"]]
    assert [codes(judged.remarks) for judged in found] == [[], ["foreign-load"], [], []]


def test_what_is_no_longer_tolerated_is_refused():
    limits = {"tolerate": ["foreign-load", "frequency"]}
    made = trial(*(watched(number, limits=limits, foreign_cores=3.0) for number in range(3)))
    assert tolerated(made) == {"foreign-load", "frequency"}
    assert judge(made).status == judge(made, ["foreign-load"]).status == "accepted"
    assert judge(made, ["frequency"]).status == judge(made, []).status == "refused"
    drifts = drifting(tolerate=["not-stationary"])
    assert judge(drifts, []).status == "refused"
    assert judge(drifting(), ["not-stationary"]).status == "accepted"


def test_what_others_took_is_told_of_what_it_is_judged_by():
    """As long as the timed part is long enough; else the whole process."""
    seen = disturbance(watched(foreign_cores=2.0, waited_ms=510, stolen_ms=540))
    assert seen.foreign_cores == pytest.approx(1.996)
    assert (seen.waited_cores, seen.stolen_cores) == pytest.approx((0.05, 0.05))
    short = watched(elapsed_ms=50)
    warm = short.environment["warm"]
    second_ago = {"at_ns": warm["at_ns"] - 950_000_000, "busy_ms": warm["busy_ms"] - 2_040}
    short.environment["before"] = {**warm, **second_ago}
    assert disturbance(short).foreign_cores == pytest.approx(2.0)
    del short.environment["after"]["own_ms"], short.environment["after"]["stolen_ms"]
    seen = disturbance(short)
    assert (seen.foreign_cores, seen.waited_cores, seen.stolen_cores) == (None, 0, None)
    assert disturbance(builders.run()).foreign_cores is None


def test_throttling_is_what_a_sustained_trial_is_there_to_show():
    runs = [
        watched(number, khz=[2_400_000, 1_500_000], before={"throttled": True})
        for number in range(3)
    ]
    verdict = judge(trial(*runs, plan=replace(PLAN, kind="sustained")))
    assert verdict.status == "accepted"
    assert codes(verdict.remarks) == ["throttled", "frequency"]
    loaded = [watched(number, foreign_cores=3.0) for number in range(3)]
    assert judge(trial(*loaded, plan=replace(PLAN, kind="sustained"))).status == "refused"


def test_clocks_that_rest_between_calls_are_what_an_application_sees():
    runs = [watched(number, khz=[600_000, 2_400_000]) for number in range(3)]
    verdict = judge(trial(*runs, plan=replace(PLAN, kind="app")))
    assert (verdict.status, codes(verdict.remarks)) == ("accepted", ["frequency"])


# Whether it stays where it is


def series(jump: float = 1.0, level: float = 1.0, seed: int = 0) -> list[int]:
    calls = 100_000 * level * np.exp(0.01 * np.random.default_rng(seed).standard_normal(200))
    calls[100:] *= jump
    return [int(ns) for ns in calls]


@pytest.mark.parametrize(("jumps", "status"), [(0, "accepted"), (2, "accepted"), (3, "refused")])
def test_a_latency_that_jumps_in_most_runs(jumps, status):
    runs = [
        watched(number, series(1.3 if number < jumps else 1.0, seed=number)) for number in range(5)
    ]
    verdict = judge(trial(*runs))
    assert verdict.status == status
    assert len(verdict.runs) == 5
    if jumps == 3:
        (reason,) = verdict.reasons
        assert reason.code == "not-stationary"
        assert reason.text.startswith("in 3 of 5 runs the latency jumps by +3")
        assert "warm" in reason.advice


def drifting(kind: str = "latency", tolerate: Sequence[str] = ()) -> Trial:
    limits = {"tolerate": list(tolerate)}
    runs = [
        watched(number, series(level=1 + 0.03 * number, seed=number), limits=limits)
        for number in range(8)
    ]
    return trial(*runs, plan=replace(PLAN, kind=kind))


def test_a_latency_that_drifts_over_the_runs():
    verdict = judge(drifting())
    assert verdict.status == "refused"
    assert "drift" in verdict.why()
    assert "+2" in verdict.why()


@pytest.mark.parametrize(
    "given_", [drifting(tolerate=["not-stationary"]), drifting("sustained"), drifting("app")]
)
def test_a_drift_that_is_tolerated_or_looked_for_is_remarked_upon(given_):
    verdict = judge(given_)
    assert (verdict.status, codes(verdict.remarks)) == ("accepted", ["not-stationary"])


# Energy


def metered(number: int, **trace: Any) -> Run:
    """Three stretches of 10 s at 1, 3 and 1 W, read ten times a second."""
    at_ns = np.arange(0, 30_000_000_001, 100_000_000)
    power_uw = np.where((at_ns[:-1] >= 10**10) & (at_ns[:-1] < 2 * 10**10), 3e6, 1e6)
    energy_uj = np.concatenate([[0.0], np.cumsum(power_uw * 0.1)])
    whats = ("idle-before", "active", "idle-after")
    details = {
        "marks": [
            {
                "what": what,
                "start_ns": place * 10**10,
                "end_ns": (place + 1) * 10**10,
                "calls": 1000 if what == "active" else 0,
            }
            for place, what in enumerate(whats)
        ],
        "meter": {
            "name": "ina219 (hwmon)",
            "covers": "the board",
            "method": "mean power",
            "update_ns": 100_000_000,
            "trouble": "",
        },
        "trace": {
            "at_ns": at_ns.tolist(),
            "energy_uj": energy_uj.tolist(),
            "covered": [True] * (len(at_ns) - 1),
            "charging": False,
            **trace,
        },
    }
    return replace(watched(number), details=details)


def test_energy_is_refused_for_what_its_sensor_saw():
    plan = replace(PLAN, kind="energy")
    good = judge(trial(*(metered(number) for number in range(3)), plan=plan))
    assert (good.status, good.remarks) == ("accepted", ())
    charged = judge(trial(*(metered(number, charging=True) for number in range(3)), plan=plan))
    assert charged.status == "refused"
    assert codes(charged.reasons) == ["too-few-runs", "charging"]
    assert "unplug it" in charged.why()
    assert judge_run(metered(0, charging=True), PLAN) == ()  # a latency is not about power


# Always


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "foreign_cores": st.sampled_from([0.0, 3.0]),
                "complete": st.booleans(),
                "khz": st.sampled_from([[2_000_000], [1_000_000], [1_000_000, 2_000_000], [None]]),
                "limits": st.sampled_from([{}, {"tolerate": ["foreign-load"]}]),
            }
        ),
        max_size=8,
    )
)
def test_every_complete_run_counts_or_is_refused_for_a_reason(options):
    runs = [watched(number, **each) for number, each in enumerate(options)]
    verdict = judge(trial(*runs))
    complete = [run for run in runs if run.complete]
    refused = sum(
        int(said.text.split(" ")[0])
        for said in (*verdict.reasons, *verdict.remarks)
        if f"of {len(complete)} runs refused" in said.text
    )
    left_out = len(complete) - len(verdict.runs)
    assert all(run.complete for run in verdict.runs)
    assert left_out <= refused
    assert (refused == 0) == (left_out == 0)
    assert (verdict.status == "accepted") == (len(verdict.runs) >= PLAN.runs)
