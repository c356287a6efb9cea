"""How many runs are enough, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.records import Plan
from profiles.statistics import summarise, two_stage_interval
from profiles.stopping import runs_wanted, why_stopped

PLAN = Plan(runs=5, max_runs=15, target=0.02)
MEDIANS = st.lists(st.floats(1e3, 1e9), min_size=1, max_size=20)


def pilot(spread: float) -> list[float]:
    """Five medians whose logarithms have this standard deviation."""
    return list(1e6 * np.exp(spread * np.array([-1, 1, 0, -1, 1]) / 1.0))


def test_steins_number_by_hand():
    # t(4) = 2.776, asinh(0.02) = 0.0200: (2.776 * 0.02 / 0.02)^2 = 7.71.
    assert np.log(pilot(0.02)).std(ddof=1) == pytest.approx(0.02)
    assert runs_wanted(pilot(0.02), PLAN) == 8


@pytest.mark.parametrize(("spread", "wanted"), [(0.0, 5), (0.001, 5), (0.0161, 5), (0.2, 15)])
def test_it_is_within_the_plans_bounds(spread, wanted):
    assert runs_wanted(pilot(spread), PLAN) == wanted


@given(MEDIANS, st.floats(0.001, 0.5))
def test_only_the_pilot_decides(medians, target):
    plan = Plan(runs=4, max_runs=12, target=target)
    wanted = runs_wanted(medians, plan)
    assert 4 <= wanted <= 12
    assert wanted == runs_wanted(medians[:4], plan)
    assert len(medians) >= 4 or wanted == 4
    # Where the pilot's values are, and in what order, says nothing either.
    assert runs_wanted([3 * median for median in medians[:4]][::-1], plan) == pytest.approx(
        wanted, abs=1
    )


@given(st.lists(st.floats(0.9, 1.1), min_size=15, max_size=15), st.floats(0.005, 0.3))
def test_so_many_runs_meet_the_target_and_one_less_does_not(medians, target):
    plan = Plan(runs=5, max_runs=15, target=target)
    wanted = runs_wanted(medians, plan)
    reason = why_stopped(medians[:wanted], plan)

    def width(count: int) -> float:
        runs = [np.array([round(1e9 * median)]) for median in medians[:count]]
        return summarise(runs, pilot=5).relative_half_width

    if reason.startswith("the interval is within"):
        assert width(wanted) <= target * (1 + 1e-6)
    else:
        assert wanted == 15
        assert width(15) > target * (1 - 1e-6)
    if wanted > 5:
        assert width(wanted - 1) > target * (1 - 1e-6)


def test_the_reason_in_words():
    plan = Plan(runs=3, max_runs=6, target=0.02)
    assert why_stopped([1000, 1001, 1002], plan) == "the interval is within 2 % after 3 runs"
    wide = [1000, 1100, 1000, 1050, 1020, 990]
    half = 100 * np.sinh(np.log(np.divide(*two_stage_interval(wide, 3)[::-1])) / 2)
    assert why_stopped(wide, plan) == f"6 runs were made; the interval is ±{half:.2g} %, not 2 %"
    assert half == pytest.approx(9.68, abs=0.01)
    assert why_stopped(wide[:4], plan) == (
        "4 runs were made in the time there was; the interval is ±12 %, not 2 %"
    )
    assert why_stopped(wide[:2], plan) == (
        "2 runs were made in the time there was; the interval is unknown, not 2 %"
    )
    assert why_stopped(wide[:1], plan).startswith("1 run was made in the time there was")


def test_runs_that_were_refused_are_no_lack_of_time():
    plan = Plan(runs=3, max_runs=6, target=0.02)
    wide = [1000, 1100, 1000, 1050]
    told = why_stopped(wide, plan, refused=3)
    assert told == "4 runs count, 3 were refused; the interval is ±12 %, not 2 %"
    assert why_stopped(wide[:1], plan, 1).startswith("1 run counts, 1 was refused; ")
    assert why_stopped([1000, 1001, 1002], plan, 2).startswith("the interval is within 2 %")
    app = Plan(kind="app", runs=3, max_runs=3)
    assert why_stopped(wide[:3], app, 1) == "3 runs count, 1 was refused, as planned"


def test_other_kinds_stop_as_planned():
    memory = Plan(kind="memory", runs=1, max_runs=1)
    assert runs_wanted([], memory) == runs_wanted([1e6], memory) == 1
    assert why_stopped([1e6], memory) == "1 run was made, as planned"
    app = Plan(kind="app", runs=3, max_runs=3)
    assert why_stopped([1e6, 1.2e6, 1e6], app) == "3 runs were made, as planned"
    assert "in the time there was" in why_stopped([1e6], app)
