"""NSGA-II over whole matrices of integer genomes: seeded, and taken up again where it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from profiles.durable import write_whole
from profiles.errors import UsageError
from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: So often are the places of duplicates filled again before a generation stays smaller.
_REFILLS = 8
#: Rows there is memory for at first.
_ROOM = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a matrix of genomes came to.

    Args:
        values: shape ``(n, objectives)``, less is better; NaN where it could not be told.
        violation: by how much limits are missed, summed, shape ``(n,)``; 0 where all are met.
    """

    values: Floats
    violation: Floats

    @classmethod
    def of(cls, values: Floats, violation: Floats | None = None) -> Scores:
        """Values with no limits, or with these; what is not a number misses every limit."""
        values = np.asarray(values, dtype=np.float64)
        missed = np.zeros(len(values)) if violation is None else np.asarray(violation)
        unknown = np.isnan(values).any(axis=1) | np.isnan(missed)
        return cls(values, np.where(unknown, np.inf, missed))

    def take(self, rows: Integers) -> Scores:
        """Those of some genomes only."""
        return Scores(self.values[rows], self.violation[rows])


#: Scores a matrix of genomes, shape ``(n, slots)``.
Score = Callable[[Genomes], Scores]


def ranks(scores: Scores) -> Integers:
    """Each genome's front, from 0, under constrained domination; shape ``(n,)``.

    Those that meet the limits are sorted by domination; behind them the others, by how much they
    miss them.

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE
    Transactions on Evolutionary Computation 6 (2002), section VI.
    """
    from moocore import pareto_rank

    meets = scores.violation <= 0
    if meets.all():
        return np.asarray(pareto_rank(scores.values), dtype=np.int64)
    found = np.empty(len(meets), dtype=np.int64)
    found[meets] = pareto_rank(scores.values[meets]) if meets.any() else 0
    behind = found[meets].max() + 1 if meets.any() else 0
    found[~meets] = behind + np.unique(scores.violation[~meets], return_inverse=True)[1]
    return found


