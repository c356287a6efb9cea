"""How much slower is it than before?  One artifact's effect, with its interval.

All is done on logarithms of run medians: a slowdown is a factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.quality import counting_runs
from profiles.records import Trial
from profiles.statistics import FEWEST_RUNS, t_quantile

#: A visit to a device, by its lease's fence, and a round of it.
Round = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Effect:
    """How long something takes now, as a multiple of before.

    Args:
        ratio: of the geometric means of the run medians, after over before; above 1 is slower.
        ci95: its 95 % interval; ``None`` with too few runs for one.
        p: two-sided p-value of no difference; ``None`` likewise.
    """

    ratio: float
    ci95: tuple[float, float] | None
    p: float | None


def medians_by_round(trial: Trial) -> dict[Round, float]:
    """The medians of the runs that count, by the visit and the round they were made in.

    Two trials' runs of one round stood beside each other; those of one number need not have.
    """
    rounds = ((run, run.environment["preflight"]) for run in counting_runs(trial))
    return {
        (when["fence"], when["round"]): float(np.median(run.samples_ns)) for run, when in rounds
    }


def effect(
    before: ArrayLike,
    after: ArrayLike,
    paired: bool,
    pilots: tuple[int | None, int | None] = (None, None),
) -> Effect:
    """Compare one artifact's run medians.

    Args:
        before, after: positive, in the order made.
        paired: whether both were made in turns, the n-th of the one beside the n-th of the other.
        pilots: how many of each decided how many there are: the variance is theirs (see
            :func:`profiles.statistics.two_stage_interval`).

    Raises:
        ValueError: without runs, or for pairs of which one is missing.

    Source: Welch, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34 (1947), where they are not paired.
    """
    first, second = _logs(before), _logs(after)
    if not (first.size and second.size) or (paired and first.size != second.size):
        raise ValueError("an effect needs runs on both sides, as many on both where they are pairs")
    difference = float(second.mean() - first.mean())
    sides = [(second - first, None)] if paired else [(first, pilots[0]), (second, pilots[1])]
    told = [(side[:pilot], len(side)) for side, pilot in sides]
    if min(len(pilot) for pilot, _ in told) < FEWEST_RUNS:
        return Effect(math.exp(difference), None, None)
    errors = np.array([pilot.var(ddof=1) / count for pilot, count in told])
    degrees = np.array([len(pilot) - 1 for pilot, _ in told])
    total, parts = float(errors.sum()), float((errors**2 / degrees).sum())
    return effect_of(difference, total, total**2 / parts if parts else float(degrees.min()))


def _logs(values: ArrayLike) -> NDArray[np.float64]:
    return np.log(np.asarray(values, dtype=np.float64))


def effect_of(difference: float, variance: float, degrees: float) -> Effect:
    """The effect that a difference of logarithms amounts to.

    Args:
        difference: after less before.
        variance: of that difference, as estimated,
        degrees: with so many degrees of freedom.
    """
    from scipy.special import stdtr

    error = math.sqrt(variance)
    half = t_quantile(degrees) * error
    score = abs(difference) / error if error else (math.inf if difference else 0.0)
    interval = (math.exp(difference - half), math.exp(difference + half))
    return Effect(math.exp(difference), interval, 2 * float(stdtr(degrees, -score)))
