"""What a search must be better than."""

import numpy as np
import pytest

from pipeline.search import baselines
from profiles.errors import UsageError
from profiles.space import SearchSpace, Slot


def space(*sizes: int) -> SearchSpace:
    return SearchSpace(tuple(Slot(f"s{i}", tuple(map(str, range(n)))) for i, n in enumerate(sizes)))


def test_exhaustive_is_everything_once():
    found = space(2, 3, 1).check(baselines.exhaustive(space(2, 3, 1)))
    assert found.tolist() == [[a, b, 0] for a in range(2) for b in range(3)]


def test_exhaustive_refuses_a_large_space_with_its_size():
    with pytest.raises(UsageError, match="1,048,576 networks, more than the 100,000"):
        baselines.exhaustive(space(*[4] * 10))


@pytest.mark.parametrize(("sizes", "expected"), [((3, 4), 12), ((4,) * 10, 500)])
def test_random_draws_distinct_networks_by_seed(sizes: tuple[int, ...], expected: int):
    found = baselines.random(space(*sizes), 500, seed=1)
    space(*sizes).check(found)
    assert len(found) == len(np.unique(found, axis=0)) == expected
    np.testing.assert_array_equal(found, baselines.random(space(*sizes), 500, seed=1))
    assert not np.array_equal(found, baselines.random(space(*sizes), 500, seed=2))


def test_random_fills_the_places_of_duplicates():
    found = baselines.random(space(*[7] * 6), 60_000, seed=0)
    assert len(found) == len(np.unique(found, axis=0)) == 60_000


def test_uniform_goes_from_all_first_to_all_last():
    assert baselines.uniform(space(3, 5, 1)).tolist() == [
        [0, 0, 0], [0, 1, 0], [1, 2, 0], [2, 3, 0], [2, 4, 0]
    ]  # fmt: skip
