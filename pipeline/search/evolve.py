"""An evolution as the loop uses it: every network it looked at, and which to measure next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.search.nsga2 import Nsga2, Scores, ranks
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
        first = np.flatnonzero(ranks(Scores.of(self.scores)) == 0)
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

    def score(genomes: Genomes) -> Scores:
        return Scores.of(objectives(genomes))

    search = Nsga2.begin(space, score, size=population, seed=seed, start=start[:population])
    for _ in range(generations - 1):
        if not search.step(score):
            break
    return Evolution(search.genomes, search.scores.values)


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
    spread = np.ptp(evolution.scores, axis=0)
    scaled = evolution.scores / np.where(spread > 0, spread, 1)
    known = [tuple(int(gene) for gene in genome) in exclude for genome in evolution.genomes]
    reference = [index for index, is_known in enumerate(known) if is_known]
    chosen: list[int] = []
    rank = ranks(Scores.of(evolution.scores))
    for front in range(int(rank.max()) + 1):
        candidates = [int(index) for index in np.flatnonzero(rank == front) if not known[index]]
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
