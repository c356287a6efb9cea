"""The matrix evolution and the LINAS loop: resumed, limited, and better than chance."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.search.linas import LinasPlan, linas
from pipeline.search.nsga2 import Nsga2, Scores, ranks
from pipeline.search.record import Measured, Record
from profiles.errors import UsageError
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
