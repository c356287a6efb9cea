"""A light predictor of anything measured on genomes: a Gaussian process, fitted in moments.

The process is that of :mod:`profiles.predictor.process`; here no forms compete by
cross-validation and no intervals are calibrated, as a search fits anew in every round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.predictor.networks import Choices
from profiles.predictor.process import GaussianProcess, fit_process
from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]

#: Relevances are learned from so many rows at most: a step costs their cube.
_ROWS_FOR_SCALES = 300
#: How far the order of a slot's choices counts as likeness: half, as it may mean nothing.
_ORDERED = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """A fitted predictor.

    Args:
        process: of the quantity, or of its logarithm.
        logarithmic: which.
    """

    process: GaussianProcess
    logarithmic: bool

    def samples(self, genomes: Genomes, normal: Floats) -> Floats:
        """The quantity at these standard normal deviates of it, shape ``(k, n)``.

        Args:
            genomes: shape ``(n, slots)``.
            normal: shape ``(k,)``; a 0 is the median.
        """
        mean, deviation = self.process.predict(genomes, np.empty((len(genomes), 0)))
        found: Floats = mean + normal[:, None] * deviation
        return np.exp(found) if self.logarithmic else found

    def predict(self, genomes: Genomes) -> Floats:
        """The quantity for each genome, its median, shape ``(n,)``."""
        median: Floats = self.samples(genomes, np.zeros(1))[0]
        return median


def fit_light(space: SearchSpace, genomes: Genomes, values: Floats) -> Light:
    """Fit one quantity, or its logarithm if that makes what was measured likelier.

    Args:
        space: of the genomes.
        genomes: shape ``(n, slots)``, at least one.
        values: shape ``(n,)``, finite.
    """
    choices = Choices(
        tuple(slot.name for slot in space.slots),
        tuple(tuple(str(place) for place in range(most + 1)) for most in space.highest),
    )
    nothing = np.empty((len(genomes), 0))

    def fit(target: Floats) -> tuple[GaussianProcess, float]:
        random = np.random.default_rng(len(genomes))
        return fit_process(choices, genomes, nothing, target, _ORDERED, random, _ROWS_FOR_SCALES)

    plain, density = fit(values)
    if (values > 0).all():
        logarithms = np.log(values)
        process, of_logarithm = fit(logarithms)
        if of_logarithm - logarithms.mean() > density:
            return Light(process, True)
    return Light(plain, False)
