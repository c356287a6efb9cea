"""What a search wants: objectives to be small, limits to be met, on one device or on several.

::

    goals = Goals(
        objectives=(Objective("error"), Objective("latency_ms", ("pi", "phone"))),
        limits=(Limit("peak_memory_mb", 64.0, "pi"),),
    )
    scores = goals.scores({("error", None): errors, ("latency_ms", "pi"): ..., ...})
    linas(space, measure, plan, score=goals.of_columns)      # measure's columns: goals.needs()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.search.nsga2 import Scores, ranks
from profiles.errors import UsageError

Floats = NDArray[np.float64]
#: ``error`` is 1 less the accuracy; all are better when less.
Quantity = Literal["error", "latency_ms", "energy_mj", "size_mb", "peak_memory_mb"]
#: A quantity and the device it is of; ``None``: of no device, as error and size are.
Of = tuple[Quantity, str | None]


@dataclass(frozen=True, slots=True)
class Objective:
    """Something to make small.

    Args:
        quantity: what.
        devices: on which; none for what depends on no device.
        weights: of each device; none: the worst device counts.
    """

    quantity: Quantity
    devices: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def of(self, known: Mapping[Of, Floats]) -> Floats:
        """The objective's value for each network, shape ``(n,)``."""
        columns = np.array([known[self.quantity, device] for device in self.devices or (None,)])
        if self.weights:
            weighted: Floats = np.array(self.weights) @ columns / sum(self.weights)
            return weighted
        # A device on which it is unknown could be the worst: NaN, and not what the others say.
        return np.asarray(columns.max(axis=0))


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that a quantity may be, on a device."""

    quantity: Quantity
    most: float
    device: str | None = None

    def missed_by(self, known: Mapping[Of, Floats]) -> Floats:
        """By how much, as a share of the limit, shape ``(n,)``; 0 where it is met."""
        return np.asarray(np.maximum(known[self.quantity, self.device] / self.most - 1, 0))


@dataclass(frozen=True, slots=True)
class Goals:
    """All that a search wants.

    Args:
        objectives: one or more.
        limits: any number.
    """

    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be wanted, all of it at once.

        Raises:
            UsageError: names each.
        """
        wrong = [] if self.objectives else ["there is no objective"]
        named = [each.quantity for each in self.objectives]
        for quantity in named + [each.quantity for each in self.limits]:
            if quantity not in get_args(Quantity):
                wrong.append(f"{quantity} is none of {', '.join(get_args(Quantity))}")
        for objective in self.objectives:
            if objective.weights and len(objective.weights) != len(objective.devices):
                wrong.append(f"{objective.quantity}: a weight for each device, or none")
            if any(not 0 < weight < np.inf for weight in objective.weights):
                wrong.append(f"{objective.quantity}: weights are above 0")
        wrong += [
            f"the limit of {limit.quantity} is {limit.most}, not above 0"
            for limit in self.limits
            if not 0 < limit.most < np.inf
        ]
        if wrong:
            raise UsageError(f"search: {'; '.join(wrong)}")

    def scores(self, known: Mapping[Of, Floats]) -> Scores:
        """What networks come to; what is unknown (NaN) misses every limit.

        Args:
            known: shape ``(n,)`` for each quantity and device.

        Raises:
            UsageError: names each quantity and device that a goal needs and that is not known.
        """
        missing = [of for of in self.needs() if of not in known]
        if missing:
            words = ", ".join(q if device is None else f"{q} on {device}" for q, device in missing)
            raise UsageError(f"search: nothing tells {words}", "measure it, or drop the goal")
        values = np.column_stack([objective.of(known) for objective in self.objectives])
        violation = np.zeros(len(values))
        for limit in self.limits:
            violation += limit.missed_by(known)
        return Scores.of(values, violation)

    def of_columns(self, columns: Floats) -> Scores:
        """What networks come to; columns of shape ``(n, needs)`` are in the order of needs."""
        return self.scores(dict(zip(self.needs(), columns.T, strict=True)))

    def needs(self) -> list[Of]:
        """Every quantity and device a goal is about, each once."""
        found: list[Of] = [
            (objective.quantity, device)
            for objective in self.objectives
            for device in objective.devices or (None,)
        ]
        found += [(limit.quantity, limit.device) for limit in self.limits]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """The networks no other is better than.

    Args:
        rows: their indices.
        misses: by how much, in shares of the limits summed, the nearest of them misses the
            limits; 0 where limits are met.
    """

    rows: NDArray[np.int64]
    misses: float

    @property
    def words(self) -> str:
        """Whether the limits are met, in a line."""
        if not len(self.rows):
            return "no network could be measured"
        if self.misses > 0:
            return f"no network meets the limits; the nearest misses them by {self.misses:.1%}"
        return f"{len(self.rows)} networks on the front meet the limits"


def front(scores: Scores) -> Front:
    """The front of what meets the limits; where nothing does, of what misses them least."""
    works = np.flatnonzero(np.isfinite(scores.violation))
    if not len(works):
        return Front(works, np.inf)
    least = float(scores.violation[works].min())
    near = works[scores.violation[works] <= least]
    rank = ranks(Scores.of(scores.values[near]))
    return Front(near[rank == 0], least)
