"""LINAS: measure some, learn from them, search what was learned for long, measure what it proposes.

::

    record = linas(space, measure, LinasPlan(budget=200))
    record.front().rows                  # indices of measured networks, none of them predicted

Source: Cummings et al., "A Hardware-Aware Framework for Accelerating Neural Architecture Search
Across Modalities" (LINAS), 2022, https://arxiv.org/abs/2205.10358.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.search.goals import front
from pipeline.search.light import Light, fit_light
from pipeline.search.nsga2 import Nsga2, Scores, keys, ranks
from pipeline.search.record import Measured, Record, Round
from profiles.errors import UsageError
from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]

#: Measures a matrix of genomes; NaN for what failed.
Measure = Callable[[Genomes], Measured]
#: What is known of genomes without measuring (MACs, parameters): ``(n, slots)`` to ``(n, k)``.
Free = Callable[[Genomes], Floats]
#: What measured columns ``(n, k)`` come to; see :meth:`pipeline.search.goals.Goals.of_columns`.
Judge = Callable[[Floats], Scores]
#: Of each candidate so many values are drawn from what is learned, of so many candidates.
_SAMPLES, _CANDIDATES = 32, 400
#: In more than two objectives a gain is slow to tell: of so many candidates.
_CANDIDATES_OF_MORE = 100


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
    score: Judge = Scores.of,
    progress: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Run the loop until the budget, the space or the disagreement ends.

    Args:
        space: to search.
        measure: called with networks that were not measured before.  Where it raises, each of
            them is measured alone, and one that fails again is recorded with the reason.
        plan: how long, and the seed.
        before: what an interrupted search had measured: it is not measured again, and the search
            comes to where it would have come.
        pool: the only networks that exist; ``None``: all of the space.
        free: statistics that cost nothing; what is learned of error is then learned beyond
            a straight line in their logarithms.  Source of the idea: Dai et al., "FBNetV3", CVPR
            2021, section 3.2 (which pre-trains on them instead).
        score: objectives and limits over what is measured; by default every column is an
            objective, and there are no limits.
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
            batch, guess = _propose(space, record, plan, wanted, pool, free, score, random)
        if not len(batch):
            break
        found = known.recall(batch, lambda genomes: _measured(genomes, measure))
        record = record.followed_by(batch, found, Round(number, len(batch), _agrees(guess, found)))
        progress(record)
        if plan.stop_when_agreed and record.rounds[-1].agrees:
            break
        number += 1
    return record


def _measured(genomes: Genomes, measure: Measure) -> Measured:
    """Measure; what raises does not end the search."""
    try:
        return measure(genomes)
    # It is the user's code, and hours of measurements are behind it.
    except Exception as error:
        if len(genomes) > 1:
            each = [_measured(genome[None], measure) for genome in genomes]
            columns = max(found.values.shape[1] for found in each)
            return Measured(
                np.vstack([_widened(found.values, columns) for found in each]),
                np.vstack([_widened(found.half_widths, columns) for found in each]),
                tuple(words for found in each for words in found.why),
            )
        nothing = np.full((1, 1), np.nan)
        return Measured(nothing, nothing, (f"{type(error).__name__}: {error}",))


def _widened(values: Floats, columns: int) -> Floats:
    """Of a failure the number of objectives is not known: unknown in as many as the others."""
    return values if values.shape[1] == columns else np.full((len(values), columns), np.nan)


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
    score: Judge,
    random: np.random.Generator,
) -> tuple[Genomes, Floats | None]:
    """What to measure next, and what is predicted for it."""
    works = np.flatnonzero(np.isfinite(record.values).all(axis=1))
    if not len(works):
        return _unmeasured(_first(space, pool, 8 * count, random), record)[:count], None
    measured = record.values[works]
    learned = [
        fit_light(space, record.genomes[works], column)
        if free is None
        else _beyond_free(space, record.genomes[works], column, free)
        for column in measured.T
    ]

    def predict(genomes: Genomes) -> Floats:
        return np.column_stack([each.predict(genomes) for each in learned])

    if pool is None:

        def judge(genomes: Genomes) -> Scores:
            return score(predict(genomes))

        inner = Nsga2.begin(
            space,
            judge,
            size=plan.size,
            seed=int(random.integers(2**63)),
            start=record.genomes[record.front(score).rows][: plan.size],
        )
        inner.run(judge, plan.inner)
        candidates = inner.genomes
    else:
        candidates = pool
    candidates = _unmeasured(candidates, record)
    if not len(candidates):
        return candidates, None
    predicted = predict(candidates)
    hopeful = -np.ones(1)
    hoped = score(np.column_stack([each.samples(candidates, hopeful)[0] for each in learned]))
    most = _CANDIDATES if hoped.values.shape[1] <= 2 else _CANDIDATES_OF_MORE
    near = np.argsort(ranks(hoped), kind="stable")[: max(most, 4 * count)]
    drawn = [each.samples(candidates[near], _deviates(random)) for each in learned]
    sampled = score(np.stack(drawn, axis=-1).reshape(-1, len(drawn)))
    picks = near[
        pick(candidates[near], score(predicted[near]), sampled, record, score(measured), count)
    ]
    return candidates[picks], predicted[picks]


def _deviates(random: np.random.Generator) -> Floats:
    """Standard normal ones, one from each of as many equal shares, shuffled."""
    from scipy.special import ndtri

    shares = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    return np.asarray(random.permutation(ndtri(shares)), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _BeyondFree:
    """A straight line in the logarithms of free statistics, and a predictor of what is left."""

    free: Free
    line: Floats
    rest: Light

    def samples(self, genomes: Genomes, normal: Floats) -> Floats:
        straight: Floats = _columns(self.free(genomes)) @ self.line
        return straight + self.rest.samples(genomes, normal)

    def predict(self, genomes: Genomes) -> Floats:
        median: Floats = self.samples(genomes, np.zeros(1))[0]
        return median


def _columns(free: Floats) -> Floats:
    return np.column_stack([np.ones(len(free)), np.log(free)])


def _beyond_free(space: SearchSpace, genomes: Genomes, values: Floats, free: Free) -> _BeyondFree:
    columns = _columns(free(genomes))
    line: Floats = np.linalg.lstsq(columns, values, rcond=None)[0].astype(np.float64)
    return _BeyondFree(free, line, fit_light(space, genomes, values - columns @ line))


def pick(
    candidates: Genomes,
    predicted: Scores,
    sampled: Scores,
    record: Record,
    measured: Scores,
    count: int,
) -> NDArray[np.int64]:
    """By the expected gain in hypervolume, one after the other.

    Each one picked is then taken for measured, as predicted.  Where nothing can gain: what is
    expected to miss limits least; where all meet them, what is least like the networks measured.

    Args:
        candidates: not measured yet, shape ``(n, slots)``.
        predicted: of them.
        sampled: any number of times all of them, drawn from what is learned.
        record: what was measured.
        measured: what came of it, without failures.
        count: how many, at most.

    Returns:
        Indices of candidates.

    Source: Emmerich et al., "Single- and multiobjective evolutionary optimization assisted by
    Gaussian random field metamodels", IEEE Transactions on Evolutionary Computation 10 (2006);
    batches by belief: Ginsbourger et al., "Kriging is well-suited to parallelize optimization",
    2010.
    """
    low, high = measured.values.min(axis=0), measured.values.max(axis=0)
    span = np.where(high > low, high - low, 1)
    best = front(measured)
    known = (measured.values[best.rows if best.misses <= 0 else []] - low) / span
    expected, drawn = (predicted.values - low) / span, (sampled.values - low) / span
    misses = sampled.violation.reshape(-1, len(candidates)).mean(axis=0)
    left = np.full(len(candidates), True)
    chosen: list[int] = []
    while len(chosen) < count and left.any():
        gains = np.where(sampled.violation <= 0, _gains(drawn, known), 0)
        gain = np.where(left, gains.reshape(-1, len(candidates)).mean(axis=0), 0)
        if gain.max() > 0:
            found = int(gain.argmax())
        elif (misses[left] > 0).any():
            found = int(np.where(left, misses, np.inf).argmin())
        else:
            others = np.vstack([record.genomes, candidates[chosen]])
            away = (candidates[:, None] != others[None]).sum(axis=2).min(axis=1)
            found = int(np.where(left, away, -1).argmax())
        chosen.append(found)
        left[found] = False
        if predicted.violation[found] <= 0:
            known = np.vstack([known, expected[found]])
    return np.array(chosen, dtype=np.int64)


def _gains(points: Floats, known: Floats) -> Floats:
    """By how much each point alone enlarges the hypervolume below 1.1, shape ``(n,)``."""
    from moocore import hypervolume

    reference = np.full(points.shape[1], 1.1)
    known = known[(known < reference).all(axis=1)]
    if len(reference) > 2:
        before = hypervolume(known, ref=reference) if len(known) else 0.0
        return np.array(
            [hypervolume(np.vstack([known, point]), ref=reference) - before for point in points]
        )
    if len(reference) == 1:
        return np.asarray(np.maximum(known.min(initial=1.1) - points[:, 0], 0))
    known = known[front(Scores.of(known)).rows] if len(known) else known
    known = known[np.argsort(known[:, 0], kind="stable")]
    # Left of each known network, and right of the last, the front is as high as the one before.
    ends, heights = np.append(known[:, 0], 1.1), np.insert(known[:, 1], 0, 1.1)
    reach = np.maximum(ends - points[:, :1], 0)
    widths = np.diff(reach, axis=1, prepend=0)
    gains: Floats = (widths * np.maximum(heights - points[:, 1:], 0)).sum(axis=1)
    return gains


def _unmeasured(genomes: Genomes, record: Record) -> Genomes:
    return genomes[~np.isin(keys(genomes), keys(record.genomes))]


def _agrees(predicted: Floats | None, found: Measured) -> bool:
    """Whether every prediction lies within its measurement's interval."""
    if predicted is None:
        return False
    works = np.isfinite(found.values) & np.isfinite(found.half_widths)
    return bool(works.all() and (np.abs(predicted - found.values) <= found.half_widths).all())
