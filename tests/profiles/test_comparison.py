"""Effects of one artifact: what textbook tests say of logarithms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from profiles.comparison import effect, medians_by_round
from profiles.statistics import two_stage_interval
from tests import builders

MEDIANS = st.lists(st.floats(1e3, 1e9), min_size=3, max_size=12)


@given(MEDIANS, MEDIANS)
def test_an_unpaired_effect_is_welchs(before, after):
    if min(np.ptp(before) / min(before), np.ptp(after) / min(after)) < 1e-6:
        return
    found = effect(before, after, paired=False)
    expected = ttest_ind(np.log(after), np.log(before), equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    interval = expected.confidence_interval()
    assert np.log(found.ci95) == pytest.approx([interval.low, interval.high], abs=1e-8)


@given(st.lists(st.tuples(st.floats(1e3, 1e9), st.floats(1e3, 1e9)), min_size=3, max_size=12))
def test_a_paired_effect_is_students(pairs):
    before, after = np.array(pairs).T
    if np.ptp(np.log(after / before)) < 1e-6:
        return
    found = effect(before, after, paired=True)
    expected = ttest_rel(np.log(after), np.log(before))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    interval = expected.confidence_interval()
    assert np.log(found.ci95) == pytest.approx([interval.low, interval.high], abs=1e-8)
    mirrored = effect(after, before, paired=True)
    assert mirrored.ratio == pytest.approx(1 / found.ratio)


def test_pairing_takes_out_what_falls_on_both():
    common = np.array([1.0, 1.2, 0.9, 1.1, 1.3])
    before, after = common, common * [1.05, 1.051, 1.049, 1.05, 1.05]
    assert effect(before, after, paired=True).p < 1e-6
    assert effect(before, after, paired=False).p > 0.5


def test_a_pilot_decides_the_width_where_it_decided_the_number():
    before = [1.0, 1.01, 0.99, 1.0, 1.0, 1.0]
    after = [2.0, 2.0, 2.0, 2.0]
    found = effect(before, after, paired=False, pilots=(3, 3))
    low, high = two_stage_interval(before, 3)
    assert np.log(found.ci95[1] / found.ci95[0]) == pytest.approx(np.log(high / low))
    assert effect(before, after, paired=False).ci95 != found.ci95


def test_equal_runs_are_certain():
    assert effect([5.0] * 4, [5.0] * 4, paired=False).p == 1.0
    found = effect([5.0] * 4, [6.0] * 4, paired=False)
    assert (found.p, found.ci95) == (0.0, (pytest.approx(1.2), pytest.approx(1.2)))


def test_two_runs_have_a_ratio_and_no_interval():
    found = effect([1.0, 1.0], [2.0, 2.0, 2.0], paired=False)
    assert (found.ratio, found.ci95, found.p) == (pytest.approx(2.0), None, None)


@pytest.mark.parametrize(
    ("before", "after", "paired"), [([], [1.0], False), ([1.0] * 3, [1.0] * 4, True)]
)
def test_half_a_comparison_is_refused(before, after, paired):
    with pytest.raises(ValueError, match="both sides"):
        effect(before, after, paired)


def test_runs_are_told_apart_by_visit_and_round_and_not_by_number():
    def run(number, median, fence, round_, **changes):
        when = {"preflight": {"fence": fence, "round": round_}}
        return builders.run(number, [median] * 3, environment=when, **changes)

    trial = builders.trial(
        runs=(
            run(0, 100, 4, 0),
            run(1, 900, 4, 1, complete=False),
            run(2, 300, 5, 1),
            run(3, 400, 5, 2),
        )
    )
    assert medians_by_round(trial) == {(4, 0): 100, (5, 1): 300, (5, 2): 400}
