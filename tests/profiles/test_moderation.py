"""Variances that learn from each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.moderation import moderated


def test_like_artifacts_share_one_variance():
    random = np.random.default_rng(2)
    variances = random.chisquare(3, 400) / 3
    posterior, degrees = moderated(variances, [3] * 400)
    assert posterior.std() < variances.std() / 3
    assert posterior.mean() == pytest.approx(1, abs=0.2)
    assert degrees.min() > 9


def test_artifacts_that_differ_less_than_chance_have_one_variance():
    posterior, degrees = moderated([1.0, 1.1, 0.9, 1.0], [3, 3, 3, 6])
    assert posterior == pytest.approx([1.0] * 4)
    assert degrees.tolist() == [15] * 4


def test_unlike_artifacts_keep_their_own():
    variances = np.logspace(-6, 2, 60)
    posterior, degrees = moderated(variances, [5] * 60)
    assert (np.diff(posterior) > 0).all()
    assert posterior[30:] == pytest.approx(variances[30:], rel=0.5)
    assert degrees.max() < 7


def test_the_prior_is_found_again():
    """Variances drawn as the model says: 8 degrees of freedom around 0.5."""
    random = np.random.default_rng(3)
    true = 0.5 * 8 / random.chisquare(8, 4000)
    posterior, degrees = moderated(true * random.chisquare(4, 4000) / 4, [4] * 4000)
    assert degrees[0] == pytest.approx(12, abs=1)
    assert np.mean(posterior / true) == pytest.approx(1, abs=0.05)


def test_one_artifact_and_no_variance_at_all():
    posterior, degrees = moderated([0.25], [4])
    assert (posterior.tolist(), degrees.tolist()) == ([0.25], [4.0])
    posterior, _ = moderated([0.0] * 5, [4] * 5)
    assert (posterior > 0).all()
    assert posterior.max() < 1e-9


def test_together_they_know_no_more_than_all_of_them():
    """Two variances a little further apart than chance: a strong prior, from ten degrees."""
    _, degrees = moderated([1.0, math.e], [5, 5])
    assert degrees.tolist() == [10, 10]


@given(st.lists(st.tuples(st.floats(1e-9, 1e3), st.integers(1, 30)), min_size=1, max_size=12))
def test_each_is_drawn_towards_the_others(rows):
    variances, degrees = map(np.array, zip(*rows, strict=True))
    posterior, freedom = moderated(variances, degrees)
    assert np.isfinite(posterior).all()
    assert (posterior > 0).all()
    assert (freedom >= degrees * (1 - 1e-9)).all()
    assert (freedom <= degrees.sum() * (1 + 1e-9)).all()
    order = np.argsort(variances[degrees == degrees[0]])
    assert (np.diff(posterior[degrees == degrees[0]][order]) >= -1e-9 * posterior.max()).all()
