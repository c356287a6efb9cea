"""LINAS: measure some, learn from them, search what was learned for long, measure what it proposes.

::

    record = linas(space, measure, LinasPlan(budget=200))
    record.front()                       # indices of measured networks, none of them predicted

Source: Cummings et al., "A Hardware-Aware Framework for Accelerating Neural Architecture Search
Across Modalities" (LINAS), 2022, https://arxiv.org/abs/2205.10358.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.search.light import Light, fit_light
from pipeline.search.nsga2 import Nsga2, Scores, keys, ranks
from pipeline.search.record import Measured, Record, Round
from profiles.errors import UsageError
from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]

#: Measures a matrix of genomes; less is better; NaN for what failed.
Measure = Callable[[Genomes], Measured]
#: What is known of genomes without measuring (MACs, parameters): ``(n, slots)`` to ``(n, k)``.
Free = Callable[[Genomes], Floats]
#: Share of a round that is picked for being unlike what was measured.
_UNLIKE = 0.2


@dataclass(frozen=True, slots=True)
class LinasPlan:
    """How long a search goes on.

    Args:
        budget: measurements in all.
        first: of these, drawn at random to begin with.
        batch: measured in each later round.
        inner: networks the evolution on the predictors looks at in a round.
        size: of its generations.
        seed: of everything random.
        stop_when_agreed: end early once a round's measurements all lie within their intervals
            of the predictions.
    """

    budget: int
    first: int = 24
    batch: int = 12
    inner: int = 4000
    size: int = 100
    seed: int = 0
    stop_when_agreed: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            UsageError: names the setting.
        """
        for name in ("budget", "first", "batch", "inner"):
            if getattr(self, name) < 1:
                raise UsageError(f"linas: {name} is {getattr(self, name)}", "1 or more")


