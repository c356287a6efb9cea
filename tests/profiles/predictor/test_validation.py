"""Unseen means unseen: no group, and no genome, on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import UsageError
from profiles.predictor import Networks, evaluate
from profiles.predictor.validation import divide
from tests.profiles.predictor.problems import genomes, interacting, interacting_target


def test_a_report_says_what_was_found_beside_the_additive_model():
    report = evaluate(interacting(200), train=100, seeds=2)
    assert report.n_train == 100
    assert report.n_test == 100
    assert report.score.mape < 0.7 * report.additive.mape
    assert report.score.spearman > report.additive.spearman
    assert len(report.by_seed) == len(report.additive_by_seed) == len(report.kinds) == 2
    assert report.score.mape == np.mean([score.mape for score in report.by_seed])
    assert report.score.seconds > 0


@given(
    st.lists(st.integers(0, 30), min_size=20, max_size=80).filter(lambda g: len(set(g)) > 12),
    st.integers(0, 5),
)
def test_no_group_is_on_both_sides_and_no_more_rows_are_learned_than_asked(groups, seed):
    rows = np.arange(len(groups))[:, None]
    networks = Networks.of(rows, np.ones(len(groups)), groups=groups)
    learned = divide(networks, 11, seed)
    assert set(networks.groups[learned]).isdisjoint(networks.groups[~learned])
    assert 0 < learned.sum() <= 11


def test_equal_genomes_stay_together():
    rows = np.repeat(genomes(30, 0), 2, axis=0)
    networks = Networks.of(rows, interacting_target(rows))
    learned = divide(networks, 30, seed=0)
    assert learned.sum() == 30
    assert np.array_equal(learned[::2], learned[1::2])


def test_one_genome_in_two_groups_is_a_leak_and_refused():
    rows = genomes(40, 0)
    rows[7] = rows[3]
    networks = Networks.of(rows, interacting_target(rows), groups=range(40))
    with pytest.raises(UsageError, match="rows 4 and 8 are one network in two groups"):
        evaluate(networks, train=20, seeds=1)


@pytest.mark.parametrize(
    ("train", "groups", "said"),
    [
        (9, None, "at least 10"),
        (40, None, "measure at least 45"),
        (38, None, "measure at least 43"),
        (20, ["a"] * 20 + ["b"] * 20, "at least 2 whole groups"),
        (30, ["a"] * 15 + ["b"] * 25, "at least 2 whole groups"),
    ],
)
def test_too_little_says_how_much_is_needed(train, groups, said):
    rows = genomes(40, 0)
    networks = Networks.of(rows, interacting_target(rows), groups=groups)
    with pytest.raises(UsageError, match=said):
        evaluate(networks, train=train, seeds=1)
