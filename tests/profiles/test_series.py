"""What moved is found, and what only looks restless is left alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter

from profiles.series import change_points, drift, drifted, moved, outliers

LATENCIES = arrays(np.int64, st.integers(1, 300), elements=st.integers(1, 10**10))


def latencies(
    random: np.random.Generator, n: int, *, spread: float, correlation: float = 0.0, tail: str = ""
) -> np.ndarray:
    """A stationary series around 10 ms: autocorrelated, with heavy tails or spikes."""
    shocks = random.standard_t(3, n + 50) / 3**0.5 if tail == "t" else random.normal(size=n + 50)
    logs = lfilter([(1 - correlation**2) ** 0.5], [1, -correlation], shocks)[50:] * spread
    if tail == "spikes":
        logs = logs + np.where(random.random(n) < 0.03, random.exponential(0.7, n), 0.0)
    return np.rint(1e7 * np.exp(logs)).astype(np.int64)


# Outliers


def test_tukeys_fences_by_hand():
    # The quartiles of 1..9 are 3 and 7: the fences lie at -3 and 13.
    inside = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert not outliers(inside).any()
    assert outliers([1, 2, 3, 4, 5, 6, 7, 8, 13]).tolist() == [False] * 9
    assert outliers([1, 2, 3, 4, 5, 6, 7, 8, 14]).tolist() == [False] * 8 + [True]
    assert outliers([-4, 2, 3, 4, 5, 6, 7, 8, 9]).tolist() == [True] + [False] * 8


@given(LATENCIES)
def test_a_quarter_on_either_side_at_most_are_flagged_and_none_is_dropped(samples):
    flagged = outliers(samples)
    assert flagged.shape == samples.shape
    middle = (samples >= np.percentile(samples, 25)) & (samples <= np.percentile(samples, 75))
    assert not (flagged & middle).any()


# Jumps within a run


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("tail", ["", "t", "spikes"])
def test_a_stationary_run_is_hardly_ever_said_to_have_moved(correlation, tail):
    random = np.random.default_rng([7, int(10 * correlation), len(tail)])
    alarms = [
        moved(latencies(random, 200, spread=spread, correlation=correlation, tail=tail)) is not None
        for spread in (0.01, 0.05, 0.15)
        for _ in range(150)
    ]
    assert np.mean(alarms) < 0.01


@pytest.mark.parametrize("spread", [0.01, 0.04])
@pytest.mark.parametrize("tail", ["", "t", "spikes"])
def test_a_step_of_a_tenth_is_found(spread, tail):
    random = np.random.default_rng([8, int(100 * spread), len(tail)])
    found = 0
    for _ in range(60):
        at = int(random.uniform(40, 160))
        samples = latencies(random, 200, spread=spread, correlation=0.5, tail=tail)
        samples[at:] = samples[at:] * 11 // 10
        points = change_points(samples)
        found += bool(points) and min(abs(point - at) for point in points) <= 16
    assert found > 54


def test_a_step_is_where_it_is_and_as_high_as_it_is():
    samples = np.repeat([1000, 1100], [80, 120])
    assert change_points(samples) == (80,)
    assert moved(samples) == "the latency jumps by +10 % at call 81 of 200"


def test_a_passing_change_is_found_too():
    samples = np.repeat([1000, 1200, 1000], [80, 64, 56])
    assert change_points(samples) == (80, 144)
    assert moved(samples).endswith("by +20 % at call 81, by -17 % at call 145 of 200")


def test_stairs_are_found_step_by_step():
    assert change_points(np.repeat([1000, 1200, 1500], [64, 80, 56])) == (64, 144)


def test_a_step_too_small_to_matter_is_left_alone():
    assert change_points(np.repeat([10000, 10400], [96, 104])) == ()
    assert change_points(np.repeat([10000, 10600], [96, 104])) == (96,)


def test_spikes_however_high_are_no_jump():
    samples = np.full(200, 1000)
    samples[::9] = 50_000
    samples[40:46] = 90_000
    assert change_points(samples) == ()


@given(LATENCIES)
def test_points_are_within_the_series_and_levels_are_long(samples):
    points = change_points(samples)
    edges = [0, *points, len(samples)]
    if points:
        assert min(after - before for before, after in itertools.pairwise(edges)) >= 24
    assert (moved(samples) is None) == (points == ())


@given(st.integers(1, 47), st.integers(0, 2**32 - 1))
def test_too_short_a_run_says_nothing(n, seed):
    samples = np.random.default_rng(seed).choice([1000, 5000], n)
    assert change_points(samples) == ()


@given(LATENCIES, st.integers(2, 1000))
def test_the_unit_of_the_clock_does_not_matter(samples, factor):
    # Differences of logarithms may fall on the other side of the bound by rounding only.
    assert len(change_points(samples * factor)) == len(change_points(samples))


# Drift over runs


def test_a_drift_by_hand():
    size, p = drift([1.01**number for number in range(6)])
    assert p == pytest.approx(2 / 720)  # one order of 6! and its reverse
    assert size == pytest.approx(1.01**5 - 1)
    # One run off the line changes the order, not the slope.
    size, p = drift([1.01**number for number in (0, 1, 2, 20, 4, 5, 6, 7)])
    assert p == pytest.approx(0.0141, abs=5e-4)
    assert size == pytest.approx(1.01**7 - 1)
    assert drift([100, 100, 100]) == (0.0, 1.0)


def test_runs_that_warm_up_the_device_drift():
    assert drifted([100, 102, 104, 106, 108, 110]).startswith("the runs drift by +10 %")
    assert drifted([110, 108, 106, 104, 102, 100]).startswith("the runs drift by -9 %")


def test_what_is_no_drift():
    assert drifted([100, 100.1, 100.2, 100.3, 100.4, 100.5, 100.6]) is None  # too little
    assert drifted([100, 110, 104, 106, 102, 112, 108]) is None  # in no order
    assert drifted([100, 104, 108, 112, 116]) is None  # too few to tell
    assert drifted([100]) is drifted([]) is None


def test_one_slow_run_is_no_drift():
    assert drifted([100, 101, 99, 100, 101, 99, 100, 150]) is None


@pytest.mark.parametrize("runs", [6, 10, 15])
def test_unordered_runs_are_hardly_ever_said_to_drift(runs):
    random = np.random.default_rng(runs)
    medians = np.exp(random.normal(0, 0.05, (600, runs)))
    assert np.mean([drifted(row) is not None for row in medians]) < 0.01


def test_a_real_drift_over_many_runs_is_found():
    random = np.random.default_rng(3)
    slope = np.linspace(0, 0.10, 12)
    medians = np.exp(slope + random.normal(0, 0.01, (200, 12)))
    assert np.mean([drifted(row) is not None for row in medians]) > 0.9
