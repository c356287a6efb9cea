"""Do intervals keep their promise?  Share of simulated campaigns whose interval covers the truth.

    python -m tools.bench.coverage [--campaigns 2000] [--seed 0]

First, methods against each other: the 90th percentile from a fixed number of runs.  Then the design
that is used: the median, with as many runs as the pilot's variance asks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.bootstrap import resampled_quantiles, studentised_interval
from profiles.records import Plan
from profiles.statistics import two_stage_interval
from profiles.stopping import runs_wanted

Values = NDArray[np.float64]
Interval = tuple[float, float] | None
RUNS = (3, 5, 10)
RESAMPLES = 500
ITERATIONS = 100
#: Spreads between runs, as a share.
SPREADS = (0.0, 0.01, 0.02, 0.03, 0.05)


@dataclass(frozen=True, slots=True)
class World:
    """Where latencies come from, on the scale of logarithms around 0.

    Args:
        between: the levels of so many runs.
        within: the iterations of so many runs, a row each.
    """

    between: Callable[[np.random.Generator, int], Values]
    within: Callable[[np.random.Generator, int, int], Values]

    def runs(self, random: np.random.Generator, runs: int, iterations: int) -> Values:
        """Latencies, shape ``(runs, iterations)``."""
        logs = self.between(random, runs)[:, None] + self.within(random, runs, iterations)
        return np.exp(logs)


def restless(random: np.random.Generator, runs: int, iterations: int) -> Values:
    """Heavy tails, and a call in fifty that takes half as long again."""
    spikes = np.where(random.random((runs, iterations)) < 0.02, np.log(1.5), 0.0)
    return 0.01 * random.standard_t(3, (runs, iterations)) + spikes


def normal(spread: float) -> Callable[[np.random.Generator, int], Values]:
    """Runs that vary by this share, as often up as down."""
    return lambda random, runs: random.normal(0.0, spread, runs)


WORLDS: Mapping[str, World] = {
    "runs vary 3 %, normal": World(normal(0.03), restless),
    "runs vary 3 %, skewed": World(
        lambda random, runs: 0.03 * (random.exponential(1.0, runs) - 1), restless
    ),
    "runs equal, calls vary 10 %": World(
        normal(0.0), lambda random, *shape: 0.1 * random.standard_t(3, shape)
    ),
}


def t_interval(runs: Values, q: float) -> Interval:
    """Student's t over the logarithms of the runs' quantiles."""
    return two_stage_interval(np.quantile(runs, q, axis=1))


def percentile_interval(runs: Values, q: float) -> Interval:
    """The middle 95 % of the bootstrap's means."""
    means = _means(runs, q)
    return _ends(np.quantile(means, [0.025, 0.975]))


def bca_interval(runs: Values, q: float) -> Interval:
    """The same, corrected for bias and for skewness, as the jackknife over runs estimates it.

    Source: Efron, "Better bootstrap confidence intervals", JASA 82 (1987).
    """
    from scipy.special import ndtr, ndtri

    found = np.quantile(np.log(runs), q, axis=1)
    means = _means(runs, q)
    beyond = found - found.mean()
    skew = (beyond**3).sum() / (6 * (beyond**2).sum() ** 1.5)
    below = np.clip(np.mean(means < found.mean()), 1e-3, 1 - 1e-3)
    shifted = ndtri(below) + ndtri([0.025, 0.975])
    places = ndtr(ndtri(below) + shifted / (1 - skew * shifted))
    return _ends(np.quantile(means, places))


def studentised(runs: Values, q: float) -> Interval:
    """See :mod:`profiles.bootstrap`."""
    return studentised_interval(list(runs), q, resamples=RESAMPLES)


def naive(runs: Values, q: float) -> Interval:
    """The bootstrap of the iterations of one run, as if they were all there is."""
    logs = [np.log(runs[0])]
    drawn = resampled_quantiles(logs, q, RESAMPLES, np.random.default_rng(0))
    return _ends(np.quantile(drawn, [0.025, 0.975]))


def _means(runs: Values, q: float) -> Values:
    drawn = resampled_quantiles(list(np.log(runs)), q, RESAMPLES, np.random.default_rng(0))
    means: Values = drawn.mean(axis=1)
    return means


