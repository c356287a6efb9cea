"""Predictors of any positive quantity of networks, learned from measured ones.

::

    networks = Networks.of(genomes, latencies)
    predictor = fit(networks)
    found = predictor.predict(candidates)       # .values, .low, .high (90 %)
"""

from profiles.predictor.fitting import Prediction, Predictor, fit
from profiles.predictor.networks import Choices, Networks
from profiles.predictor.planning import choose_next
from profiles.predictor.residual import Residual, fit_residual
from profiles.predictor.storage import load, save
from profiles.predictor.validation import Report, evaluate

__all__ = [
    "Choices",
    "Networks",
    "Prediction",
    "Predictor",
    "Report",
    "Residual",
    "choose_next",
    "evaluate",
    "fit",
    "fit_residual",
    "load",
    "save",
]
