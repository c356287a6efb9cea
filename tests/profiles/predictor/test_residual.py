"""What a table's sum or another device misses is learned of few networks; what is right, left."""

from __future__ import annotations

import numpy as np
import pytest

from profiles.errors import UsageError
from profiles.predictor import Networks, fit, fit_residual
from tests.profiles.predictor.problems import genomes, interacting_target

ROWS = genomes(400, 0)
KNOWN, ASKED = slice(0, 30), slice(100, 400)
TRUTH = interacting_target(ROWS, noise=0)


def error(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(values / truth - 1).mean())


def test_a_prediction_that_is_right_is_left_alone():
    measured = interacting_target(ROWS, noise=0.02, seed=1)
    residual = fit_residual(TRUTH[KNOWN], ROWS[KNOWN], measured[KNOWN])
    found = residual.predict(TRUTH[ASKED], ROWS[ASKED])
    assert error(found.values, TRUTH[ASKED]) < 0.012
    held = (found.low <= measured[ASKED]) & (measured[ASKED] <= found.high)
    assert held.mean() > 0.8


def test_a_factor_is_learned_of_ten_networks():
    ten = slice(0, 10)
    measured = 1.7 * interacting_target(ROWS, noise=0.01, seed=1)
    residual = fit_residual(TRUTH[ten], ROWS[ten], measured[ten])
    found = residual.predict(TRUTH[ASKED], ROWS[ASKED])
    assert error(found.values, 1.7 * TRUTH[ASKED]) < 0.03


def test_another_device_needs_fewer_networks_than_starting_anew():
    """Its times are those of the known one, but for one gene that is dearer there."""
    other = TRUTH**1.2 * np.where(ROWS[:, 5] == 7, 1.3, 1.0)
    residual = fit_residual(TRUTH[KNOWN], ROWS[KNOWN], other[KNOWN])
    anew = fit(Networks.of(ROWS[:90], other[:90]))
    transferred = error(residual.predict(TRUTH[ASKED], ROWS[ASKED]).values, other[ASKED])
    assert transferred < error(anew.predict(ROWS[ASKED]).values, other[ASKED])


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_what_is_not_positive_is_refused(wrong):
    predicted = np.append(TRUTH[:19], wrong)
    with pytest.raises(UsageError, match="positive"):
        fit_residual(predicted, ROWS[:20], TRUTH[:20])


def test_lengths_that_differ_are_refused():
    with pytest.raises(UsageError, match="20 predictions with 19"):
        fit_residual(TRUTH[:20], ROWS[:20], TRUTH[:19])
