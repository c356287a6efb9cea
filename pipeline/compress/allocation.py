"""How much of each layer to keep: the least distortion within a budget, by dynamic programming.

Layers are compressed one at a time and what that does to the network's output is measured
(:mod:`pipeline.compress.distortion`).  The changes add up, near enough; so the best choice for all
layers together is a knapsack with one option from each.

Source: Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural
Networks" (2023).  There the cost is a number of weights; here it is any: parameters, MACs, or
milliseconds and millijoules that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.compression import Budget
from profiles.errors import StageError

#: Into how many steps the cost is divided.  Only instances with more than so many sums of costs
#: that are worth keeping feel it: layers / STEPS of the cost may be left unspent then.
STEPS = 1 << 14
#: Sums of floats differ in their last bits when they are added in another order.
_SLACK = 1e-9

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Curve:
    """The options of one layer, or of one group of layers that change together.

    Args:
        name: of the layer or group.
        levels: what the options are: sparsities, widths, ranks.  The first one is the unchanged
            layer.
        distortions: what each does to the network's output, at least 0.
        costs: of each, in one unit for all layers, at least 0.
    """

    name: str
    levels: tuple[float, ...]
    distortions: tuple[float, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.distortions) == len(self.costs) > 0:
            raise ValueError(f"{self.name}: each option has a level, a distortion and a cost")
        if not all(np.isfinite(value) and value >= 0 for value in self.distortions + self.costs):
            raise ValueError(f"{self.name}: distortions and costs are finite and at least 0")


@dataclass(frozen=True, slots=True)
class Choice:
    """One option for each layer.

    Args:
        options: by name, which of the curve's options.
        levels: by name, that option's level.
        distortion, cost: of all together, if both add up.
    """

    options: Mapping[str, int]
    levels: Mapping[str, float]
    distortion: float
    cost: float


def choose(curves: Sequence[Curve], budget: float) -> Choice:
    """The options of least total distortion whose costs together stay within a budget.

    Args:
        curves: one for each layer.
        budget: largest sum of costs.

    Raises:
        StageError: if even the cheapest options cost more, with what they cost.
    """
    least = least_cost(curves)
    if least > budget * (1 + _SLACK):
        raise StageError(
            f"a budget of {budget:.6g} cannot be met: the nearest that can is {least:.6g}"
        )
    fronts = _fronts(curves)
    last = fronts[-1]
    # Distortion falls as cost rises: the best within the budget is the dearest within it.
    state = int(np.searchsorted(last.costs, budget * (1 + _SLACK), side="right")) - 1
    cost, distortion = float(last.costs[state]), float(last.distortions[state])
    options: dict[str, int] = {}
    for curve, front in zip(reversed(curves), reversed(fronts), strict=True):
        options[curve.name] = int(front.options[state])
        state = int(front.parents[state])
    ordered = {curve.name: options[curve.name] for curve in curves}
    levels = {curve.name: curve.levels[ordered[curve.name]] for curve in curves}
    return Choice(ordered, levels, distortion, cost)


def spend(curves: Sequence[Curve], whole: float, budget: Budget) -> Choice:
    """As :func:`choose`, for a share of what the whole network costs.

    What the network costs beside its layers' first options does not change.  Where each layer was
    measured alone, the cost of a call is in all its options and drops out of the difference.

    Args:
        curves: one for each layer that may change; the first option leaves it as it is.
        whole: cost of the unchanged network, in the curves' unit.
        budget: what may remain of it.

    Returns:
        The choice; its ``cost`` is the whole network's.

    Raises:
        StageError: if so little cannot remain, with the least share that can.
    """
    demand_reachable([curve.costs for curve in curves], whole, budget)
    fixed = whole - sum(curve.costs[0] for curve in curves)
    choice = choose(curves, max(budget.share * whole - fixed, least_cost(curves)))
    return Choice(choice.options, choice.levels, choice.distortion, choice.cost + fixed)


def least_cost(curves: Sequence[Curve]) -> float:
    """What the cheapest options cost together."""
    return float(sum(min(curve.costs) for curve in curves))


def demand_reachable(costs: Sequence[Sequence[float]], whole: float, budget: Budget) -> None:
    """See that a budget can be met, before anything long is done for it.

    Args:
        costs: of each layer's options; the first one leaves it as it is.
        whole: cost of the unchanged network.
        budget: what may remain of it.

    Raises:
        StageError: if not, with the least share that can remain.
    """
    least = least_share(costs, whole)
    if least > budget.share * (1 + _SLACK):
        raise StageError(
            f"budget: {budget.cost}: {budget.share:g} cannot be met: the nearest that can is"
            f" {_rounded_up(least):g}",
            "ask for less, or compress by another method first",
        )


def least_share(costs: Sequence[Sequence[float]], whole: float) -> float:
    """What remains at least of a network, as a share of it; see :func:`demand_reachable`."""
    return (whole - sum(its[0] - min(its) for its in costs)) / whole


def _rounded_up(share: float) -> float:
    """To three digits after the point, so that the figure that an error names can be asked for."""
    return float(np.ceil(share * 1000 - _SLACK) / 1000)


@dataclass(frozen=True, slots=True)
class _Front:
    """What the layers so far can cost, in rising order, and the least distortion at each cost."""

    costs: Floats
    distortions: Floats
    options: Integers
    parents: Integers


def _fronts(curves: Sequence[Curve]) -> list[_Front]:
    """After each layer, every sum of costs at which no cheaper choice distorts as little."""
    range_ = sum(max(curve.costs) - min(curve.costs) for curve in curves)
    costs, distortions = np.zeros(1), np.zeros(1)
    fronts = []
    for curve in curves:
        all_costs = np.add.outer(costs, np.array(curve.costs)).ravel()
        all_distortions = np.add.outer(distortions, np.array(curve.distortions)).ravel()
        kept = _thinned(all_costs, _undominated(all_costs, all_distortions), range_ / STEPS)
        costs, distortions = all_costs[kept], all_distortions[kept]
        count = len(curve.costs)
        fronts.append(_Front(costs, distortions, kept % count, kept // count))
    return fronts


def _undominated(costs: Floats, distortions: Floats) -> Integers:
    """Indices of those that distort less than all that cost no more, by rising cost."""
    order = np.lexsort((distortions, costs))
    sorted_ = distortions[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_)[:-1]])
    found: Integers = order[sorted_ < before]
    return found


def _thinned(costs: Floats, kept: Integers, step: float) -> Integers:
    """At most one in each step of the cost, the one of least distortion; and the cheapest of all.

    Each goes on with its exact cost, so that no rounding can exceed a budget.  What is dropped has
    a neighbour that distorts no more and costs less than a step more.
    """
    if len(kept) <= STEPS:
        return kept
    steps = np.floor((costs[kept] - costs[kept[0]]) / step)
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    found: Integers = kept[last]
    return found
