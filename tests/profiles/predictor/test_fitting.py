"""What is chosen predicts unseen networks, and its intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from profiles.errors import UsageError
from profiles.predictor import Networks, fit
from profiles.predictor.fitting import folds
from profiles.predictor.process import _Kernel, _likelihood
from tests.profiles.predictor.problems import (
    additive_target,
    genomes,
    interacting,
    interacting_target,
)

UNSEEN_ROWS = genomes(729, 0)[400:]


def test_what_interacts_is_predicted_better_than_by_adding_up():
    networks = interacting(150)
    truth = interacting_target(UNSEEN_ROWS, noise=0)
    found, plain = fit(networks), fit(networks, kinds=("additive",))
    errors = [np.abs(p.predict(UNSEEN_ROWS).values / truth - 1).mean() for p in (found, plain)]
    assert found.kind == "process"
    assert errors[0] < 0.5 * errors[1]


def test_what_adds_up_is_predicted_no_worse_than_by_adding_up():
    rows = genomes(60, 0)
    networks = Networks.of(rows, additive_target(rows))
    truth = additive_target(UNSEEN_ROWS, noise=0)
    found, plain = fit(networks), fit(networks, kinds=("additive",))
    errors = [np.abs(p.predict(UNSEEN_ROWS).values / truth - 1).mean() for p in (found, plain)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("kind", ["additive", "process", "trees"])
def test_intervals_cover_nine_in_ten(kind):
    """Over several samples: one alone may do better or worse."""
    held = []
    for seed in range(3):
        rows = genomes(729, seed)
        target = interacting_target(rows, noise=0.05, seed=seed)
        known = Networks.of(rows, target).take(np.arange(120))
        found = fit(known, kinds=(kind,)).predict(rows[120:])
        held.append(((found.low <= target[120:]) & (target[120:] <= found.high)).mean())
    assert 0.85 <= np.mean(held) <= 0.96


def test_the_same_rows_and_seed_give_the_same_predictor():
    first, second = (fit(interacting(60), seed=3).predict(UNSEEN_ROWS) for _ in range(2))
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.high, second.high)


@pytest.mark.parametrize("kind", ["additive", "process", "trees"])
def test_an_unseen_choice_widens_the_interval_and_is_counted(kind):
    predictor = fit(interacting(110), kinds=(kind,))
    seen = predictor.predict([[5, 5, 5, 5, 5, 5]])
    unseen = predictor.predict([[5, 9, 5, "odd", 5, 5]])
    assert unseen.unseen.tolist() == [2]
    assert (unseen.high - unseen.low) > (seen.high - seen.low)
    assert unseen.low <= unseen.values <= unseen.high


def test_features_are_learned_from():
    rows = genomes(80, 1)
    feature = np.random.default_rng(0).normal(size=(80, 1))
    target = 10 + feature[:, 0] + 0.1 * rows[:, 0]
    networks = Networks.of(rows, target, features=feature)
    predictor = fit(networks.take(np.arange(60)))
    found = predictor.predict(rows[60:], feature[60:])
    assert np.abs(found.values - target[60:]).mean() < 0.1
    with pytest.raises(UsageError, match="1 features"):
        predictor.predict(rows[60:])


def test_a_target_that_never_changes_is_predicted_as_it_is():
    rows = genomes(30, 0)
    found = fit(Networks.of(rows, np.full(30, 4.0))).predict(UNSEEN_ROWS)
    assert np.allclose(found.values, 4.0)


def test_predictions_of_a_positive_quantity_are_positive():
    rows = genomes(60, 0)
    networks = Networks.of(rows, np.exp(rows.sum(axis=1) / 3.0))
    found = fit(networks, kinds=("additive",)).predict(UNSEEN_ROWS)
    assert (found.values > 0).all()
    assert (found.low >= 0).all()


def test_too_few_networks_are_refused_and_say_how_many_are_needed():
    with pytest.raises(UsageError, match=r"9 different networks.*at least 10"):
        fit(interacting(9))
    rows = genomes(30, 0)
    alone = Networks.of(rows, interacting_target(rows), groups=["a"] * 30)
    with pytest.raises(UsageError, match="at least 2 groups"):
        fit(alone)


def test_folds_never_divide_a_group():
    groups = np.repeat(np.arange(13), 3)
    masks = list(folds(groups, seed=0))
    assert np.sum(masks, axis=0).tolist() == [1] * len(groups)
    for mask in masks:
        assert set(groups[mask]).isdisjoint(groups[~mask])


@pytest.mark.parametrize("ordered", [0.0, 0.9])
def test_the_slopes_of_the_likelihood_are_those_of_its_values(ordered):
    networks = interacting(25)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(25, 2))
    kernel = _Kernel.of(networks.choices, ordered, 2)
    view = kernel.view(networks.codes, features)
    scaled = rng.normal(size=25)
    for _ in range(3):
        parameters = rng.normal(-1, 0.7, size=6 + 2 + 4)
        wrong = check_grad(
            lambda p: _likelihood(kernel, view, scaled, p)[0],
            lambda p: _likelihood(kernel, view, scaled, p)[1],
            parameters,
        )
        slope = _likelihood(kernel, view, scaled, parameters)[1]
        assert wrong < 1e-4 * np.linalg.norm(slope)
