"""NSGA-II over integer genomes, with pymoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.space import Genomes, SearchSpace

#: Scores a matrix of genomes: shape ``(n, slots)`` in, ``(n, objectives)`` out, less is better.
Objectives = Callable[[Genomes], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Evolution:
    """Every distinct network an evolution looked at, in the order it did.

    Args:
        genomes: shape ``(n, slots)``.
        scores: shape ``(n, objectives)``, less is better.
    """

    genomes: Genomes
    scores: NDArray[np.float64]

    def front(self) -> NDArray[np.int64]:
        """Indices of the networks that no other dominates, by their first score."""
        from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

        first = NonDominatedSorting().do(self.scores, only_non_dominated_front=True)
        return np.array(sorted(first, key=lambda i: tuple(self.scores[i])), dtype=np.int64)


def evolve(
    space: SearchSpace,
    objectives: Objectives,
    *,
    population: int,
    generations: int,
    seed: int,
    start: Genomes,
) -> Evolution:
    """Run NSGA-II.

    Args:
        space: to search.
        objectives: what to minimise.
        population: networks in each generation.
        generations: how many, the first included.
        seed: of everything random in it.
        start: genomes that the first generation must hold, shape ``(n, slots)``; the rest of it
            is drawn at random.

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE
    Transactions on Evolutionary Computation 6 (2002).
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    free = np.flatnonzero(space.highest > 0)
    seen: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def widen(genes: NDArray[np.float64]) -> Genomes:
        full = np.zeros((len(genes), len(space.slots)), dtype=np.int64)
        full[:, free] = np.rint(genes).astype(np.int64)
        return full

    class Networks(Problem):  # type: ignore[misc]
        def __init__(self, n_obj: int) -> None:
            super().__init__(n_var=len(free), n_obj=n_obj, xl=0, xu=space.highest[free], vtype=int)

        def _evaluate(self, x: NDArray[np.float64], out: dict[str, object]) -> None:
            genomes = widen(x)
            scores = objectives(genomes)
            for genome, score in zip(genomes, scores, strict=True):
                seen.setdefault(tuple(int(gene) for gene in genome), score)
            out["F"] = scores

    rng = np.random.default_rng(seed)
    random_start = space.sample(population * 4, rng)
    first = np.unique(np.vstack([start, random_start]), axis=0, return_index=True)[1]
    initial = np.vstack([start, random_start])[np.sort(first)][:population]
    algorithm = NSGA2(
        pop_size=population,
        sampling=initial[:, free],
        crossover=UniformCrossover(repair=RoundingRepair()),
        mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    problem = Networks(objectives(initial[:1]).shape[1])
    minimize(problem, algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return Evolution(np.array(list(seen), dtype=np.int64), np.array(list(seen.values())))


def best_and_most_diverse(
    evolution: Evolution, count: int, exclude: set[tuple[int, ...]]
) -> NDArray[np.int64]:
    """Which networks to measure next.

    Front by front: first those at its ends, then always the one farthest, on scores scaled to the
    range seen, from all that were chosen or excluded.

    Args:
        evolution: to choose from.
        count: how many, at most.
        exclude: genomes that were measured before.

    Returns:
        Indices into the evolution.
    """
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    spread = np.ptp(evolution.scores, axis=0)
    scaled = evolution.scores / np.where(spread > 0, spread, 1)
    known = [tuple(int(gene) for gene in genome) in exclude for genome in evolution.genomes]
    reference = [index for index, is_known in enumerate(known) if is_known]
    chosen: list[int] = []
    for front in NonDominatedSorting().do(evolution.scores):
        candidates = [int(index) for index in front if not known[index]]
        while candidates and len(chosen) < count:
            if not reference:
                pick = min(candidates, key=lambda i: tuple(evolution.scores[i]))
            else:
                away = [np.abs(scaled[reference] - scaled[i]).max(1).min() for i in candidates]
                pick = candidates[int(np.argmax(away))]
            chosen.append(pick)
            reference.append(pick)
            candidates.remove(pick)
    return np.array(chosen, dtype=np.int64)
