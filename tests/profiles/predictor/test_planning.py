"""What is measured next tells more than what chance would measure."""

from __future__ import annotations

import numpy as np
import pytest

from profiles.errors import UsageError
from profiles.predictor import Networks, choose_next
from profiles.predictor.fitting import fitted_process
from tests.profiles.predictor.problems import genomes, interacting_target

ROWS = genomes(729, 0)
TARGET = interacting_target(ROWS, noise=0.005)
POOL = ROWS[20:400]


def summed_variance(extra: np.ndarray) -> float:
    """Of the pool, after these rows of it were measured too."""
    rows = np.concatenate([ROWS[:20], POOL[extra]])
    networks = Networks.of(rows, interacting_target(rows, noise=0.005))
    process, _ = fitted_process(networks)
    codes = networks.choices.encode(POOL)
    return float((process.predict(codes, np.empty((len(codes), 0)))[1] ** 2).mean())


def test_chosen_networks_leave_less_unknown_than_random_ones():
    chosen = choose_next(Networks.of(ROWS[:20], TARGET[:20]), POOL, 15)
    drawn = [np.random.default_rng(seed).permutation(len(POOL))[:15] for seed in range(5)]
    assert len(set(chosen.tolist())) == 15
    assert summed_variance(chosen) < np.mean([summed_variance(rows) for rows in drawn])


def test_towards_low_values_lower_ones_are_chosen():
    measured = Networks.of(ROWS[:40], TARGET[:40])
    pool = TARGET[20:400]
    means = {
        toward: pool[choose_next(measured, POOL, 15, toward=toward)].mean()
        for toward in ("low", "all", "high")
    }
    assert means["low"] < means["all"] < means["high"]


def test_a_choice_that_was_never_measured_is_among_the_first():
    candidates = np.concatenate([ROWS[:60], ROWS[60:90] + np.eye(6, dtype=int)[5] * 6])
    chosen = choose_next(Networks.of(ROWS[:60], TARGET[:60]), candidates, 3)
    assert chosen.max() >= 60


def test_what_cannot_be_chosen_is_refused():
    few = Networks.of(ROWS[:9], TARGET[:9])
    enough = Networks.of(ROWS[:20], TARGET[:20])
    with pytest.raises(UsageError, match=r"9 measured networks.*at least 10"):
        choose_next(few, POOL, 3)
    with pytest.raises(UsageError, match="cannot choose 4 of 3"):
        choose_next(enough, POOL[:3], 4)
