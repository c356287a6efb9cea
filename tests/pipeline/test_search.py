"""The evolution against brute force, and what it proposes to measure."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from moocore import hypervolume

from pipeline.overview import pareto_front, rows
from pipeline.search.evolve import Evolution, best_and_most_diverse, evolve
from profiles.findings import Measurement
from profiles.space import SearchSpace, Slot
from tests.measurements import measurement

SIZES = (1, 5, 6, 5, 6, 1)
SPACE = SearchSpace(
    tuple(Slot(f"slot{i}", tuple(f"c{j}" for j in range(n))) for i, n in enumerate(SIZES))
)
NOTHING = np.empty((0, len(SIZES)), dtype=np.int64)


def objectives(genomes: np.ndarray) -> np.ndarray:
    """Rugged, with a knee: error falls with cost, but not for every choice alike."""
    genes = genomes.astype(np.float64)
    cost = 1 + genes @ np.array([0, 1.0, 2.0, 1.5, 0.7, 0])
    rugged = np.sin(3 * genes[:, 1] + genes[:, 3]) + np.cos(2 * genes[:, 2] * genes[:, 4])
    error = np.exp(-cost / 8) + 0.05 * rugged
    return np.column_stack([error, cost])


EVERYTHING = np.array(list(itertools.product(*(range(n) for n in SIZES))), dtype=np.int64)
SCORES = objectives(EVERYTHING)


def volume(scores: np.ndarray) -> float:
    return float(hypervolume(scores, ref=SCORES.max(0) + 1))


def search(seed: int = 0, **changes: object) -> Evolution:
    settings: dict = {"population": 30, "generations": 12, "start": NOTHING}
    return evolve(SPACE, objectives, seed=seed, **{**settings, **changes})


@pytest.fixture(scope="module")
def evolution() -> Evolution:
    return search()


def test_it_finds_the_true_front_by_looking_at_a_part(evolution: Evolution):
    found = volume(evolution.scores[evolution.front()])
    best = volume(SCORES[brute_force_front(SCORES)])
    assert found / best >= 0.95
    assert len(evolution.genomes) <= 30 * 12 < len(EVERYTHING) / 2


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_better_than_chance(seed: int):
    """As many networks drawn at random cover less."""
    found = search(seed)
    drawn = SPACE.sample(len(found.genomes), np.random.default_rng(seed))
    assert volume(found.scores) > volume(objectives(drawn))


def test_scores_belong_to_their_genomes(evolution: Evolution):
    np.testing.assert_array_equal(evolution.scores, objectives(evolution.genomes))


def test_no_network_is_listed_twice_or_outside_the_space(evolution: Evolution):
    SPACE.check(evolution.genomes)
    assert len(np.unique(evolution.genomes, axis=0)) == len(evolution.genomes)


def test_the_front_is_a_front_in_order(evolution: Evolution):
    front = evolution.scores[evolution.front()]
    assert len(pareto_front(evolution.scores)) >= len(front) == len(pareto_front(front))
    assert (np.diff(front[:, 0]) >= 0).all()
    assert (np.diff(front[:, 1]) <= 0).all()


def test_the_same_seed_is_the_same_evolution(evolution: Evolution):
    again, other = search(), search(seed=5)
    np.testing.assert_array_equal(again.genomes, evolution.genomes)
    np.testing.assert_array_equal(again.scores, evolution.scores)
    assert not (
        other.genomes.shape == evolution.genomes.shape
        and np.array_equal(other.genomes, evolution.genomes)
    )


def test_nothing_random_is_left_to_the_process():
    """A search that is taken up again in another process must come to the same networks."""
    code = "from tests.pipeline.test_search import search; print(search().genomes.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(search().genomes.tolist())


def test_start_genomes_are_looked_at():
    start = np.array([[0, 4, 5, 4, 5, 0], [0, 0, 0, 0, 0, 0], [0, 2, 1, 3, 4, 0]])
    found = search(start=start, population=6, generations=1)
    seen = {tuple(genome) for genome in found.genomes.tolist()}
    assert seen >= {tuple(genome) for genome in start.tolist()}
    assert len(found.genomes) == 6


def test_start_genomes_that_are_the_same_count_once():
    start = np.zeros((5, len(SIZES)), dtype=np.int64)
    found = search(start=start, population=6, generations=1)
    assert len(found.genomes) == 6


def test_a_space_smaller_than_the_population_is_seen_whole():
    space = SearchSpace((Slot("a", ("x",)), Slot("b", ("x", "y")), Slot("c", ("x", "y", "z"))))

    def tiny(genomes: np.ndarray) -> np.ndarray:
        return np.column_stack([genomes[:, 1] + genomes[:, 2], -genomes[:, 2]]).astype(float)

    found = evolve(
        space,
        tiny,
        population=10,
        generations=4,
        seed=0,
        start=np.zeros((1, 3), dtype=np.int64),
    )
    assert len(found.genomes) == 6


def brute_force_front(scores: np.ndarray) -> list[int]:
    def dominates(one: np.ndarray, other: np.ndarray) -> bool:
        return bool((one <= other).all() and (one < other).any())

    return [i for i, row in enumerate(scores) if not any(dominates(other, row) for other in scores)]


small_scores = npst.arrays(
    np.float64,
    st.tuples(st.integers(1, 25), st.integers(1, 3)),
    elements=st.integers(-3, 3).map(float),
)


@given(scores=small_scores)
def test_the_pareto_front_is_what_brute_force_says(scores: np.ndarray):
    assert pareto_front(scores).tolist() == brute_force_front(scores)


def test_the_front_of_nothing_is_empty():
    assert pareto_front([]).tolist() == []


@given(scores=small_scores, count=st.integers(1, 8), data=st.data())
def test_proposals_are_new_distinct_and_from_the_best_front_first(
    scores: np.ndarray, count: int, data: st.DataObject
):
    genomes = np.arange(len(scores))[:, None]
    measured = data.draw(st.sets(st.integers(0, len(scores) - 1), max_size=len(scores)))
    evolution = Evolution(genomes, scores)
    picks = best_and_most_diverse(evolution, count, {(i,) for i in measured})
    left = [i for i in range(len(scores)) if i not in measured]
    assert len(picks) == min(count, len(left))
    assert len(set(picks.tolist())) == len(picks)
    assert not measured & set(picks.tolist())
    # No candidate of a better front may be left out for one of a worse.
    rank = ranks(scores)
    chosen = sorted(rank[i] for i in picks)
    assert chosen == sorted(rank[i] for i in left)[: len(picks)]


def ranks(scores: np.ndarray) -> list[int]:
    rank, left, level = [-1] * len(scores), list(range(len(scores))), 0
    while left:
        front = [left[i] for i in brute_force_front(scores[left])]
        for i in front:
            rank[i] = level
        left = [i for i in left if i not in front]
        level += 1
    return rank


def test_proposals_are_spread_over_the_front():
    error = np.linspace(0, 1, 21)
    evolution = Evolution(np.arange(21)[:, None], np.column_stack([error, 1 - error]))
    picks = sorted(best_and_most_diverse(evolution, 3, set()).tolist())
    assert picks == [0, 10, 20]
    picks = sorted(best_and_most_diverse(evolution, 1, {(0,), (20,)}).tolist())
    assert picks == [10], "far from what was measured, too"


def test_spread_is_measured_in_shares_of_each_range():
    """Latencies are in the ten thousands, errors below one: both count alike."""
    error = np.array([0.0, 0.5, 0.95, 1.0])
    latency = np.array([1e5, 9.9e4, 4e4, 0.0])
    evolution = Evolution(np.arange(4)[:, None], np.column_stack([error, latency]))
    assert set(best_and_most_diverse(evolution, 3, set()).tolist()) == {0, 1, 3}


def ms(value: float, **changes: object) -> Measurement:
    return measurement(median_ns=value * 1e6, **changes)


def test_rows_compare_with_fp32_of_the_same_format_device_and_condition():
    found = rows(
        [
            ms(10, variant="fp32", format="onnx"),
            ms(5, variant="int8", format="onnx"),
            ms(40, variant="fp32", format="tflite"),
            ms(50, variant="int8", format="tflite"),
            ms(2, variant="int8", format="onnx", device="other"),
            measurement(variant="sparse", format="onnx", median_ns=None, status="refused"),
        ]
    )
    assert [row.speedup for row in found] == [1, 2, 1, 0.8, None, None]


def test_the_front_of_rows_is_per_device_and_holds_only_what_was_measured():
    from tests import builders

    good, poor = builders.parity(accuracy=0.9), builders.parity(accuracy=0.5)
    found = rows(
        [
            ms(10, variant="a", parity=good, size_bytes=100),
            ms(12, variant="b", parity=good, size_bytes=100),
            ms(9, variant="c", parity=poor, size_bytes=100),
            ms(12, variant="d", parity=good, size_bytes=50),
            ms(99, variant="e", parity=poor, size_bytes=999, device="other"),
            ms(1, variant="f", parity=None, size_bytes=1),
            measurement(variant="g", median_ns=None, parity=good, size_bytes=1, status="refused"),
        ]
    )
    front = {row.measurement.variant for row in found if row.on_front}
    assert front == {"a", "c", "d", "e"}
