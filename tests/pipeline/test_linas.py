"""The matrix evolution and the LINAS loop: resumed, limited, and better than chance."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.search.goals import Goals, Limit, Objective
from pipeline.search.light import fit_light
from pipeline.search.linas import LinasPlan, _gains, linas
from pipeline.search.nsga2 import Nsga2, Scores, ranks
from pipeline.search.record import Measured, Record
from profiles.errors import UsageError
from profiles.space import SearchSpace, Slot
from tools.bench.search_problems import interacting

PROBLEM = interacting()
PLAN = LinasPlan(budget=60, inner=800)


def test_an_evolution_taken_up_again_goes_where_it_would_have_gone(tmp_path: Path):
    whole = Nsga2.begin(PROBLEM.space, PROBLEM.score, size=20, seed=3)
    whole.run(PROBLEM.score, 100)
    whole.save(tmp_path / "state.npz")
    whole.run(PROBLEM.score, 300)
    again = Nsga2.load(tmp_path / "state.npz", PROBLEM.space)
    again.run(PROBLEM.score, 300)
    np.testing.assert_array_equal(again.genomes, whole.genomes)
    assert len(np.unique(again.genomes, axis=0)) == 300


def test_ranks_put_what_misses_limits_behind_and_the_unknown_last():
    values = np.array([[2.0, 2.0], [1, 1], [0, 0], [np.nan, 0], [0, 0]])
    scores = Scores.of(values, np.array([0.0, 0, 2, 0, 1]))
    assert ranks(scores).tolist() == [1, 0, 3, 4, 2]


def test_linas_resumes_to_the_same_record_and_beats_chance(tmp_path: Path):
    asked: list[int] = []

    def measure(genomes: np.ndarray) -> Measured:
        asked.append(len(genomes))
        values = PROBLEM.values(genomes)
        values[genomes[:, 0] + genomes[:, 1] == 4] = np.nan
        return Measured.of(values)

    whole = linas(PROBLEM.space, measure, PLAN)
    part = linas(PROBLEM.space, measure, LinasPlan(budget=36, inner=800))
    part.save(tmp_path / "record.json")
    asked.clear()
    again = linas(
        PROBLEM.space, measure, PLAN, before=Record.load(tmp_path / "record.json", PROBLEM.space)
    )
    assert sum(asked) == 24
    np.testing.assert_array_equal(again.genomes, whole.genomes)
    drawn = PROBLEM.space.sample(60, np.random.default_rng(0))
    assert PROBLEM.volume(whole.values[whole.front().rows]) > PROBLEM.volume(PROBLEM.values(drawn))


def test_what_is_no_record_is_one_line(tmp_path: Path):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match="no record of a search"):
        Record.load(tmp_path / "record.json", PROBLEM.space)


def test_a_candidate_that_raises_is_recorded_and_the_search_goes_on(tmp_path: Path):
    def measure(genomes: np.ndarray) -> Measured:
        if (genomes[:, 0] == 2).any():
            raise RuntimeError("out of memory")
        return Measured.of(PROBLEM.values(genomes))

    record = linas(PROBLEM.space, measure, LinasPlan(budget=36, inner=400))
    failed = record.genomes[:, 0] == 2
    assert 0 < failed.sum() < len(record.genomes) == 36
    assert np.isnan(record.values[failed]).all() and np.isfinite(record.values[~failed]).all()
    assert set(np.array(record.why)[failed]) == {"RuntimeError: out of memory"}
    assert set(np.array(record.why)[~failed]) == {""}
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json", PROBLEM.space).why == record.why


def test_where_all_fail_the_search_ends_with_reasons_and_no_front():
    def measure(genomes: np.ndarray) -> Measured:
        raise OSError("no device")

    record = linas(PROBLEM.space, measure, LinasPlan(budget=30, first=12))
    assert record.why == ("OSError: no device",) * 30
    assert record.front().words == "no network could be measured"


def test_it_ends_when_measurements_lie_within_their_intervals_of_the_predictions():
    def wide(genomes: np.ndarray) -> Measured:
        values = PROBLEM.values(genomes)
        return Measured(values, np.full_like(values, 1e3), ("",) * len(values))

    plan = LinasPlan(budget=200, inner=400, stop_when_agreed=True)
    assert [step.agrees for step in linas(PROBLEM.space, wide, plan).rounds] == [False, True]


def test_limits_are_searched_for_and_the_nearest_front_is_told_where_none_is_met():
    def measure(genomes: np.ndarray) -> Measured:
        return Measured.of(PROBLEM.values(genomes))

    least = PROBLEM.values(np.zeros((1, 14), dtype=int))[0, 1]
    for most in (least * 1.3, least * 0.5):
        goals = Goals((Objective("error"),), (Limit("latency_ms", most, "pi"),))
        found = linas(PROBLEM.space, measure, PLAN, score=goals.of_columns).front(goals.of_columns)
        assert len(found.rows) and (found.misses == 0) == (most > least)
    assert found.words.startswith("no network meets the limits; the nearest misses them by")


def test_what_is_free_is_learned_from():
    """Of an error that is a line in a free statistic nothing is left to learn."""
    free = lambda genomes: 1.0 + genomes.sum(axis=1, keepdims=True)  # noqa: E731

    def measure(genomes: np.ndarray) -> Measured:
        line = np.log(free(genomes))
        values = np.column_stack([-line, line])
        return Measured(values, np.full_like(values, 1e-6), ("",) * len(values))

    plan = LinasPlan(budget=60, first=8, inner=400, stop_when_agreed=True)
    assert len(linas(PROBLEM.space, measure, plan, free=free).rounds) == 2
    assert len(linas(PROBLEM.space, measure, plan).rounds) > 2


def test_a_space_with_one_point_and_a_plan_of_nothing():
    one = SearchSpace((Slot("only", ("a",)),))
    record = linas(one, lambda genomes: Measured.of(np.ones((len(genomes), 2))), PLAN)
    assert record.genomes.tolist() == [[0]]
    with pytest.raises(UsageError, match="batch is 0"):
        LinasPlan(budget=4, batch=0)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_gain_is_that_of_the_hypervolume(objectives: int):
    from moocore import hypervolume

    random = np.random.default_rng(objectives)
    reference = np.full(objectives, 1.1)
    for known in (random.integers(0, 5, (9, objectives)) / 4, np.empty((0, objectives))):
        points = random.integers(-1, 6, (40, objectives)) / 4
        below = np.vstack([known, reference])
        before = hypervolume(below, ref=reference)
        expected = [hypervolume(np.vstack([below, p]), ref=reference) - before for p in points]
        np.testing.assert_allclose(_gains(points, known), expected, atol=1e-12)


def test_what_is_measured_is_surer_than_what_is_not():
    genomes = PROBLEM.space.sample(80, np.random.default_rng(1))
    errors = PROBLEM.values(genomes)[:, 0]
    learned = fit_light(PROBLEM.space, genomes[:40], errors[:40])
    low, median, high = learned.samples(genomes, np.array([-1.0, 0.0, 1.0]))
    assert (high - low)[:40].mean() < 0.8 * (high - low)[40:].mean()
    missed = np.abs(median - errors)[40:]
    assert (missed < 3 * (high - low)[40:]).all() and missed.mean() < errors.std() / 2
