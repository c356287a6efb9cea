"""A straight line of the features, drawn to zero: the least that can be learned of a residual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.predictor.networks import Codes, Floats

#: How strongly the line is drawn to zero: one pseudo-network.
_PRIOR_WEIGHT = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A fitted line.

    Args:
        weights: what is added always, then what each feature counts.
        noise: standard deviation of a measurement about it.
    """

    weights: Floats
    noise: float

    def predict(self, codes: Codes, features: Floats) -> tuple[Floats, Floats]:
        """Value and standard deviation of each network; genes do not matter."""
        values = _columns(features) @ self.weights
        return values, np.full(len(values), self.noise)


def fit_line(features: Floats, target: Floats, *, steep: bool) -> Line:
    """Fit.

    Args:
        features: shape ``(n, features)``, each of mean about 0 and variance about 1.
        target: shape ``(n,)``.
        steep: ``False``: the line is zero, and only the noise is learned.
    """
    columns = _columns(features)
    weights: Floats = np.zeros(columns.shape[1])
    if steep:
        normal = columns.T @ columns + _PRIOR_WEIGHT * np.eye(len(weights))
        weights = np.asarray(np.linalg.solve(normal, columns.T @ target), dtype=np.float64)
    noise = float(np.sqrt(((target - columns @ weights) ** 2).mean()))
    # A perfect fit of what was seen is no certainty of what was not.
    return Line(weights, max(noise, 1e-12))


def _columns(features: Floats) -> Floats:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
