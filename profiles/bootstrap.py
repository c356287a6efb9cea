"""The hierarchical bootstrap: runs are drawn again, and iterations within them.

It assumes no distribution, and pays for that with few runs.  Measured by ``python -m
tools.bench.coverage``: share of 95 % intervals that cover the truth, for the 90th percentile.

===========================  =====  =====  =====  ======================================
runs                             3      5     10  width at 5 runs, as a multiple of t's
===========================  =====  =====  =====  ======================================
Student's t, runs normal      95 %   94 %   95 %  1
Student's t, runs skewed      87 %   89 %   92 %  1
percentile, runs normal       75 %   82 %   91 %  0.6
BCa, runs normal              74 %   82 %   90 %  0.6
studentised, runs normal      98 %   95 %   95 %  1.5
studentised, runs skewed      93 %   94 %   95 %  2.2
===========================  =====  =====  =====  ======================================

The percentile and BCa intervals are far too narrow with as few runs as one makes, and too wide
(98 to 99 %) where runs differ by their iterations alone, whose noise they count twice.  Only the
studentised one keeps its promise, from five runs on, also where t does not; with one slow run
among equal ones it is very wide.  That is why summaries use t (see
:func:`profiles.statistics.two_stage_interval`), and this is the second opinion where the runs'
distribution is in doubt.

Source: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, sections 3.8
(hierarchical data) and 5.2 (studentised).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Below, the studentised interval is too wide to be of use: see the table above.
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
