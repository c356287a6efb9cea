"""Fused scores against a plain loop, on spaces of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import scoring
from profiles.errors import TableError
from profiles.scoring import Scorer, Stage, Structure
from profiles.space import SearchSpace, Slot


def structure(stages: list[int], choices: int, contexts: int) -> Structure:
    blocks = [f"s{s}b{b}" for s, n in enumerate(stages) for b in range(n)]
    slots = [Slot(name, tuple(map(str, range(choices)))) for name in blocks]
    slots += [Slot(f"d{s}", tuple(map(str, range(n)))) for s, n in enumerate(stages)]
    slots.append(Slot("resolution", tuple(map(str, range(contexts)))))
    first = np.cumsum([0, *stages])
    found = tuple(
        Stage(tuple(range(first[s], first[s + 1])), len(blocks) + s, tuple(range(1, n + 1)))
        for s, n in enumerate(stages)
    )
    return Structure(SearchSpace(tuple(slots)), found, len(slots) - 1)


def loop(made: Structure, costs: np.ndarray, base: np.ndarray, genome: np.ndarray) -> float:
    under = genome[made.context]
    total = base[under]
    for stage in made.stages:
        for slot in stage.slots[: stage.depths[genome[stage.depth]]]:
            total += costs[under, slot, genome[slot]]
    return total


@settings(max_examples=30)
@given(
    stages=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    choices=st.integers(1, 6),
    contexts=st.integers(1, 3),
    seed=st.integers(0, 99),
    fused=st.sampled_from([1, 50, 1 << 17]),
)
def test_scores_are_those_of_a_loop(stages, choices, contexts, seed, fused):
    made, rng = structure(stages, choices, contexts), np.random.default_rng(seed)
    sizes = made.space.highest + 1
    costs = rng.uniform(1, 9, (contexts, len(sizes), int(sizes.max())))
    base = rng.uniform(1, 9, contexts)
    genomes = made.space.sample(200, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_MOST_FUSED", fused)
        scorer = Scorer(made, costs, base)
    expected = [loop(made, costs, base, genome) for genome in genomes]
    for kind in (np.uint8, np.int64):
        np.testing.assert_allclose(scorer.score(genomes.astype(kind)), expected, rtol=1e-12)


@pytest.mark.parametrize("row", [0, 63, 64, 199])
def test_a_gene_outside_is_named_wherever_it_stands(row):
    made = structure([2, 3], 4, 2)
    genomes = np.zeros((200, 8), dtype=np.uint8)
    genomes[row, 6] = 3
    with pytest.raises(TableError, match=rf"genome {row}: gene 6 \(d1\) is 3, outside 0\.\.2"):
        Scorer(made, np.ones((2, 8, 4)), [1, 1]).score(genomes)


def test_a_hole_is_refused_only_where_its_block_is_there():
    made = structure([2], 3, 2)
    costs = np.ones((2, 4, 3))
    costs[1, 1, 2] = np.nan
    scorer = Scorer(made, costs, [1, 1])
    assert scorer.score([[0, 2, 0, 1], [0, 2, 1, 0]]).tolist() == [2, 3]
    with pytest.raises(TableError, match="s0b1/2 with 1 was not measured"):
        scorer.score([[0, 2, 1, 1]])
