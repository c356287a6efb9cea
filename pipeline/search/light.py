"""A light predictor of anything measured on genomes: kernel ridge regression, fitted in moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]

#: Shares of the kernel for choices that add up; the rest is for how they act together.
_ADDITIVE_SHARES = (1.0, 0.8, 0.5, 0.2)
#: Noise, as a share of what is learned.
_NOISES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
#: How fast likeness falls with the share of genes that differ.
_DECAY = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """A fitted predictor.

    Args:
        space: of its genomes.
        genomes: it was fitted on, shape ``(n, slots)``.
        weights: of each of them, shape ``(n,)``.
        mean, scale: of what was learned.
        share: of the kernel that is additive.
        error: root mean square error on networks left out, one at a time, in the quantity's unit.
    """

    space: SearchSpace
    genomes: Genomes
    weights: Floats
    mean: float
    scale: float
    share: float
    error: float

    def predict(self, genomes: Genomes) -> Floats:
        """The quantity for each genome, shape ``(n,)``."""
        kernel = _kernel(_alike(self.space, genomes, self.genomes), self.share)
        return self.mean + self.scale * (kernel @ self.weights)


def fit_light(space: SearchSpace, genomes: Genomes, values: Floats) -> Light:
    """Fit one quantity; of the settings, those with the least error on networks left out.

    Args:
        space: of the genomes.
        genomes: shape ``(n, slots)``, at least one.
        values: shape ``(n,)``, finite.

    Source: Saunders et al., "Ridge Regression Learning Algorithm in Dual Variables", ICML 1998;
    the error left out one at a time follows from the inverse (Rasmussen & Williams, "Gaussian
    Processes for Machine Learning", 2006, equation 5.12).
    """
    mean, scale = float(values.mean()), float(values.std()) or 1.0
    target = (values - mean) / scale
    alike = _alike(space, genomes, genomes)
    error, share, weights = np.inf, 1.0, np.zeros(len(target))
    for tried in _ADDITIVE_SHARES:
        roots, vectors = np.linalg.eigh(_kernel(alike, tried))
        turned = vectors.T @ target
        for noise in _NOISES:
            inverse = 1 / (np.maximum(roots, 0) + noise)
            found = vectors @ (inverse * turned)
            left_out = found / ((vectors**2) @ inverse)
            missed = float(np.sqrt(np.mean(left_out**2)))
            if missed < error:
                error, share, weights = missed, tried, found
    return Light(space, genomes, weights, mean, scale, share, error * scale)


def _alike(space: SearchSpace, left: Genomes, right: Genomes) -> Floats:
    """Shares of the free genes in which they are alike, shape ``(n, m)``."""
    sizes = space.highest + 1
    free = np.flatnonzero(sizes > 1)
    offsets = np.cumsum(np.r_[0, sizes[free]])

    def marks(genomes: Genomes) -> Floats:
        found = np.zeros((len(genomes), offsets[-1]))
        np.put_along_axis(found, genomes[:, free] + offsets[:-1], 1.0, axis=1)
        return found

    alike: Floats = marks(left) @ marks(right).T / max(len(free), 1)
    return alike


def _kernel(alike: Floats, share: float) -> Floats:
    return share * alike + (1 - share) * np.exp(-_DECAY * (1 - alike))
