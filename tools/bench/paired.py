"""Ways to do the same thing, timed in turns so that what else the machine does falls on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Paired:
    """One way against another: the geometric mean of ``ours / theirs`` over the rounds.

    Args:
        ratio: of the times; above 1 ours takes longer.
        ci95: its interval, Student's t over the logarithms of the rounds' ratios.
    """

    ratio: float
    ci95: tuple[float, float]

    def inverse(self) -> Paired:
        """The same as a ratio of speeds."""
        return Paired(1 / self.ratio, (1 / self.ci95[1], 1 / self.ci95[0]))

    def __str__(self) -> str:
        return f"{self.ratio:6.3f}  {self.ci95[0]:.3f} to {self.ci95[1]:.3f}"


def in_turns(
    ways: Mapping[str, Action], rounds: int, before: Action = lambda: None
) -> dict[str, list[float]]:
    """Time every way once a round, each round beginning with another one.

    Args:
        ways: by name, what to time.
        before: done before each of them, untimed.

    Returns:
        Seconds by name, one for each round; a first round to warm up is left out.
    """
    names = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            before()
            began = time.perf_counter()
            ways[name]()
            taken[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in taken.items()}


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two ways that were timed in the same rounds, at least two."""
    from scipy.stats import t

    logs = np.log(ours) - np.log(theirs)
    half = float(t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    centre = float(logs.mean())
    return Paired(
        float(np.exp(centre)), (float(np.exp(centre - half)), float(np.exp(centre + half)))
    )