def crowding(values: Floats, rank: Integers) -> Floats:
    """How far each genome's neighbours in its own front are apart; infinite at a front's ends.

    Args:
        values: shape ``(n, objectives)``.
        rank: each one's front, shape ``(n,)``.

    Source: Deb et al. (2002), section III-B.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.lexsort((column, rank))
        value, front = column[order], rank[order]
        changes = front[1:] != front[:-1]
        first, last = np.r_[True, changes], np.r_[changes, True]
        spans = (value[last] - value[first])[np.cumsum(first) - 1]
        gap = np.full(len(value), np.inf)
        gap[1:-1] = value[2:] - value[:-2]
        gap = np.where(spans > 0, gap / np.where(spans > 0, spans, 1), 0)
        gap[first | last] = np.inf
        distance[order] += gap
    return distance


def best_first(scores: Scores) -> Integers:
    """Indices by front, and in a front the least crowded first."""
    rank = ranks(scores)
    values = np.nan_to_num(scores.values, nan=0.0, posinf=0.0, neginf=0.0)
    return np.lexsort((-crowding(values, rank), rank))


@dataclass(slots=True, eq=False)
class _Growing:
    """Rows behind one another.

    Memory doubles where it is full: a new array for each generation would be new pages each time.
    """

    rows: NDArray[Any]
    count: int

    def append(self, new: NDArray[Any]) -> NDArray[Any]:
        """All rows, as a view."""
        count = self.count + len(new)
        if count > len(self.rows):
            longer = np.empty((max(2 * count, _ROOM), *new.shape[1:]), new.dtype)
            longer[: self.count] = self.rows[: self.count].reshape(-1, *new.shape[1:])
            self.rows = longer
        self.rows[self.count : count] = new
        self.count = count
        return self.rows[:count]


@dataclass(slots=True, eq=False)
class Nsga2:
    """An evolution under way.

    Args:
        space: to search.
        size: networks in a generation.
        random: of everything random in it.
        genomes, scores: every distinct network it looked at, in order.
        alive: which of them are the population, the best first.
        allowed: turns genomes into the nearest that exist, where not all do; ``None``: all do.
        seen: keys of all genomes looked at, sorted.
    """

    space: SearchSpace
    size: int
    random: np.random.Generator
    genomes: Genomes
    scores: Scores
    alive: Integers
    allowed: Callable[[Genomes], Genomes] | None = None
    seen: NDArray[np.uint64] = field(init=False)
    _archive: tuple[_Growing, _Growing, _Growing] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.seen = np.sort(keys(self.genomes))
        kept = (self.genomes, self.scores.values, self.scores.violation)
        genomes, values, violation = (_Growing(rows, len(rows)) for rows in kept)
        self._archive = genomes, values, violation

    @classmethod
    def begin(
        cls,
        space: SearchSpace,
        score: Score,
        *,
        size: int,
        seed: int,
        start: Genomes | None = None,
        allowed: Callable[[Genomes], Genomes] | None = None,
    ) -> Nsga2:
        """The first generation: ``start``, and the rest drawn at random.

        Raises:
            UsageError: for fewer than two networks in a generation.
            TableError: if a genome of ``start`` is outside the space.
        """
        if size < 2:
            raise UsageError(f"a generation of {size} cannot evolve", "2 or more networks")
        empty = np.empty((0, len(space.slots)), dtype=np.int64)
        given = empty if start is None or not len(start) else space.check(start)
        random = np.random.default_rng(seed)
        nothing = Scores(np.empty((0, 0)), np.empty(0))
        search = cls(space, size, random, empty, nothing, empty[:, 0], allowed)
        drawn = np.vstack([given, space.sample(4 * size, random)])
        if allowed is not None:
            drawn = allowed(drawn)
        search._add(search._new(drawn)[:size], score)
        return search

    def step(self, score: Score, most: int | None = None) -> int:
        """One generation.

        Args:
            score: called once, with every new network.
            most: so many new networks at most.

        Returns:
            How many networks were new; 0 when nothing is left to look at.
        """
        wanted = self.size if most is None else min(self.size, most)
        children = self._new(self._children(wanted))
        for _ in range(_REFILLS):
            if len(children) >= wanted:
                break
            more = self._children(wanted)
            children = self._new(np.vstack([children, more]))
        if len(children) < wanted:
            children = self._new(np.vstack([children, self._drawn(4 * wanted)]))
        self._add(children[:wanted], score)
        return min(len(children), wanted)

    def run(self, score: Score, evaluations: int) -> None:
        """Go on until so many networks were looked at, or there are no more."""
        while len(self.genomes) < evaluations:
            if not self.step(score, evaluations - len(self.genomes)):
                return

    def _add(self, new: Genomes, score: Score) -> None:
        if not len(new):
            return
        found = score(new)
        count = len(self.genomes)
        genomes, values, violation = self._archive
        self.genomes = genomes.append(new)
        self.scores = Scores(values.append(found.values), violation.append(found.violation))
        added = np.sort(keys(new))
        self.seen = np.insert(self.seen, np.searchsorted(self.seen, added), added)
        pool = np.concatenate([self.alive, np.arange(count, count + len(new))])
        self.alive = pool[best_first(self.scores.take(pool))[: self.size]]

    def _children(self, count: int) -> Genomes:
        """Binary tournaments (the population is sorted), crossover, mutation."""
        random, slots = self.random, len(self.space.slots)
        parents = random.integers(0, len(self.alive), size=(2, 2, count)).min(axis=0)
        mother, father = self.genomes[self.alive[parents]]
        uniform = random.random((count, slots)) < 0.5
        cuts = np.sort(random.integers(0, slots + 1, size=(2, count, 1)), axis=0)
        places = np.arange(slots)
        between = (places >= cuts[0]) & (places < cuts[1])
        children = np.where(
            np.where(random.random((count, 1)) < 0.5, uniform, between), mother, father
        )
        sizes = self.space.highest + 1
        free = max(int((sizes > 1).sum()), 1)
        mutates = random.random((count, slots)) < 1 / free
        # From 1 to the last: a mutation is never the choice that was there.
        by = 1 + (random.random((count, slots)) * (sizes - 1)).astype(np.int64)
        children = np.where(mutates & (sizes > 1), (children + by) % sizes, children)
        return children if self.allowed is None else self.allowed(children)

    def _drawn(self, count: int) -> Genomes:
        drawn = self.space.sample(count, self.random)
        return drawn if self.allowed is None else self.allowed(drawn)

    def _new(self, genomes: Genomes) -> Genomes:
        """The first of each that was never looked at, in order."""
        found = keys(genomes)
        first = np.sort(np.unique(found, return_index=True)[1])
        place = np.searchsorted(self.seen, found[first])
        known = np.append(self.seen, np.uint64(0))[place] == found[first]
        known &= place < len(self.seen)
        new: Genomes = genomes[first[~known]]
        return new

    def save(self, path: Path) -> None:
        """Everything needed to go on, as one ``.npz`` without pickle."""
        stream = io.BytesIO()
        about = {"size": self.size, "random": self.random.bit_generator.state}
        np.savez(
            stream,
            about=np.array(json.dumps(about)),
            genomes=self.genomes,
            values=self.scores.values,
            violation=self.scores.violation,
            alive=self.alive,
        )
        write_whole(path, stream.getvalue())

    @classmethod
    def load(
        cls,
        path: Path,
        space: SearchSpace,
        allowed: Callable[[Genomes], Genomes] | None = None,
    ) -> Nsga2:
        """Take up again what was saved.

        Raises:
            UsageError: if the file is no saved evolution.
            TableError: if a genome in it is outside the space.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
                arrays: dict[str, Any] = dict(saved)
            about = json.loads(str(arrays["about"]))
            random = np.random.default_rng()
            random.bit_generator.state = about["random"]
            scores = Scores(arrays["values"], arrays["violation"])
            genomes = space.check(arrays["genomes"])
            return cls(space, about["size"], random, genomes, scores, arrays["alive"], allowed)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise UsageError(f"{path} is no saved evolution", "start the search anew") from error


def keys(genomes: Genomes) -> NDArray[np.uint64]:
    """One 64-bit key for each row, shape ``(n,)``; equal rows have equal keys.

    Two different rows share one with a chance of 2^-64: one of them is then taken for seen.
    """
    weights = np.random.default_rng(genomes.shape[1]).integers(
        0, 2**64, size=genomes.shape[1], dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        mixed: NDArray[np.uint64] = genomes.astype(np.uint64) @ (weights | np.uint64(1))
    return mixed
