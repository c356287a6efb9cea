"""Which networks to measure next: those after which least is unknown where one is interested.

*Source:* Cohn, "Neural network exploration using optimal experiment design", NIPS 1994 (expected
reduction of the mean predictive variance); for Gaussian processes: Seo, Wallat, Graepel &
Obermayer, "Gaussian process regression: active data selection and test point rejection", 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiles.errors import UsageError
from profiles.predictor.fitting import FEWEST, Progress, fitted_process
from profiles.predictor.networks import Choices, Codes, Floats, Networks, Rows, plain_rows
from profiles.predictor.process import GaussianProcess

Toward = Literal["all", "low", "high"]
#: So many candidates are weighed against each other at most, a sample of more.
_MOST_CANDIDATES = 3000
#: The share of the candidates that a search for the lowest or highest looks at.
_LOOKED_AT = 0.1


def choose_next(
    measured: Networks,
    candidates: Rows,
    count: int,
    *,
    toward: Toward = "all",
    seed: int = 0,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Choose networks one by one, each for what it would tell of the others.

    Args:
        measured: what is known; without features.
        candidates: where the search looks, choices as in ``measured``, shape ``(n, genes)``.
        count: how many to choose.
        toward: whether the search is after low values, after high ones, or all are of interest.
        seed: of what is drawn where there are more than 3,000 candidates.
        progress: is told what is being done.

    Returns:
        Indices of the candidates, the most telling first, shape ``(count,)``.

    Raises:
        UsageError: with fewer candidates than ``count``, or fewer than ten measured networks.
    """
    rows = plain_rows(candidates)
    if not 0 < count <= len(rows):
        raise UsageError(f"cannot choose {count} of {len(rows)} candidates")
    if len(measured) < FEWEST:
        raise UsageError(
            f"{len(measured)} measured networks are too few to choose by",
            f"measure at least {FEWEST}, drawn at random",
        )
    rng = np.random.default_rng(seed)
    drawn = np.arange(len(rows))
    if len(rows) > _MOST_CANDIDATES:
        drawn = np.sort(rng.permutation(len(rows))[: max(_MOST_CANDIDATES, count)])
    known, codes = _together(measured, [rows[index] for index in drawn])
    if progress:
        progress(f"learning from {len(known)} networks")
    process, _ = fitted_process(known, seed)
    if progress:
        progress(f"choosing {count} of {len(codes)} candidates")
    interest = _interest(process, codes, toward)
    found: NDArray[np.int64] = drawn[_greedy(process, codes, interest, count)]
    return found


def _together(measured: Networks, rows: Sequence[Sequence[object]]) -> tuple[Networks, Codes]:
    """Both encoded by the choices of both: a choice not measured yet is worth knowing of."""
    known = measured.choices.decode(measured.codes)
    choices = Choices.of([*known, *rows], measured.choices.names)
    encoded = Networks(
        choices,
        choices.encode(known),
        measured.target,
        measured.groups,
        np.empty((len(measured), 0)),
    )
    return encoded, choices.encode(rows)


def _interest(process: GaussianProcess, codes: Codes, toward: Toward) -> Floats:
    """How likely each candidate is among those that the search is after."""
    if toward == "all":
        return np.ones(len(codes))
    from scipy.special import ndtr

    mean, deviation = process.predict(codes, np.empty((len(codes), 0)))
    sign = 1.0 if toward == "high" else -1.0
    edge = np.quantile(sign * mean, 1 - _LOOKED_AT)
    likely: Floats = ndtr((sign * mean - edge) / deviation)
    return likely


def _greedy(
    process: GaussianProcess, codes: Codes, interest: Floats, count: int
) -> NDArray[np.int64]:
    """Indices of those that reduce the summed variance of all most, given those before."""
    from scipy.linalg import solve_triangular

    none = np.empty((len(codes), 0))
    across = process.covariance(codes, none, process.codes, process.features)
    reduced = solve_triangular(process.factor, across.T, lower=True)
    unknown = process.covariance(codes, none, codes, none) - reduced.T @ reduced
    chosen: list[int] = []
    for _ in range(count):
        noisy = np.maximum(np.diag(unknown), 0.0) + process.noise
        gain = (unknown**2 @ interest) / noisy
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        told = unknown[best] / np.sqrt(noisy[best])
        unknown -= np.outer(told, told)
    return np.array(chosen, dtype=np.int64)
