"""Intervals that keep their promise, and summaries that do not invent anything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import xlogy
from scipy.stats import multinomial, t

from profiles.statistics import Summary, agreement, paired_drop_interval, summarise

LATENCIES = arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 10**10))
RUNS = st.lists(LATENCIES, min_size=1, max_size=6)


def runs_of(*medians: float) -> list[np.ndarray]:
    return [np.full(5, median, dtype=np.int64) for median in medians]


# Summaries


def test_a_worked_example():
    summary = summarise([np.array([1, 2, 3]), np.array([2, 4, 100, 5]), np.array([6])])
    assert (summary.n, summary.runs) == (8, 3)
    assert summary.median_ns == pytest.approx((2 * 4.5 * 6) ** (1 / 3))
    assert summary.mean_ns == pytest.approx((2 + 27.75 + 6) / 3)
    assert summary.p90_ns == pytest.approx((2.8 * 71.5 * 6) ** (1 / 3))
    assert (summary.p99_ns, summary.min_ns) == (None, 1)
    # Distances from the runs' own medians: 1 0 1, 2.5 0.5 95.5 0.5, 0.
    assert summary.mad_ns == pytest.approx(0.75)


def test_a_99th_percentile_needs_a_thousand_samples():
    samples = np.arange(1, 1000)
    assert summarise([samples]).p99_ns is None
    assert summarise([samples, np.array([1000])]).p99_ns == pytest.approx(990.01)


@given(RUNS)
def test_a_summary_lies_within_its_data(runs):
    summary = summarise(runs)
    low, high = min(run.min() for run in runs), max(run.max() for run in runs)
    assert low * (1 - 1e-12) <= summary.median_ns <= high * (1 + 1e-12)
    assert summary.median_ns <= summary.p90_ns * (1 + 1e-12)
    assert summary.p90_ns <= high * (1 + 1e-12)
    assert (summary.n, summary.runs) == (sum(map(len, runs)), len(runs))


@given(RUNS, st.randoms())
def test_the_order_of_runs_and_samples_does_not_matter(runs, random):
    shuffled = [run[random.sample(range(len(run)), len(run))] for run in runs]
    random.shuffle(shuffled)
    one, two = summarise(runs), summarise(shuffled)
    assert one.median_ns == pytest.approx(two.median_ns)
    assert one.p90_ns == pytest.approx(two.p90_ns)
    if one.ci95_ns is not None:
        assert one.ci95_ns == pytest.approx(two.ci95_ns)


@given(RUNS, st.integers(2, 1000))
def test_a_slower_clock_changes_the_unit_and_nothing_else(runs, factor):
    one, two = summarise(runs), summarise([run * factor for run in runs])
    assert two.median_ns == pytest.approx(one.median_ns * factor)
    if one.ci95_ns is not None:
        assert two.ci95_ns == pytest.approx([factor * end for end in one.ci95_ns])
        assert two.relative_half_width == pytest.approx(one.relative_half_width)


@given(RUNS)
def test_there_is_an_interval_from_three_runs_on(runs):
    summary = summarise(runs)
    assert (summary.ci95_ns is not None) == (len(runs) >= 3)
    assert (summary.relative_half_width is not None) == (len(runs) >= 3)
    if summary.ci95_ns is not None:
        low, high = summary.ci95_ns
        assert 0 < low <= summary.median_ns * (1 + 1e-12)
        assert high >= summary.median_ns * (1 - 1e-12)


def test_more_iterations_in_a_run_do_not_narrow_the_interval():
    """The run is the unit: a thousand iterations of three processes are three observations."""
    few = summarise([np.repeat(m, 3) for m in (100, 110, 120)])
    many = summarise([np.repeat(m, 3000) for m in (100, 110, 120)])
    assert few.ci95_ns == pytest.approx(many.ci95_ns)


def test_more_runs_do():
    three = summarise(runs_of(1000, 1100, 1200)).relative_half_width
    nine = summarise(runs_of(*[1000, 1100, 1200] * 3)).relative_half_width
    assert nine < three / 2


def test_equal_runs_have_an_interval_of_no_width():
    assert summarise(runs_of(1000, 1000, 1000)).ci95_ns == pytest.approx((1000, 1000))


def test_the_interval_by_hand():
    logs = np.log([1000, 1100, 1300])
    half = t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    centre = (1000 * 1100 * 1300) ** (1 / 3)
    assert summarise(runs_of(1000, 1100, 1300)).ci95_ns == pytest.approx(
        (centre * math.exp(-half), centre * math.exp(half))
    )


def test_one_slow_iteration_hardly_matters_and_one_slow_run_does():
    base = summarise(runs_of(*[1000] * 6))
    slow_call = summarise([np.array([1000] * 9 + [100_000])] * 6)
    slow_run = summarise(runs_of(1000, 1000, 1000, 1000, 1000, 2000))
    assert slow_call.median_ns == base.median_ns
    assert slow_run.median_ns > base.median_ns
    assert slow_run.relative_half_width > 0.1


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [np.array([], dtype=np.int64)],
        [np.array([1, 2]), np.array([], dtype=np.int64)],
        [np.array([1, 0])],
        [np.array([5]), np.array([-5])],
    ],
    ids=["no runs", "empty run", "one empty run", "zero", "negative"],
)
def test_what_was_not_measured_has_no_summary(runs):
    with pytest.raises(ValueError, match=r"sample|measured"):
        summarise(runs)


def simulate(random: np.random.Generator, runs: int, iterations: int) -> list[np.ndarray]:
    """Latencies around 10 ms: 3 % between runs, 1 % within, and now and then a slow call."""
    levels = 1e7 * np.exp(random.normal(0, 0.03, runs))
    noise = np.exp(random.normal(0, 0.01, (runs, iterations)))
    spikes = np.where(random.random((runs, iterations)) < 0.02, 1.5, 1.0)
    return list(np.rint(levels[:, None] * noise * spikes).astype(np.int64))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """And an interval made from the iterations of one run does not, which is why runs exist."""
    random = np.random.default_rng(2024)
    # What one would find with very many runs.
    truth = summarise(simulate(random, 4000, 100)).median_ns
    covered = naive = 0
    for _ in range(500):
        runs = simulate(random, 8, 100)
        low, high = summarise(runs).ci95_ns
        covered += low <= truth <= high
        resampled = np.median(random.choice(runs[0], (200, 100)), axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        naive += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.98
    assert naive / 500 < 0.3


@pytest.mark.parametrize("runs", [3, 5])
def test_few_runs_are_covered_too(runs):
    random = np.random.default_rng(runs)
    truth = summarise(simulate(random, 4000, 50)).median_ns
    intervals = [summarise(simulate(random, runs, 50)).ci95_ns for _ in range(500)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.98


def test_the_relative_half_width_is_half_the_interval():
    summary = Summary(
        n=3,
        runs=3,
        median_ns=100.0,
        ci95_ns=(90.0, 114.0),
        mean_ns=101.0,
        p90_ns=120.0,
        p99_ns=None,
        min_ns=80.0,
        mad_ns=2.0,
    )
    assert summary.relative_half_width == pytest.approx(0.12)


# Accuracy lost


def pairs(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    reference = [True] * (both + lost) + [False] * (won + neither)
    candidate = [True] * both + [False] * lost + [True] * won + [False] * neither
    return reference, candidate


def score(drop: float, lost: int, won: int, n: int) -> float:
    """Tango's statistic from its definition: what is lost beyond ``drop``, over the standard error
    at the most likely probabilities with that drop, searched for in ever smaller steps."""
    low, high = max(0.0, -drop), (1 - drop) / 2
    for _ in range(12):
        shares = np.linspace(low, high, 41)
        cells = np.stack([shares + drop, shares, 1 - 2 * shares - drop])
        likelihood = xlogy([[lost], [won], [n - lost - won]], np.maximum(cells, 0)).sum(axis=0)
        best = int(np.argmax(likelihood))
        low, high = shares[max(best - 1, 0)], shares[min(best + 1, 40)]
    return (lost - won - n * drop) / math.sqrt(n * (2 * shares[best] + drop - drop**2))


COUNTS = st.tuples(*[st.integers(0, 30)] * 3).filter(any)


@given(COUNTS)
def test_the_ends_of_a_paired_interval_solve_the_score_equation(counts):
    lost, won, same = counts
    low, high = paired_drop_interval(*pairs(same, lost, won, 0))
    n = sum(counts)
    for end, expected in ((low, 1.959964), (high, -1.959964)):
        if abs(end) < 1 - 1e-9:
            assert score(end, lost, won, n) == pytest.approx(expected, abs=1e-3)
        else:  # nothing but losses, or nothing but wins
            assert n in (lost, won)


def test_no_difference_seen_by_hand():
    """Without discordant pairs the end is ``z^2 / (n + z^2)``."""
    end = 1.959964**2 / (44 + 1.959964**2)
    assert paired_drop_interval(*pairs(44, 0, 0, 0)) == pytest.approx((-end, end))


def test_all_lost():
    low, high = paired_drop_interval(*pairs(0, 44, 0, 0))
    assert (low, high) == (pytest.approx(44 / (44 + 1.959964**2) * 2 - 1), 1.0)


BOOLS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(BOOLS)
def test_a_paired_interval_is_around_the_difference(observed):
    reference, candidate = map(list, zip(*observed, strict=True))
    low, high = paired_drop_interval(reference, candidate)
    drop = (sum(reference) - sum(candidate)) / len(observed)
    assert -1 <= low <= drop <= high <= 1
    assert low < high


@given(BOOLS)
def test_changing_sides_changes_the_sign(observed):
    reference, candidate = map(list, zip(*observed, strict=True))
    low, high = paired_drop_interval(reference, candidate)
    assert paired_drop_interval(candidate, reference) == pytest.approx((-high, -low))


@given(BOOLS, st.randoms())
def test_only_the_pairs_matter_not_their_order(observed, random):
    shuffled = random.sample(observed, len(observed))
    assert paired_drop_interval(*zip(*observed, strict=True)) == pytest.approx(
        paired_drop_interval(*zip(*shuffled, strict=True))
    )


def test_pairing_is_used():
    """Models that err on the same inputs differ more surely than models that err anywhere."""
    together = paired_drop_interval(*pairs(80, 5, 0, 15))
    apart = paired_drop_interval(*pairs(65, 20, 15, 0))
    assert together[1] - together[0] < (apart[1] - apart[0]) / 2
    assert together[0] > 0 > apart[0]


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(10, 0.1, 0.1), (20, 0.1, 0.05), (60, 0.3, 0.2), (40, 0.05, 0.0), (40, 0.02, 0.0)],
)
def test_paired_coverage_for_small_samples(n, lost, won):
    """Summed over every outcome that can happen, not simulated."""
    covered = 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        if a + b <= n:
            low, high = paired_drop_interval(*pairs(n - a - b, a, b, 0))
            if low <= lost - won <= high:
                covered += multinomial.pmf([a, b, n - a - b], n, [lost, won, 1 - lost - won])
    assert covered >= 0.93


@pytest.mark.parametrize(
    ("reference", "candidate"), [([], []), ([True], [True, False]), ([[True]], [True])]
)
def test_unpaired_data_is_refused(reference, candidate):
    with pytest.raises(ValueError, match="same inputs"):
        paired_drop_interval(reference, candidate)


# Agreement of predictions


def test_perfect_predictions():
    found = agreement([1, 2, 3, 4], [1, 2, 3, 4], "random networks")
    assert (found.population, found.n, found.mape) == ("random networks", 4, 0.0)
    assert (found.within_5_percent, found.within_10_percent) == (1.0, 1.0)
    assert (found.spearman, found.kendall) == (pytest.approx(1.0), pytest.approx(1.0))


def test_agreement_by_hand():
    found = agreement([104, 92, 100, 150], [100, 100, 100, 100], "x")
    assert found.mape == pytest.approx((0.04 + 0.08 + 0 + 0.5) / 4)
    assert (found.within_5_percent, found.within_10_percent) == (0.5, 0.75)
    assert found.spearman is found.kendall is None  # equal measurements have no order


def test_order_without_size():
    found = agreement([10, 20, 30, 40], [1, 4, 9, 16], "x")
    assert found.spearman == pytest.approx(1.0)
    assert found.mape > 1
    assert agreement([40, 30, 20, 10], [1, 4, 9, 16], "x").kendall == pytest.approx(-1.0)


def test_two_networks_have_no_rank_correlation():
    found = agreement([1, 2], [1, 2], "x")
    assert (found.spearman, found.kendall) == (None, None)


POSITIVE = st.floats(1e-3, 1e9)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=20))
def test_agreement_is_in_range(rows):
    predicted, measured = map(list, zip(*rows, strict=True))
    found = agreement(predicted, measured, "x")
    assert found.mape >= 0
    assert 0 <= found.within_5_percent <= found.within_10_percent <= 1
    for correlation in (found.spearman, found.kendall):
        assert correlation is None or -1.0001 <= correlation <= 1.0001


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [
        ([], []),
        ([1], [1, 2]),
        ([1], [0]),
        ([1], [-1]),
        ([1, 1], [1, math.nan]),
        ([math.nan, 1], [1, 1]),
        ([math.inf, 1], [1, 1]),
    ],
)
def test_agreement_with_what_was_not_measured_or_not_predicted(predicted, measured):
    with pytest.raises(ValueError, match="as many"):
        agreement(predicted, measured, "x")
