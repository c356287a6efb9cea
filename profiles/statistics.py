"""Statistics of repeated runs.

The statistical unit is the run (a fresh process), not the iteration: iterations of one process
share its memory layout, its place in the thermal cycle and its neighbours, and an interval made
from them alone is far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.records import Samples


@dataclass(frozen=True, slots=True)
class Summary:
    """A latency over several runs.

    Args:
        n: timed iterations in all.
        runs: how many runs they come from.
        median_ns: mean over the runs of each run's median.
        ci95_ns: 95 % interval of ``median_ns``; ``None`` with fewer than three runs.
        p90_ns: mean over the runs of each run's 90th percentile.
    """

    n: int
    runs: int
    median_ns: float
    ci95_ns: tuple[float, float] | None
    p90_ns: float

    @property
    def relative_half_width(self) -> float | None:
        """Half the interval's width as a share of the median."""
        if self.ci95_ns is None:
            return None
        return (self.ci95_ns[1] - self.ci95_ns[0]) / (2 * self.median_ns)


def summarise(runs: Sequence[Samples]) -> Summary:
    """Summarise the timed iterations of one artifact.

    The interval is Student's t over the logarithms of the run medians: latencies are positive
    and vary by factors, and a t-interval over run statistics keeps its coverage when runs differ
    by more than iterations do, where a bootstrap inside a run does not.

    Args:
        runs: one array of latencies in ns per run, each of at least one sample.

    Raises:
        ValueError: without runs, for an empty run, or for latencies that are not positive.

    Source: Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013, section 5
    (variation at the highest level dominates the interval).
    """
    if not runs or any(len(run) == 0 for run in runs):
        raise ValueError("a summary needs at least one run with at least one sample")
    if any(run.min() <= 0 for run in runs):
        raise ValueError("a latency of zero or less was never measured")
    medians = np.array([np.median(run) for run in runs])
    return Summary(
        n=sum(len(run) for run in runs),
        runs=len(runs),
        median_ns=float(medians.mean()),
        ci95_ns=_log_t_interval(medians) if len(medians) >= 3 else None,
        p90_ns=float(np.mean([np.percentile(run, 90) for run in runs])),
    )


def _log_t_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of ``log(values)``, on the values' own scale and around
    their mean."""
    from scipy.stats import t

    logs = np.log(values)
    half = float(t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    centre = float(values.mean())
    return centre * float(np.exp(-half)), centre * float(np.exp(half))


def paired_drop_interval(reference: ArrayLike, candidate: ArrayLike) -> tuple[float, float]:
    """95 % interval of the accuracy lost, reference minus candidate, on the same inputs.

    Args:
        reference: one boolean per input, whether the reference was right; shape ``(n,)``.
        candidate: the same for the candidate.

    Returns:
        Low and high, as fractions; negative where the candidate is better.

    Raises:
        ValueError: if the shapes differ or there is no input.

    Source: Agresti & Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24 (2005): Wald with half a pair added to each cell.
    """
    first = np.asarray(reference, dtype=bool)
    second = np.asarray(candidate, dtype=bool)
    if first.shape != second.shape or first.size == 0:
        raise ValueError("a paired interval needs the same inputs, at least one, on both sides")
    lost = float(np.sum(first & ~second)) + 0.5
    won = float(np.sum(~first & second)) + 0.5
    n = first.size + 2.0
    drop = (lost - won) / n
    half = 1.959964 * float(np.sqrt(lost + won - (lost - won) ** 2 / n)) / n
    return drop - half, drop + half


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well predicted latencies match measured ones on one population.

    Args:
        population: in words, where the networks come from.
        n: how many there were.
        mape: mean absolute percentage error, as a fraction.
        within_5_percent, within_10_percent: share of networks predicted that closely.
        spearman, kendall: rank correlations; ``None`` with fewer than three networks.
    """

    population: str
    n: int
    mape: float
    within_5_percent: float
    within_10_percent: float
    spearman: float | None
    kendall: float | None


def agreement(predicted: ArrayLike, measured: ArrayLike, population: str) -> Agreement:
    """Compare predictions with measurements of the same networks.

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
    )
