"""The plain additive model: every choice of every gene adds its own amount.

Ridge regression on one-hot genes.  What a latency table's sum is to blocks, this is to genes: the
baseline that anything better is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.predictor.networks import UNSEEN, Choices, Codes, Floats
from profiles.predictor.similarity import Similarity

_PENALTIES = np.logspace(-2, 4, 25)


@dataclass(frozen=True, slots=True, eq=False)
class Additive:
    """A fitted ridge regression.

    Args:
        choices: of the genes.
        intercept: the target's mean.
        middle: mean of each column, shape ``(columns,)``.
        weights: amount of each column: one-hot genes, then features.
        noise: standard deviation of a measurement about what is predicted without it.
    """

    choices: Choices
    intercept: float
    middle: Floats
    weights: Floats
    noise: float

    def predict(self, codes: Codes, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement of each network.

        A choice that was not seen counts as the average one, and adds a variance of its own.
        """
        columns = _columns(self.choices, codes, features) - self.middle
        genes = Similarity.of(self.choices, 0.0).genes
        unseen = codes == UNSEEN
        columns[:, : len(genes)][unseen[:, genes]] = 0.0
        deviation = self.noise * np.sqrt(1 + unseen.sum(axis=1))
        return self.intercept + columns @ self.weights, deviation


def fit_additive(choices: Choices, codes: Codes, features: Floats, target: Floats) -> Additive:
    """Fit; the penalty is the one with the least squared error when each row is left out in turn.

    Args:
        choices: of the genes.
        codes: shape ``(n, genes)``.
        features: shape ``(n, features)``.
        target: shape ``(n,)``.
    """
    columns = _columns(choices, codes, features)
    middle, intercept = columns.mean(axis=0), float(target.mean())
    left, singular, right = np.linalg.svd(columns - middle, full_matrices=False)
    centred = target - intercept
    projected = left.T @ centred

    def errors(penalty: float) -> Floats:
        kept = singular**2 / (singular**2 + penalty)
        own = (left**2) @ kept + 1 / len(target)
        missed: Floats = (centred - left @ (kept * projected)) / np.maximum(1 - own, 1e-9)
        return missed

    penalty = float(min(_PENALTIES, key=lambda item: float((errors(item) ** 2).mean())))
    weights = right.T @ (singular / (singular**2 + penalty) * projected)
    # A perfect fit of what was seen is no certainty of what was not.
    noise = max(float(np.sqrt((errors(penalty) ** 2).mean())), 1e-12 * abs(intercept))
    return Additive(choices, intercept, middle, weights, noise)


def _columns(choices: Choices, codes: Codes, features: Floats) -> Floats:
    return np.concatenate([Similarity.of(choices, 0.0).vectors(codes), features], axis=1)
