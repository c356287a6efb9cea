"""Whether a series of latencies stays where it is: outliers, jumps and drift.

Nothing is ever dropped here: what is found is said, and :mod:`profiles.quality` decides.

Latencies of one process are heavy-tailed and autocorrelated, and there are many of them, so that
a test of significance alone finds something in every run.  What is found must be significant among
medians of blocks, which are nearly normal and nearly independent, *and* large enough to matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Tukey's fences lie so many interquartile ranges beyond the quartiles.
#: Source: Tukey, "Exploratory Data Analysis", 1977, chapter 2.
_FENCE = 1.5
#: A smaller jump or drift is not worth refusing data for: it is twice what runs on quiet devices
#: vary by anyway (measurement.md, rule 2: 3 % between runs).
LEAST_CHANGE = 0.05
#: A block has at least so many samples: with a correlation of 0.5 from one call to the next, the
#: medians of neighbouring blocks then have one of 0.1.
_BLOCK_SAMPLES = 8
_MOST_BLOCKS = 40
#: What is said to have moved lasts for so many blocks, or one burst of slow calls would be a jump.
_FEWEST_BLOCKS = 3
#: Probability that a stationary series is said to have moved, or unordered runs to drift.
_FALSE_ALARM = 0.005


def outliers(samples: ArrayLike) -> NDArray[np.bool_]:
    """Which samples lie beyond Tukey's fences; flagged, never dropped; shape as given."""
    values = np.asarray(samples, dtype=np.float64)
    low, high = np.percentile(values, [25, 75])
    reach = _FENCE * (high - low)
    return np.asarray((values < low - reach) | (values > high + reach))


def change_points(samples: ArrayLike) -> tuple[int, ...]:
    """Where one run's latency jumps: the index of the first sample at each new level.

    Circular binary segmentation of the logarithms of block medians: of all stretches of blocks
    the one that differs most from the rest, by Student's t over Bonferroni's bound for all
    stretches, and by 5 % of the median at least; then the same within each part.  A stretch finds
    a passing change, too, which no single cut would.

    Args:
        samples: one run's latencies, in the order made; with fewer than 48 nothing is found.

    Returns:
        Increasing indices, each at the beginning of a block of at least 8 samples.

    Source: Olshen, Venkatraman, Lucito & Wigler, "Circular binary segmentation for the analysis of
    array-based DNA copy number data", Biostatistics 5 (2004).
    """
    logs = np.log(np.asarray(samples, dtype=np.float64))
    blocks = np.array_split(logs, max(min(len(logs) // _BLOCK_SAMPLES, _MOST_BLOCKS), 1))
    medians = np.array([np.median(block) for block in blocks])
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    cuts: list[int] = []
    parts = [(0, len(blocks))]
    while parts:
        start, end = parts.pop()
        low, high = (start + edge for edge in _stretch(medians[start:end]))
        found = [cut for cut in (low, high) if start < cut < end]
        inside = np.concatenate([np.zeros(0), *blocks[low:high]])
        rest = np.concatenate([np.zeros(0), *blocks[start:low], *blocks[high:end]])
        if found and _matters(inside, rest):
            cuts += found
            parts += itertools.pairwise([start, *found, end])
    return tuple(int(starts[cut]) for cut in sorted(cuts))


def _matters(logs: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    return abs(float(np.median(logs) - np.median(others))) >= math.log1p(LEAST_CHANGE)


def _stretch(levels: NDArray[np.float64]) -> tuple[int, int]:
    """From where to where the levels differ from the rest; all of them where they do not."""
    from scipy.stats import t

    count = len(levels)
    first, last = np.triu_indices(count + 1, k=_FEWEST_BLOCKS)
    # What is left on either side is nothing, or long enough to be a level, too.
    short = [(gap > 0) & (gap < _FEWEST_BLOCKS) for gap in (first, count - last)]
    kept = ~short[0] & ~short[1] & (last - first < count)
    first, last = first[kept], last[kept]
    if not len(first):
        return 0, count
    inside = last - first
    centred = levels - levels.mean()
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    within = (sums[last] - sums[first]) / inside
    difference = within * count / (count - inside)  # for the rest has the opposite sum
    total = float((centred**2).sum())
    error = np.maximum(total - within * difference * inside, 1e-12 * total + 1e-300)
    score = np.abs(difference) / np.sqrt(error / (count - 2) * (1 / inside + 1 / (count - inside)))
    best = int(np.argmax(score))
    if score[best] < float(t.isf(_FALSE_ALARM / 2 / len(first), count - 2)):
        return 0, count
    return int(first[best]), int(last[best])


def moved(samples: ArrayLike) -> str | None:
    """In words, how one run's latency jumped; ``None`` for a run that stays where it is."""
    values = np.asarray(samples, dtype=np.float64)
    cuts = change_points(values)
    if not cuts:
        return None
    levels = [float(np.median(part)) for part in np.split(values, cuts)]
    steps = [
        f"by {100 * (after / before - 1):+.0f} % at call {cut + 1}"
        for cut, (before, after) in zip(cuts, itertools.pairwise(levels), strict=True)
    ]
    return f"the latency jumps {', '.join(steps)} of {len(values)}"


def drift(medians: Sequence[float]) -> tuple[float, float]:
    """By what runs rise from the first to the last, and how likely that is without a drift.

    Args:
        medians: of the runs, in the order made; at least two.

    Returns:
        Theil and Sen's slope over the logarithms, as a share from first to last; and the two-sided
        p-value of Mann and Kendall's test, exact where no two runs are equal.

    Source: Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968);
    Mann, "Nonparametric tests against trend", Econometrica 13 (1945).
    """
    from scipy.stats import kendalltau

    logs = np.log(np.asarray(medians, dtype=np.float64))
    first, last = np.triu_indices(len(logs), k=1)
    slope = float(np.median((logs[last] - logs[first]) / (last - first)))
    p = float(kendalltau(np.arange(len(logs)), logs).pvalue)
    return math.expm1(slope * (len(logs) - 1)), 1.0 if math.isnan(p) else p


def drifted(medians: Sequence[float]) -> str | None:
    """In words, how the runs drift; ``None`` where they do not.

    Fewer than six runs cannot: even in perfect order their p-value is above 1 %.
    """
    if len(medians) < 2:
        return None
    size, p = drift(medians)
    if p > _FALSE_ALARM or abs(size) < LEAST_CHANGE:
        return None
    return f"the runs drift by {100 * size:+.0f} % from the first of {len(medians)} to the last"