def _ends(logs: Values) -> tuple[float, float]:
    return float(np.exp(logs[0])), float(np.exp(logs[1]))


METHODS: Mapping[str, Callable[[Values, float], Interval]] = {
    "Student's t": t_interval,
    "percentile": percentile_interval,
    "BCa": bca_interval,
    "studentised": studentised,
    "one run's iterations": naive,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """How a method did.

    Args:
        coverage: share of its intervals that covered the truth.
        width: of the middling one, as a share of the truth.
    """

    coverage: float
    width: float

    def __str__(self) -> str:
        return f"{100 * self.coverage:5.1f} %{100 * self.width:8.2f} %"


def truth_of(world: World, q: float, random: np.random.Generator, iterations: int) -> float:
    """The geometric mean of the quantile over very many runs."""
    runs = np.log(world.runs(random, 20_000, iterations))
    return float(np.exp(np.quantile(runs, q, axis=1).mean()))


def tally(intervals: Iterable[Interval], truth: float) -> Kept | None:
    """Count; ``None`` where a method gives no interval."""
    given = np.array([each for each in intervals if each is not None])
    if not len(given):
        return None
    covered = (given[:, 0] <= truth) & (truth <= given[:, 1])
    return Kept(float(covered.mean()), float(np.median(given[:, 1] - given[:, 0]) / truth))


def compare_methods(
    world: World, runs: int, campaigns: int, seed: int = 0, q: float = 0.9
) -> dict[str, Kept | None]:
    """Every method on the same campaigns of a fixed number of runs."""
    random = np.random.default_rng([seed, runs])
    truth = truth_of(world, q, random, ITERATIONS)
    data = [world.runs(random, runs, ITERATIONS) for _ in range(campaigns)]
    return {name: tally((way(each, q) for each in data), truth) for name, way in METHODS.items()}


def with_stopping(
    world: World, plan: Plan, campaigns: int, seed: int = 0, q: float = 0.5
) -> tuple[dict[str, Kept | None], float]:
    """The design that is used: as many runs as the pilot's variance asks for.

    Returns:
        By way of making an interval how it did, and the mean number of runs.
    """
    random = np.random.default_rng([seed, plan.max_runs])
    truth = truth_of(world, q, random, plan.iterations)
    data = world.runs(random, campaigns * plan.max_runs, plan.iterations)
    data = data.reshape(campaigns, plan.max_runs, plan.iterations)
    medians, values = np.quantile(data, [0.5, q], axis=2)
    found: dict[str, list[Interval]] = {"two-stage": [], "all runs": [], "one run": []}
    counts = [runs_wanted(list(pilot), plan) for pilot in medians[:, : plan.runs]]
    for runs, each, count in zip(data, values, counts, strict=True):
        found["two-stage"].append(two_stage_interval(each[:count], plan.runs))
        found["all runs"].append(two_stage_interval(each[:count]))
        found["one run"].append(naive(runs, q))
    return {way: tally(each, truth) for way, each in found.items()}, float(np.mean(counts))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, world in WORLDS.items():
        print(f"90th percentile, {name}: coverage and width of 95 % intervals")
        print(f"{'':22}" + "".join(f"{runs:>12} runs" for runs in RUNS))
        columns = [compare_methods(world, runs, options.campaigns, options.seed) for runs in RUNS]
        for method in METHODS:
            cells = [column[method] for column in columns]
            print(f"{method:22}" + "".join(f"{cell or 'none'!s:>17}" for cell in cells))
        print()
    plan = Plan(iterations=ITERATIONS)
    print(f"with stopping at ±{100 * plan.target:.0f} %, {plan.runs} to {plan.max_runs} runs")
    for q, what in ((0.5, "median"), (0.9, "90th percentile")):
        print(f"{what:16} {'runs':>5}{'two-stage':>17}{'all runs':>17}{'one run':>17}")
        for spread in SPREADS:
            world = World(normal(spread), restless)
            kept, made = with_stopping(world, plan, options.campaigns, options.seed, q)
            row = "".join(f"{cell!s:>17}" for cell in kept.values())
            print(f"{f'spread {100 * spread:.0f} %':16} {made:5.1f}{row}")


if __name__ == "__main__":
    main()
