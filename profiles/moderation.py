"""Variances of many artifacts, each estimated from few runs, made steadier by the others'.

Three nights say next to nothing of one artifact's variance; those of fifty artifacts together say
what is usual on the device, and each artifact's own estimate is drawn towards that as far as the
artifacts are alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Logarithms that vary by less than a millionth agree but for the clock's resolution.
LEAST_VARIANCE = 1e-12
_STEPS = 50


def moderated(
    variances: ArrayLike, degrees: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances and their degrees of freedom, the artifacts' common prior taken into account.

    Args:
        variances: one estimate for each artifact.
        degrees: of freedom of each, above 0.

    Returns:
        The posterior variances and their degrees of freedom, both of shape ``(n,)``; as given for
        a single artifact.

    Source: Smyth, "Linear models and empirical Bayes methods for assessing differential expression
    in microarray experiments", Statistical Applications in Genetics and Molecular Biology 3
    (2004), sections 4 and 6.2.
    """
    own = np.maximum(np.asarray(variances, dtype=np.float64), LEAST_VARIANCE)
    freedom = np.asarray(degrees, dtype=np.float64)
    if len(own) < 2:
        return own, freedom
    usual, weight = _prior(own, freedom)
    if math.isinf(weight):
        return np.full_like(own, usual), np.full_like(own, freedom.sum())
    posterior = (weight * usual + freedom * own) / (weight + freedom)
    return posterior, np.minimum(weight + freedom, freedom.sum())


def _prior(own: NDArray[np.float64], freedom: NDArray[np.float64]) -> tuple[float, float]:
    """The usual variance, and how many degrees of freedom it is worth."""
    from scipy.special import digamma, polygamma

    logs = np.log(own) - digamma(freedom / 2) + np.log(freedom / 2)
    beyond = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if beyond <= 0:  # they differ by no more than chance: one variance for all
        return float(np.average(own, weights=freedom)), math.inf
    half = _inverse_trigamma(beyond)
    return math.exp(float(logs.mean() + digamma(half)) - math.log(half)), 2 * half


def _inverse_trigamma(value: float) -> float:
    """By Newton's steps on the reciprocal, which is nearly straight (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    place = 0.5 + 1 / value
    for _ in range(_STEPS):
        now = float(polygamma(1, place))
        step = now * (1 - now / value) / float(polygamma(2, place))
        place += step
        if abs(step) < 1e-8 * place:
            break
    return place