def linas(
    space: SearchSpace,
    measure: Measure,
    plan: LinasPlan,
    *,
    before: Record | None = None,
    pool: Genomes | None = None,
    free: Free | None = None,
    progress: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Run the loop until the budget, the space or the disagreement ends.

    Args:
        space: to search.
        measure: called with networks that were not measured before.
        plan: how long, and the seed.
        before: what an interrupted search had measured: it is not measured again, and the search
            comes to where it would have come.
        pool: the only networks that exist; ``None``: all of the space.
        free: statistics that cost nothing; what is learned of error is then learned beyond
            a straight line in their logarithms.  Source of the idea: Dai et al., "FBNetV3", CVPR
            2021, section 3.2 (which pre-trains on them instead).
        progress: told after each round; the place to save the record.

    Returns:
        All that was measured, round by round.
    """
    known = before or Record.empty(len(space.slots))
    record = Record.empty(len(space.slots))
    number = 0
    while len(record.genomes) < plan.budget:
        random = np.random.default_rng([plan.seed, number])
        if number == 0:
            wanted = min(plan.first, plan.budget)
            batch = _first(space, pool, wanted, random)
            guess = None
        else:
            wanted = min(plan.batch, plan.budget - len(record.genomes))
            batch, guess = _propose(space, record, plan, wanted, pool, free, random)
        if not len(batch):
            break
        found = known.recall(batch, measure)
        record = record.followed_by(batch, found, Round(number, len(batch), _agrees(guess, found)))
        progress(record)
        if plan.stop_when_agreed and record.rounds[-1].agrees:
            break
        number += 1
    return record


def _first(
    space: SearchSpace, pool: Genomes | None, count: int, random: np.random.Generator
) -> Genomes:
    if pool is not None:
        return pool[random.permutation(len(pool))[:count]]
    drawn = space.sample(8 * count, random)
    return drawn[np.sort(np.unique(keys(drawn), return_index=True)[1])][:count]


def _propose(
    space: SearchSpace,
    record: Record,
    plan: LinasPlan,
    count: int,
    pool: Genomes | None,
    free: Free | None,
    random: np.random.Generator,
) -> tuple[Genomes, Floats | None]:
    """What to measure next, and what is predicted for it."""
    works = np.isfinite(record.values).all(axis=1)
    if not works.any():
        return _unmeasured(_first(space, pool, 8 * count, random), record)[:count], None
    predictors = _fit(space, record, works, free)

    def predict(genomes: Genomes) -> Floats:
        return np.column_stack([predictor(genomes) for predictor in predictors])

    if pool is None:
        start = record.genomes[works][ranks(Scores.of(record.values[works])) == 0]
        inner = Nsga2.begin(
            space,
            lambda genomes: Scores.of(predict(genomes)),
            size=plan.size,
            seed=int(random.integers(2**63)),
            start=start[: plan.size],
        )
        inner.run(lambda genomes: Scores.of(predict(genomes)), plan.inner)
        candidates, predicted = inner.genomes, inner.scores.values
    else:
        candidates, predicted = pool, predict(pool)
    new = ~np.isin(keys(candidates), keys(record.genomes))
    candidates, predicted = candidates[new], predicted[new]
    picks = pick(candidates, predicted, record, works, count)
    return candidates[picks], predicted[picks]


def _fit(
    space: SearchSpace, record: Record, works: NDArray[np.bool_], free: Free | None
) -> list[Callable[[Genomes], Floats]]:
    genomes, values = record.genomes[works], record.values[works]
    if free is None:
        return [fit_light(space, genomes, column).predict for column in values.T]
    return [_beyond_free(space, genomes, column, free) for column in values.T]


def _beyond_free(
    space: SearchSpace, genomes: Genomes, values: Floats, free: Free
) -> Callable[[Genomes], Floats]:
    """A straight line in the logarithms of free statistics, and a predictor of what is left."""

    def columns(rows: Genomes) -> Floats:
        return np.column_stack([np.ones(len(rows)), np.log(free(rows))])

    line = np.linalg.lstsq(columns(genomes), values, rcond=None)[0]
    rest: Light = fit_light(space, genomes, values - columns(genomes) @ line)
    return lambda rows: columns(rows) @ line + rest.predict(rows)


def pick(
    candidates: Genomes,
    predicted: Floats,
    record: Record,
    works: NDArray[np.bool_],
    count: int,
) -> NDArray[np.int64]:
    """By predicted gain in hypervolume, one after the other; a fifth by being unlike the measured.

    Args:
        candidates: not measured yet, shape ``(n, slots)``.
        predicted: of them, shape ``(n, objectives)``.
        record: what was measured.
        works: which of it has values, shape ``(measured,)``.
        count: how many, at most.

    Returns:
        Indices of candidates.
    """
    from moocore import hypervolume

    measured = record.values[works]
    low = np.minimum(measured.min(axis=0), predicted.min(axis=0, initial=np.inf))
    span = measured.max(axis=0) - low
    span = np.where(span > 0, span, 1)
    front = (measured[ranks(Scores.of(measured)) == 0] - low) / span
    scaled = (predicted - low) / span
    # Only the first fronts can gain: the rest would be looked at for nothing.
    order = np.argsort(ranks(Scores.of(scaled)), kind="stable")[: max(200, 4 * count)]
    reference = np.full(scaled.shape[1], 1.1)
    by_gain = count - int(_UNLIKE * count)
    chosen: list[int] = []
    while len(chosen) < min(count, len(order)):
        left = [int(index) for index in order if index not in chosen]
        gains = np.array(
            [hypervolume(np.vstack([front, scaled[index]]), ref=reference) for index in left]
        ) - hypervolume(front, ref=reference)
        if len(chosen) < by_gain and gains.max() > 0:
            best = left[int(gains.argmax())]
        else:
            others = np.vstack([record.genomes, candidates[chosen]])
            away = (candidates[left][:, None] != others[None]).sum(axis=2).min(axis=1)
            best = left[int(away.argmax())]
        chosen.append(best)
        front = np.vstack([front, scaled[best]])
    return np.array(chosen, dtype=np.int64)


def _unmeasured(genomes: Genomes, record: Record) -> Genomes:
    return genomes[~np.isin(keys(genomes), keys(record.genomes))]


def _agrees(predicted: Floats | None, found: Measured) -> bool:
    """Whether every prediction lies within its measurement's interval."""
    if predicted is None:
        return False
    works = np.isfinite(found.values) & np.isfinite(found.half_widths)
    return bool(works.all() and (np.abs(predicted - found.values) <= found.half_widths).all())
