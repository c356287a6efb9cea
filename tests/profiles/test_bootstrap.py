"""The bootstrap's short cut draws what drawing one by one would draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp

from profiles.bootstrap import FEWEST_RUNS, resampled_quantiles, studentised_interval
from profiles.statistics import summarise

RUNS = st.lists(
    arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 10**10)), min_size=1, max_size=8
)


def one_by_one(
    runs: list[np.ndarray], q: float, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """The textbook's way."""
    drawn = random.integers(0, len(runs), (resamples, len(runs)))
    found = np.array(
        [[np.quantile(random.choice(runs[run], len(runs[run])), q) for run in row] for row in drawn]
    )
    return found.round(9)  # equal values must be equal: few values are often drawn


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 0.0, 1.0])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (7, 20, 31), (1, 2, 5)])
def test_quantiles_are_distributed_as_if_drawn_one_by_one(q, sizes):
    random = np.random.default_rng([len(sizes), sizes[0], int(100 * q)])
    runs = [random.lognormal(0.3 * number, 1, size) for number, size in enumerate(sizes)]
    short = resampled_quantiles(runs, q, 4000, random).round(9)
    plain = one_by_one(runs, q, 1000, random)
    assert short.shape == (4000, 3)
    for column in range(3):
        assert ks_2samp(short[:, column], plain[:, column]).pvalue > 1e-4
    # The runs of one resample are drawn independently.
    assert ks_2samp(short.sum(axis=1).round(8), plain.sum(axis=1).round(8)).pvalue > 1e-4


@given(RUNS, st.floats(0, 1))
def test_quantiles_lie_within_the_runs(runs, q):
    drawn = resampled_quantiles(runs, q, 50, np.random.default_rng(0))
    assert min(run.min() for run in runs) <= drawn.min() * (1 + 1e-12)
    assert drawn.max() <= max(run.max() for run in runs) * (1 + 1e-12)


@given(st.lists(st.integers(1, 10**6), min_size=5, max_size=9), st.randoms())
@settings(max_examples=40)
def test_neither_order_nor_unit_matter(medians, random):
    runs = [median + np.arange(20) for median in medians]
    shuffled = [run[::-1] for run in random.sample(runs, len(runs))]
    first = studentised_interval(runs, resamples=500)
    assert (first is None) == (studentised_interval(shuffled, resamples=500) is None)
    if first is not None:
        assert studentised_interval(shuffled, resamples=500) == pytest.approx(first)
        double = studentised_interval([2 * run for run in runs], resamples=500)
        assert double == pytest.approx([2 * end for end in first])


def test_too_few_runs_have_no_interval():
    runs = [np.array([100.0, 110.0]) * number for number in range(1, FEWEST_RUNS)]
    assert studentised_interval(runs) is None
    assert studentised_interval([*runs, np.array([500.0, 550.0])]) is not None


def test_equal_runs_have_no_spread_to_divide_by():
    assert studentised_interval([np.full(9, 100)] * 6) is None


def test_it_holds_the_run_quantiles_mean_and_differs_by_seed():
    random = np.random.default_rng(1)
    runs = [1e6 * random.lognormal(level, 0.02, 60) for level in random.normal(0, 0.03, 8)]
    low, high = studentised_interval(runs, 0.9)
    assert low < summarise(runs).p90_ns < high
    assert studentised_interval(runs, 0.9, seed=1) != (low, high)


@pytest.mark.parametrize("skewed", [False, True])
def test_it_covers_the_truth_with_ten_runs(skewed):
    """Also where the runs' distribution is skewed, and t does not."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        levels = random.exponential(0.03, 10) - 0.03 if skewed else random.normal(0, 0.03, 10)
        runs = np.exp(levels[:, None] + random.normal(0, 0.01, (10, 41)))
        low, high = studentised_interval(list(runs), resamples=1000)
        covered += low <= 1 <= high
    assert 0.92 <= covered / 400 <= 0.98
