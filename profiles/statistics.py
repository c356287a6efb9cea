"""Statistics of repeated runs.

The statistical unit is the run (a fresh process), not the iteration: iterations of one process
share its memory layout, its place in the thermal cycle and its neighbours, and an interval made
from them alone is far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from profiles.records import Samples

#: So many runs have a variance that says something.
FEWEST_RUNS = 3
#: A 99th percentile of fewer samples rests on fewer than ten beyond it.
#: Source: measurement.md, rule 7.
FEWEST_FOR_P99 = 1000


@dataclass(frozen=True, slots=True)
class Summary:
    """A latency over several runs.

    Args:
        n: timed iterations in all.
        runs: how many runs they come from.
        median_ns: geometric mean over the runs of each run's median.
        ci95_ns: 95 % interval of ``median_ns``; ``None`` with fewer than three runs.
        mean_ns: mean over the runs of each run's mean.
        p90_ns: geometric mean over the runs of each run's 90th percentile.
        p99_ns: 99th percentile of all samples; ``None`` with fewer than 1000.
        min_ns: the fastest call.
        mad_ns: median distance of a call from its own run's median.
    """

    n: int
    runs: int
    median_ns: float
    ci95_ns: tuple[float, float] | None
    mean_ns: float
    p90_ns: float
    p99_ns: float | None
    min_ns: float
    mad_ns: float

    @property
    def relative_half_width(self) -> float | None:
        """Half the interval's width as a share of the median."""
        if self.ci95_ns is None:
            return None
        return (self.ci95_ns[1] - self.ci95_ns[0]) / (2 * self.median_ns)


def summarise(runs: Sequence[Samples], pilot: int | None = None) -> Summary:
    """Summarise the timed iterations of one artifact.

    The interval is Student's t over the logarithms of the run medians: latencies are positive
    and vary by factors, and a t-interval over run statistics keeps its coverage when runs differ
    by more than iterations do, where a bootstrap inside a run does not.

    Args:
        runs: one array of latencies in ns per run, each of at least one sample, in the order made.
        pilot: how many of them decided how many there are (see :mod:`profiles.stopping`).  The
            interval then rests on the variance of these alone; ``None``: their number was fixed
            beforehand, and all count.

    Raises:
        ValueError: without runs, for an empty run, or for latencies that are not positive.

    Source: Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013, section 5
    (variation at the highest level dominates the interval).
    """
    if not runs or any(len(run) == 0 for run in runs):
        raise ValueError("a summary needs at least one run with at least one sample")
    if any(run.min() <= 0 for run in runs):
        raise ValueError("a latency of zero or less was never measured")
    medians, tails = np.array([np.percentile(run, [50, 90]) for run in runs]).T
    samples = np.concatenate(runs)
    distances = np.concatenate(
        [np.abs(run - median) for run, median in zip(runs, medians, strict=True)]
    )
    return Summary(
        n=len(samples),
        runs=len(runs),
        median_ns=geometric_mean(medians),
        ci95_ns=two_stage_interval(medians, pilot),
        mean_ns=float(np.mean([run.mean() for run in runs])),
        p90_ns=geometric_mean(tails),
        p99_ns=float(np.percentile(samples, 99)) if len(samples) >= FEWEST_FOR_P99 else None,
        min_ns=float(samples.min()),
        mad_ns=float(np.median(distances)),
    )


def geometric_mean(values: ArrayLike) -> float:
    """The value of which all of these are as much above as below, by factors."""
    return float(np.exp(np.mean(np.log(values))))


