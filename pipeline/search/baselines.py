"""What a search must be better than: chance, all of a small space, one setting for all slots."""

from __future__ import annotations

import itertools

import numpy as np

from pipeline.search.nsga2 import keys
from profiles.errors import UsageError
from profiles.space import Genomes, SearchSpace

#: More networks than this are not listed.
MOST = 100_000


def random(space: SearchSpace, count: int, seed: int) -> Genomes:
    """So many distinct networks, drawn uniformly; fewer where the space has fewer."""
    if space.size <= MOST:
        everything = exhaustive(space)
        return everything[np.random.default_rng(seed).permutation(len(everything))[:count]]
    generator, count = np.random.default_rng(seed), min(count, space.size)
    found = space.sample(count, generator)
    while len(first := np.unique(keys(found), return_index=True)[1]) < count:
        found = np.vstack([found[np.sort(first)], space.sample(count, generator)])
    return found[np.sort(first)[:count]]


def exhaustive(space: SearchSpace) -> Genomes:
    """Every network of a small space, in the order of its genes.

    Raises:
        UsageError: for more than ``MOST``, with the number.
    """
    if space.size > MOST:
        raise UsageError(
            f"the space has {space.size:,} networks, more than the {MOST:,} that can be listed",
            "search it, or draw from it at random",
        )
    rows = itertools.product(*(range(len(slot.choices)) for slot in space.slots))
    return np.array(list(rows), dtype=np.int64)


def uniform(space: SearchSpace) -> Genomes:
    """The uniformly scaled networks: every slot at the same share of its way to the last choice.

    As many as the slot with most choices has, from all first to all last; each once.
    """
    steps = int(space.highest.max(initial=0)) + 1
    shares = np.linspace(0, 1, steps)[:, None]
    return np.unique(np.rint(shares * space.highest).astype(np.int64), axis=0)
