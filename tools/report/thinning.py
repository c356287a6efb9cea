"""Fewer points than were measured, without hiding what stands out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST_BINS = 10
_MOST_BINS = 240
#: Nothing to be told apart: all samples are the same, or one alone.
_LEAST_SPREAD = 1e-6


def thin(values: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Which samples to draw: the smallest and the largest of each of equally long stretches.

    Args:
        values: in the order taken, shape ``(n,)``.
        most: so many at most, at least 2.

    Returns:
        Increasing indices; all of them where there are no more than ``most``.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    stretches = np.array_split(np.arange(count), most // 2)
    ends = [[part[values[part].argmin()], part[values[part].argmax()]] for part in stretches]
    return np.unique(np.array(ends, dtype=np.int64))


def histogram(samples: NDArray[Any]) -> list[tuple[float, float, int]]:
    """Bins of equal width on the logarithmic scale, over every sample.

    Their width is that of Freedman and Diaconis for the logarithms: the bulk shows its shape, and
    a tail is not cut off.

    Args:
        samples: positive, shape ``(n,)``.

    Returns:
        Low end, high end and number of samples of each bin, lowest first; empty without samples.

    Source: Freedman & Diaconis, "On the histogram as a density estimator: L2 theory", 1981.
    """
    if not len(samples):
        return []
    logs = np.log(np.asarray(samples, dtype=np.float64))
    low, high = float(logs.min()), float(logs.max())
    if high - low < _LEAST_SPREAD:
        low, high = low - _LEAST_SPREAD, high + _LEAST_SPREAD
    quarter, three_quarters = np.percentile(logs, [25, 75])
    width = 2 * (three_quarters - quarter) / len(logs) ** (1 / 3)
    wanted = (high - low) / width if width > 0 else _FEWEST_BINS
    bins = int(np.clip(np.ceil(wanted), _FEWEST_BINS, _MOST_BINS))
    counts, edges = np.histogram(logs, bins=bins, range=(low, high))
    ends = np.exp(edges)
    ends[0], ends[-1] = min(ends[0], np.min(samples)), max(ends[-1], np.max(samples))
    return [
        (float(start), float(end), int(count))
        for start, end, count in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
