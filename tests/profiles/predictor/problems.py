"""Networks with a known truth, small enough that fitting them takes no time."""

from __future__ import annotations

import numpy as np

from profiles.predictor import Networks

GENES = 6


def genomes(count: int, seed: int) -> np.ndarray:
    """Networks of six genes with three choices each, all different."""
    every = np.stack(np.meshgrid(*[[3, 5, 7]] * GENES), axis=-1).reshape(-1, GENES)
    return every[np.random.default_rng(seed).permutation(len(every))[:count]]


def additive_target(rows: np.ndarray, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """What adds up: choices are names here, the middle one the dearest."""
    costs = np.array([0.0, 3.0, 1.0])[(rows - 3) // 2] * np.arange(1, GENES + 1)
    exact = 20 + costs.sum(axis=1)
    return exact * np.exp(np.random.default_rng(seed).normal(0, noise, len(rows)))


def interacting_target(rows: np.ndarray, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """What multiplies: the second half of the genes only counts where the first ones let it."""
    first = rows[:, :3].sum(axis=1)
    second = np.where(rows[:, 0] > 3, rows[:, 3] * rows[:, 4], 9)
    exact = 5 + first + second
    return exact * np.exp(np.random.default_rng(seed).normal(0, noise, len(rows)))


def interacting(count: int, seed: int = 0) -> Networks:
    rows = genomes(count, seed)
    return Networks.of(rows, interacting_target(rows, seed=seed))