def two_stage_interval(values: ArrayLike, pilot: int | None = None) -> tuple[float, float] | None:
    """95 % interval of the geometric mean of positive values, of which a pilot decided the number.

    The number of values depends on the pilot's variance alone, which says nothing of where their
    mean is: the mean less the truth, over the pilot's standard error, follows Student's t with the
    pilot's degrees of freedom whatever the number.  An interval from the variance of *all* values
    would be too narrow, because one stops when that happens to be small.

    Args:
        values: one statistic of each run, positive, in the order made.
        pilot: how many of the first decided the number; ``None`` for all.

    Returns:
        Low and high, or ``None`` with a pilot of fewer than three.

    Source: Stein, "A two-sample test for a linear hypothesis whose power is independent of the
    variance", Annals of Mathematical Statistics 16 (1945), theorem 1.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    first = logs[:pilot]
    if len(first) < FEWEST_RUNS:
        return None
    half = t_quantile(len(first) - 1) * float(first.std(ddof=1)) / float(np.sqrt(len(logs)))
    centre = float(logs.mean())
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def t_quantile(degrees: float) -> float:
    """How many standard errors a two-sided 95 % interval reaches."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def paired_drop_interval(reference: ArrayLike, candidate: ArrayLike) -> tuple[float, float]:
    """95 % interval of the accuracy lost, reference minus candidate, on the same inputs.

    Args:
        reference: one boolean per input, whether the reference was right; shape ``(n,)``.
        candidate: the same for the candidate.

    Returns:
        Low and high, as fractions; negative where the candidate is better.

    Raises:
        ValueError: if the shapes differ or there is no input.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998), pages 891 to 908: all drops that
    the score test does not reject.
    """
    first = np.asarray(reference, dtype=bool)
    second = np.asarray(candidate, dtype=bool)
    if first.shape != second.shape or first.size == 0:
        raise ValueError("a paired interval needs the same inputs, at least one, on both sides")
    lost = int(np.sum(first & ~second))
    won = int(np.sum(~first & second))
    return _least_drop(lost, won, first.size), -_least_drop(won, lost, first.size)


def _least_drop(lost: int, won: int, n: int) -> float:
    """The smallest drop that a one-sided 2.5 % score test does not reject, by bisection."""
    rejected, kept = -1.0, (lost - won) / n
    while kept - rejected > 1e-12:
        middle = (rejected + kept) / 2
        if _is_rejected(middle, lost, won, n):
            rejected = middle
        else:
            kept = middle
    return kept


def _is_rejected(drop: float, lost: int, won: int, n: int) -> bool:
    """Whether more was lost than a true drop of this size explains.

    Its variance is the one at the most likely share of inputs won, given the drop: the positive
    root of ``2 n p^2 + b p + c``.
    """
    b = -lost - won + (2 * n - lost + won) * drop
    c = -won * drop * (1 - drop)
    share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = max(n * (2 * share + drop * (1 - drop)), 0.0)
    return lost - won - n * drop > 1.959964 * math.sqrt(variance)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well predicted latencies match measured ones on one population.

    Args:
        population: in words, where the networks come from.
        n: how many there were.
        mape: mean absolute percentage error, as a fraction.
        within_5_percent, within_10_percent: share of networks predicted that closely.
        spearman, kendall: rank correlations; ``None`` with fewer than three networks.
        interval_coverage: share of the networks with an interval that lie in theirs; ``None``
            where there were no intervals.
    """

    population: str
    n: int
    mape: float
    within_5_percent: float
    within_10_percent: float
    spearman: float | None
    kendall: float | None
    interval_coverage: float | None = None


def agreement(
    predicted: ArrayLike,
    measured: ArrayLike,
    population: str,
    half_width: ArrayLike | None = None,
) -> Agreement:
    """Compare predictions with measurements of the same networks.

    Args:
        predicted, measured: shape ``(n,)``, in the same unit.
        population: in words, where the networks come from.
        half_width: half of each prediction's interval, same shape; NaN where it has none.

    Raises:
        ValueError: if the lengths differ, there is none, a measured value is not positive, or
            any is no finite number.
    """
    from scipy.stats import kendalltau, spearmanr

    guess = np.asarray(predicted, dtype=np.float64)
    truth = np.asarray(measured, dtype=np.float64)
    comparable = guess.shape == truth.shape and guess.size > 0 and bool(truth.min() > 0)
    if not (comparable and np.isfinite(guess).all() and np.isfinite(truth).all()):
        raise ValueError("agreement needs as many finite predictions as positive measurements")
    error = np.abs(guess / truth - 1)
    ranked = guess.size >= 3 and np.ptp(guess) > 0 and np.ptp(truth) > 0
    return Agreement(
        population=population,
        n=int(guess.size),
        mape=float(error.mean()),
        within_5_percent=float(np.mean(error <= 0.05)),
        within_10_percent=float(np.mean(error <= 0.10)),
        spearman=float(spearmanr(guess, truth).statistic) if ranked else None,
        kendall=float(kendalltau(guess, truth).statistic) if ranked else None,
        interval_coverage=_coverage(np.abs(guess - truth), half_width),
    )


def _coverage(distance: ArrayLike, half_width: ArrayLike | None) -> float | None:
    reach = np.asarray(np.nan if half_width is None else half_width, dtype=np.float64)
    known = np.broadcast_to(~np.isnan(reach), np.shape(distance))
    return float(np.mean((distance <= reach)[known])) if known.any() else None
