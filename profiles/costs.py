"""What the choices of a search space cost in one objective, as arrays over (slot, choice)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from profiles.space import SearchSpace

#: What a table knows of each choice; the unit is part of the name.
Objective = Literal["latency_ns", "energy_uj", "memory_bytes", "size_bytes"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

#: A slot and a choice, by their places in the space.
Place = tuple[int, int]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Cost:
    """One value of one block as a network of its own.

    Args:
        value: in the objective's unit, above 0.
        half_width: half of its 95 % interval; ``None`` where unknown.
        n: runs behind it; 0 where nobody measured it, as for interpolated values.
        trial: key of the trial it is from; empty where there is none.
    """

    value: float
    half_width: float | None = None
    n: int = 0
    trial: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """One objective over a space.

    Args:
        value: shape ``(slots, most choices)``; NaN where a slot has fewer choices, where a choice
            leaves its slot out, or where it was not measured.
        half_width: half of each 95 % interval, same shape; NaN where unknown.
        n: runs behind each value, same shape.
        shared: of an empty network, which is part of every block's value.
        trials: key of the trial behind each value, by place.
    """

    value: NDArray[np.float64]
    half_width: NDArray[np.float64]
    n: NDArray[np.int64]
    shared: Cost
    trials: Mapping[Place, str] = field(default_factory=dict)

    @classmethod
    def of(cls, space: SearchSpace, costs: Mapping[Place, Cost], shared: Cost) -> Costs:
        """Lay single costs out over a space; what is not given is unknown."""
        shape = (len(space.slots), int(space.highest.max()) + 1)
        value, half_width = np.full(shape, np.nan), np.full(shape, np.nan)
        n = np.zeros(shape, dtype=np.int64)
        for place, cost in costs.items():
            value[place], n[place] = cost.value, cost.n
            half_width[place] = np.nan if cost.half_width is None else cost.half_width
        trials = {place: cost.trial for place, cost in costs.items() if cost.trial}
        return cls(value, half_width, n, shared, trials)

    def at(self, place: Place) -> Cost | None:
        """The cost of a choice; ``None`` where unknown."""
        if np.isnan(self.value[place]):
            return None
        half_width = float(self.half_width[place])
        return Cost(
            float(self.value[place]),
            None if np.isnan(half_width) else half_width,
            int(self.n[place]),
            self.trials.get(place, ""),
        )

    def errors(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Which values share their error, and how large each error is.

        Returns:
            Shape of the values: a number for each trial, the same wherever its value stands, for a
            block that stands in two slots is wrong in both by the same; and the half-widths.
        """
        numbers = np.arange(self.value.size).reshape(self.value.shape)
        first: dict[str, int] = {}
        for place, trial in sorted(self.trials.items()):
            numbers[place] = first.setdefault(trial, int(numbers[place]))
        return np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape), self.half_width

    def interpolated(self, space: SearchSpace, holes: NDArray[np.bool_]) -> Costs:
        """The same with holes filled that lie between two measured neighbours.

        Neighbours are choices of the same slot whose names differ in one number alone.  The value
        is on the straight line between the nearest on both sides; its interval holds both of them
        with their own, which is honest for a cost that rises or falls between the two, and no
        promise for one that does not.  Nothing is extrapolated; what was filled has ``n`` 0.
        """
        found = {
            (int(row), int(column)): between
            for row, column in np.argwhere(holes & np.isnan(self.value))
            if (between := self._between(space, int(row), int(column)))
        }
        value, half_width = self.value.copy(), self.half_width.copy()
        for place, cost in found.items():
            value[place] = cost.value
            half_width[place] = np.nan if cost.half_width is None else cost.half_width
        return replace(self, value=value, half_width=half_width)

    def _between(self, space: SearchSpace, row: int, column: int) -> Cost | None:
        """The narrowest interpolation of one hole, ``None`` where there is none."""
        choices = space.slots[row].choices
        if column >= len(choices):
            return None
        own = choices[column]
        candidates = []
        for number in range(len(_NUMBER.findall(own))):
            around = [
                (at, cost)
                for other, choice in enumerate(choices)
                if (at := _only_other(own, choice, number)) is not None
                and (cost := self.at((row, other)))
            ]
            here = float(_NUMBER.findall(own)[number])
            below = max((pair for pair in around if pair[0] < here), default=None, key=_first)
            above = min((pair for pair in around if pair[0] > here), default=None, key=_first)
            if below and above:
                candidates.append(_line(here, below, above))
        return min(candidates, default=None, key=lambda cost: cost.half_width or np.inf)


def _first(pair: tuple[float, Cost]) -> float:
    return pair[0]


def _only_other(own: str, other: str, number: int) -> float | None:
    """The value of one number of a name that is the same but for it."""
    mine, theirs = _NUMBER.findall(own), _NUMBER.findall(other)
    if _NUMBER.sub("#", own) != _NUMBER.sub("#", other):
        return None
    differing = [
        place for place, pair in enumerate(zip(mine, theirs, strict=True)) if len({*pair}) > 1
    ]
    return float(theirs[number]) if differing == [number] else None


def _line(here: float, below: tuple[float, Cost], above: tuple[float, Cost]) -> Cost:
    """The straight line's value, with an interval that holds both ends and theirs."""
    (low, first), (high, second) = below, above
    share = (here - low) / (high - low)
    value = (1 - share) * first.value + share * second.value
    if first.half_width is None or second.half_width is None:
        return Cost(value)
    ends = [abs(cost.value - value) + (cost.half_width or 0.0) for cost in (first, second)]
    return Cost(value, max(ends))
