"""Ranks and crowding against the plain definitions; evolutions of odd spaces; broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.search.nsga2 import Nsga2, Scores, crowding, ranks
from profiles.errors import TableError, UsageError
from profiles.space import SearchSpace, Slot

VALUES = st.integers(2, 3).flatmap(
    lambda objectives: npst.arrays(
        np.float64,
        st.tuples(st.integers(1, 24), st.just(objectives)),
        elements=st.integers(0, 5).map(float),
    )
)


def space(*sizes: int) -> SearchSpace:
    return SearchSpace(tuple(Slot(f"s{i}", tuple("abcdef"[:n])) for i, n in enumerate(sizes)))


def score(genomes: np.ndarray) -> Scores:
    total = genomes.sum(axis=1).astype(float)
    return Scores.of(np.column_stack([total, -total]))


def plain_ranks(values: np.ndarray, violation: np.ndarray) -> list[int]:
    """Front by front: what nothing left dominates under constrained domination."""

    def better(a: int, b: int) -> bool:
        if violation[a] != violation[b]:
            return bool(violation[a] < violation[b])
        if violation[a] > 0:
            return False
        return bool((values[a] <= values[b]).all() and (values[a] < values[b]).any())

    found, left, number = [-1] * len(values), set(range(len(values))), 0
    while left:
        best = {a for a in left if not any(better(b, a) for b in left)}
        for a in best:
            found[a] = number
        left -= best
        number += 1
    return found


@given(VALUES, st.data())
def test_ranks_are_those_of_the_definition(values: np.ndarray, data: st.DataObject):
    missed = data.draw(
        npst.arrays(np.float64, len(values), elements=st.sampled_from([0.0, 0.0, 1.0, 2.0]))
    )
    assert ranks(Scores.of(values, missed)).tolist() == plain_ranks(values, missed)


@given(VALUES)
def test_crowding_is_that_of_the_definition(values: np.ndarray):
    rank = ranks(Scores.of(values))
    expected = np.zeros(len(values))
    for number in set(rank.tolist()):
        members = np.flatnonzero(rank == number)
        for column in values.T:
            # Among equals the order is open: theirs is the matrix's.
            order = members[np.argsort(column[members], kind="stable")]
            span = column[order[-1]] - column[order[0]]
            expected[order[[0, -1]]] = np.inf
            for before, this, after in zip(order, order[1:], order[2:], strict=False):
                expected[this] += (column[after] - column[before]) / span if span else 0
    np.testing.assert_allclose(crowding(values, rank), expected)


def test_a_space_with_one_point_ends_by_itself():
    search = Nsga2.begin(space(1, 1), score, size=4, seed=0)
    search.run(score, 100)
    assert search.genomes.tolist() == [[0, 0]]


def test_a_small_space_is_looked_at_wholly_and_once():
    search = Nsga2.begin(space(3, 4, 2), score, size=4, seed=0)
    search.run(score, 100)
    assert len(np.unique(search.genomes, axis=0)) == len(search.genomes) == 24


def test_a_gene_outside_the_space_is_named():
    with pytest.raises(TableError, match=r"gene 1 \(s1\) is 4, outside 0\.\.3"):
        Nsga2.begin(space(3, 4), score, size=4, seed=0, start=np.array([[0, 4]]))


def test_a_generation_of_one_is_refused():
    with pytest.raises(UsageError, match="a generation of 1"):
        Nsga2.begin(space(3), score, size=1, seed=0)


def test_limits_are_met_though_few_networks_meet_them():
    def limited(genomes: np.ndarray) -> Scores:
        total = genomes.sum(axis=1).astype(float)
        return Scores.of(np.column_stack([total, -total]), np.maximum(total - 3, 0))

    search = Nsga2.begin(space(*[6] * 8), limited, size=20, seed=1)
    search.run(limited, 1500)
    alive = search.scores.take(search.alive)
    assert (alive.violation == 0).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"[]"])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(UsageError, match="is no saved evolution") as refused:
        Nsga2.load(tmp_path / "state.npz", space(3))
    assert "\n" not in str(refused.value)


def test_a_file_cut_short_is_one_line(tmp_path: Path):
    path = tmp_path / "state.npz"
    Nsga2.begin(space(3, 4), score, size=4, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match="is no saved evolution"):
        Nsga2.load(path, space(3, 4))
