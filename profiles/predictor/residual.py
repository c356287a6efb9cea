"""What a prediction misses, learned from few measurements, and drawn to "the prediction is right".

One model serves two cases.  A latency table's sum misses what does not add up on its device and
runtime; the latency of another device misses what this one does differently.  Learned is the ratio
of measured to predicted, of the genes and of how large the prediction is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from profiles.errors import UsageError
from profiles.predictor.fitting import Prediction, Predictor, Progress, fit
from profiles.predictor.networks import Floats, Networks, Rows

#: From the simplest; trees are among them where there are enough networks.
_KINDS = ("right", "line", "process", "trees")


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """A fitted residual.

    Args:
        ratio: predicts measured / predicted; its one feature is the prediction's logarithm.
    """

    ratio: Predictor

    def predict(self, predicted: ArrayLike, genomes: Rows) -> Prediction:
        """The corrected predictions.

        Args:
            predicted: by the table or the known device, shape ``(n,)``, positive.
            genomes: of the same networks, choices as in training, shape ``(n, genes)``.

        Returns:
            In the prediction's unit.
        """
        base = _positive(predicted)
        found = self.ratio.predict(genomes, np.log(base)[:, None])
        return Prediction(base * found.values, base * found.low, base * found.high, found.unseen)


def fit_residual(
    predicted: ArrayLike,
    genomes: Rows,
    measured: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Residual:
    """Learn what predictions miss.

    Nothing, a line in the prediction's logarithm, a Gaussian process of the genes, or boosted
    trees: whichever predicts left-out networks best.

    Args:
        predicted: by a table (its sum) or for a known device, shape ``(n,)``, positive.
        genomes: of the same networks, choices as numbers or words, shape ``(n, genes)``.
        measured: on the device, in the same unit, shape ``(n,)``, positive.
        groups: see :class:`~profiles.predictor.networks.Networks`.
        seed: of the cross-validation.
        progress: is told what is being done.

    Raises:
        UsageError: with fewer than ten different networks, or for what is not positive.
    """
    base, truth = _positive(predicted), _positive(measured)
    if base.shape != truth.shape:
        raise UsageError(f"{len(base)} predictions with {len(truth)} measurements")
    networks = Networks.of(genomes, truth / base, groups=groups, features=np.log(base)[:, None])
    return Residual(fit(networks, seed=seed, kinds=_KINDS, progress=progress))


def _positive(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not (np.isfinite(found) & (found > 0)).all():
        raise UsageError("predictions and measurements are positive numbers, one of each network")
    return found
