"""The hierarchical bootstrap: runs are drawn again, and iterations within them.

It assumes no distribution, and pays for that with few runs.  Share of 95 % intervals that cover the
truth, and how wide the middling one is beside Student's t, for the 90th percentile; measured by
``python -m tools.bench.coverage``:

==========================================  ======  ======  =======  ===============
method, and how runs vary                   3 runs  5 runs  10 runs  width at 5 runs
==========================================  ======  ======  =======  ===============
Student's t over runs, normal                 95 %    95 %     93 %  1
Student's t over runs, skewed                 90 %    89 %     91 %  1
percentile, normal                            78 %    86 %     90 %  0.7
percentile, not at all                        99 %    99 %    100 %  1.0
BCa, normal                                   77 %    86 %     89 %  0.7
studentised, normal                           none    94 %     94 %  1.3
studentised, skewed                           none    92 %     94 %  1.4
the bootstrap of one run's calls, normal      23 %    23 %     24 %  0.2
==========================================  ======  ======  =======  ===============

Percentile and BCa intervals are far too narrow with as few runs as one makes, and too wide where
runs differ by their iterations alone, whose noise they count twice: they are not offered.  The
studentised one does better than t where the runs' distribution is skewed; with one slow run among
equal ones it is very wide.  Summaries use t, whose interval stays right when the number of runs is
decided on the way (see :func:`profiles.statistics.two_stage_interval`); this is the second opinion.

Source: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, sections 3.8
(hierarchical data) and 5.2 (studentised).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: With three runs the studentised interval is 16 times as wide as t's, and of no use.
FEWEST_RUNS = 5
#: Logarithms nearer to each other than this differ by rounding.
_NO_SPREAD = 1e-12
#: Share of resamples without any spread from which on the tails of 2.5 % are not known.
_MOST_WITHOUT = 0.01


def studentised_interval(
    runs: Sequence[ArrayLike], q: float = 0.5, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the geometric mean over the runs of one quantile of each.

    Args:
        runs: one array of positive latencies per run.
        q: which quantile, from 0 to 1.
        resamples: how often runs and iterations are drawn again.
        seed: of the draws.

    Returns:
        Low and high; ``None`` with fewer than five runs, or where so many resamples are of equal
        values, without a spread to divide by, that the ends are not known.
    """
    if len(runs) < FEWEST_RUNS:
        return None
    logs = [np.log(np.asarray(run, dtype=np.float64)) for run in runs]
    found = np.array([np.quantile(run, q) for run in logs])
    # In an order of their own, so that the order of the runs means nothing to the draws.
    drawn = resampled_quantiles(
        [logs[place] for place in np.argsort(found)], q, resamples, np.random.default_rng(seed)
    )
    spread = drawn.std(axis=1, ddof=1)
    told = spread > _NO_SPREAD
    if np.mean(~told) > _MOST_WITHOUT:
        return None
    centre, error = float(found.mean()), float(found.std(ddof=1))
    scores = (drawn[told].mean(axis=1) - centre) / spread[told]
    below, above = np.quantile(scores, [0.025, 0.975])
    with np.errstate(over="ignore"):
        low, high = np.exp([centre - above * error, centre - below * error])
    return (float(low), float(high)) if np.isfinite(high) else None


def resampled_quantiles(
    runs: Sequence[ArrayLike], q: float, resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """One quantile of each run of each resample, shape ``(resamples, len(runs))``.

    As many runs are drawn as there are, with replacement, and as many iterations from each; the
    quantile is numpy's, on a straight line between two neighbours in order.  The iterations are
    not drawn one by one: those two are the values at ``floor(n * U)`` of the sorted run for two
    neighbouring order statistics ``U`` of ``n`` uniform numbers.  The lower follows a Beta
    distribution, and what the upper lies above it the smallest of the uniform numbers that are
    left.

    Source: David & Nagaraja, "Order Statistics", 3rd edition, 2003, sections 2.1 and 2.5.
    """
    sizes = np.array([len(np.asarray(run)) for run in runs])
    offsets = np.cumsum(sizes) - sizes
    values = np.concatenate([np.sort(np.asarray(run, dtype=np.float64)) for run in runs])
    places = (sizes - 1) * q
    below = places.astype(np.int64)
    drawn = random.integers(0, len(runs), (resamples, len(runs)))
    size, rank = sizes[drawn], below[drawn]
    lower = random.beta(rank + 1.0, size - rank)
    left = np.maximum(size - rank - 1, 1)  # with none left the weight of the upper is 0
    upper = 1 - (1 - lower) * random.random(lower.shape) ** (1 / left)
    weight = (places - below)[drawn]
    first, second = (
        values[offsets[drawn] + np.minimum((size * place).astype(np.int64), size - 1)]
        for place in (lower, upper)
    )
    quantiles: NDArray[np.float64] = first + weight * (second - first)
    return quantiles
