"""How wide each group stays: a level says how much goes, and a policy from which groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.compress.groups import Gone, Group, Structure
from pipeline.compress.saliency import Scores

#: No group loses more: what all that follows has to pass through is not worth ranking.
LEAST_SHARE = 1 / 8
#: How finely levels are told apart.
_STEPS = 4096

#: By group, which units stay.
Kept = dict[str, list[int]]
Widths = Mapping[str, int]


@dataclass(frozen=True)
class Narrowing:
    """The widths that are allowed, and the units that stay for each.

    Args:
        structure: whose groups.
        scores: how much each unit matters.
        round_to: channels of a layer are multiples of it, where not all of a group stay.
        allocation: ``uniform`` or ``global``.
    """

    structure: Structure
    scores: Scores
    round_to: int
    allocation: str

    def options(self, group: Group) -> tuple[int, ...]:
        """The widths that a group may have, in rising order, its own last."""
        step = self.round_to // math.gcd(self.round_to, group.channels)
        least = max(1, math.ceil(group.width * LEAST_SHARE))
        return (*range(-(-least // step) * step, group.width, step), group.width)

    def kept(self, widths: Widths) -> Kept:
        """The units that matter most, so many of each group."""
        found = {}
        for name, width in widths.items():
            order = np.argsort(-self.scores[name], kind="stable")[:width]
            found[name] = sorted(order.tolist())
        return found

    def gone(self, widths: Widths) -> Gone:
        """What is gone at these widths."""
        return self.structure.gone(self.kept(widths))

    def at(self, level: float) -> dict[str, int]:
        """The widths at a level from 0, where all stay, to 1, where as few stay as may."""
        groups = self.structure.groups.values()
        if self.allocation == "uniform":
            return {g.name: _nearest(self.options(g), g.width * (1 - level)) for g in groups}
        pooled = np.sort(np.concatenate([self.scores[group.name] for group in groups]))
        threshold = pooled[min(int(level * len(pooled)), len(pooled) - 1)]
        last = level >= 1
        return {
            g.name: _nearest(
                self.options(g), 0 if last else (self.scores[g.name] >= threshold).sum()
            )
            for g in groups
        }

    def within(self, limit: float, cost: Callable[[Gone], float]) -> dict[str, int] | None:
        """The widest network within a limit.

        The least level that is within it; then, since widths go in steps and many groups may take
        one at once, as many groups as fit are a step wider again.

        Args:
            limit: largest cost.
            cost: of a network without what is gone; never less for a wider one.

        Returns:
            Widths by group; ``None`` if even the narrowest network costs more.
        """
        low, high = 0, _STEPS
        if cost(self.gone(self.at(1.0))) > limit:
            return None
        while low < high:
            middle = (low + high) // 2
            if cost(self.gone(self.at(middle / _STEPS))) <= limit:
                high = middle
            else:
                low = middle + 1
        return self._widened(self.at(high / _STEPS), limit, cost)

    def _widened(
        self, widths: dict[str, int], limit: float, cost: Callable[[Gone], float]
    ) -> dict[str, int]:
        """Step by step, the group first that needs it most, until no step fits."""
        groups = dict(self.structure.groups)
        while groups:
            name = max(groups, key=lambda name: self._need(groups[name], widths[name]))
            wider = [option for option in self.options(groups[name]) if option > widths[name]]
            trial = {**widths, name: wider[0]} if wider else widths
            if wider and cost(self.gone(trial)) <= limit:
                widths = trial
            else:
                del groups[name]  # later it fits still less
        return widths

    def _need(self, group: Group, width: int) -> float:
        """How much a group needs to be wider, by the policy."""
        if self.allocation == "uniform" or width == group.width:
            return -width / group.width
        return float(np.sort(self.scores[group.name])[::-1][width])


def _nearest(options: tuple[int, ...], wanted: float) -> int:
    return min(options, key=lambda option: (abs(option - wanted), option))
