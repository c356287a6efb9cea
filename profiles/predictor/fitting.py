"""Fitting: candidates compete by cross-validation on the training rows, the best one predicts.

Its intervals are conformal: as wide, in units of the model's own standard deviation, as the errors
on rows that were left out say.

*Source:* Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74
(2015); scores normalised by a model's own difficulty: Papadopoulos et al., "Regression conformal
prediction with nearest neighbours", Journal of Artificial Intelligence Research 40 (2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import UsageError
from profiles.predictor.additive import fit_additive
from profiles.predictor.line import fit_line
from profiles.predictor.networks import UNSEEN, Codes, Floats, Networks, Rows
from profiles.predictor.process import GaussianProcess, fit_process
from profiles.predictor.trees import fit_trees

#: So many networks are needed: of fewer, no left-out error bounds 90 % of all.
FEWEST = 10
FEWEST_GROUPS = 2
#: Trees split nothing reliably with less.
_FEWEST_FOR_TREES = 100
_FOLDS = 5
_FOLDS_OF_FEW = 10
#: A target within this factor is as good as its logarithm.
_NARROW = 1.2
#: Scales are learned from so many rows at most, and the form from fewer.
_ROWS_FOR_SCALES = 600
_ROWS_FOR_FORM = 250
_CHUNK = 4096
LEVEL = 0.9
_BETTER = 1.02

Progress = Callable[[str], None]


class Model(Protocol):
    """What predicts a transformed target."""

    def predict(self, codes: Codes, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement of each network."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Of each network, shape ``(n,)`` each: the value, and the interval's ends.

    ``unseen`` counts the genes whose choice no training network has.
    """

    values: Floats
    low: Floats
    high: Floats
    unseen: Codes


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """How target and features are put before a model.

    Args:
        logarithmic: whether the model learns the target's logarithm.
        middle, width: of each feature.
    """

    logarithmic: bool
    middle: Floats
    width: Floats

    def features(self, features: Floats) -> Floats:
        """Features of mean about 0 and variance about 1."""
        return (features - self.middle) / self.width

    def target(self, values: Floats) -> Floats:
        """What the model learns."""
        return np.log(values) if self.logarithmic else values

    def back(self, learned: Floats) -> Floats:
        """A target from what the model says."""
        return np.exp(np.minimum(learned, 700.0)) if self.logarithmic else learned


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A fitted model with calibrated intervals.

    Args:
        kind: which model: see :func:`fit`.
        model: predicts the transformed target.
        scale: of target and features.
        width: half of the interval, in the model's standard deviations.
        training: what it was fitted on.
        errors: cross-validated mean relative error of each candidate, by kind.
    """

    kind: str
    model: Model
    scale: Scale
    width: float
    training: Networks
    errors: dict[str, float]

    def predict(self, genomes: Rows, features: ArrayLike | None = None) -> Prediction:
        """Predict networks.

        Args:
            genomes: choices as in training, shape ``(n, genes)``.
            features: shape ``(n, features)``, if there were any in training.

        Raises:
            UsageError: for another number of genes or features than in training.
        """
        codes = self.training.choices.encode(genomes)
        given = np.empty((len(codes), 0)) if features is None else np.asarray(features, float)
        if given.shape != (len(codes), self.training.features.shape[1]):
            raise UsageError(
                f"a network has {self.training.features.shape[1]} features, got shape {given.shape}"
            )
        return self.predict_codes(codes, given)

    def predict_codes(self, codes: Codes, features: Floats) -> Prediction:
        """Predict networks whose choices are encoded as the training networks' are."""
        scaled = self.scale.features(features)
        mean, deviation = np.empty(len(codes)), np.empty(len(codes))
        for at in range(0, len(codes), _CHUNK):
            part = slice(at, at + _CHUNK)
            mean[part], deviation[part] = self.model.predict(codes[part], scaled[part])
        half = self.width * deviation
        # The target is positive, whatever a straight line says.
        floor = 0.0 if self.scale.logarithmic else float(self.training.target.min()) / 100
        values = np.maximum(self.scale.back(mean), floor)
        low = np.clip(self.scale.back(mean - half), 0.0, values)
        high = np.maximum(self.scale.back(mean + half), values)
        return Prediction(values, low, high, (codes == UNSEEN).sum(axis=1))


def fit(
    networks: Networks,
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = ("additive", "process", "trees"),
    progress: Progress | None = None,
) -> Predictor:
    """Fit the candidate that predicts left-out rows best.

    Args:
        networks: to learn from; rows of one group are left out together.
        seed: of the folds and of what models draw.
        kinds: the candidates, the simplest first: "right" (the target is 1), "line" (of the
            features), "additive", "process", "trees".  One that is better by less than 2 % does
            not replace a simpler one.
        progress: is told what is being done.

    Raises:
        UsageError: with fewer than ten different networks or two groups.
    """
    different = len(np.unique(networks.codes, axis=0))
    if different < FEWEST:
        raise UsageError(
            f"{different} different networks are too few to learn from",
            f"at least {FEWEST} are needed",
        )
    if len(np.unique(networks.groups)) < FEWEST_GROUPS:
        raise UsageError(
            "all networks are one group, so none can be left out to learn how far to trust others",
            f"at least {FEWEST_GROUPS} groups are needed",
        )
    tell = progress or (lambda _: None)
    candidates = [kind for kind in kinds if kind != "trees" or len(networks) >= _FEWEST_FOR_TREES]
    form = likeliest_form(networks, seed)
    tried = {}
    for kind in candidates:
        tell(f"cross-validating: {kind}, {len(networks)} networks")
        tried[kind] = _left_out(kind, networks, form, seed)
    enough = _BETTER * min(found.error for found in tried.values())
    best = next(kind for kind, found in tried.items() if found.error <= enough)
    tell(f"fitting: {best}, {len(networks)} networks")
    model, scale = _fit_one(best, networks, form, np.random.default_rng(seed))
    return Predictor(
        best,
        model,
        scale,
        _quantile(tried[best].scores),
        networks,
        {kind: found.error for kind, found in tried.items()},
    )


def fitted_process(networks: Networks, seed: int = 0) -> tuple[GaussianProcess, Scale]:
    """The Gaussian process alone, whether or not anything else would predict better."""
    rng = np.random.default_rng(seed)
    return _fit_process(networks, likeliest_form(networks, seed), rng)


@dataclass(frozen=True, slots=True, eq=False)
class _LeftOut:
    """Mean relative error on left-out rows, and each error in the model's standard deviations."""

    error: float
    scores: Floats


def _left_out(kind: str, networks: Networks, form: Form, seed: int) -> _LeftOut:
    errors, scores = [], []
    for held in folds(networks.groups, seed):
        kept, asked = networks.take(~held), networks.take(held)
        model, scale = _fit_one(kind, kept, form, np.random.default_rng(seed))
        mean, deviation = model.predict(asked.codes, scale.features(asked.features))
        errors.append(np.abs(scale.back(mean) / asked.target - 1))
        scores.append(np.abs(scale.target(asked.target) - mean) / deviation)
    return _LeftOut(float(np.concatenate(errors).mean()), np.concatenate(scores))


def folds(groups: Codes, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the rows to leave out, one after the other; groups stay together."""
    distinct = np.unique(groups)
    count = min(_FOLDS if len(distinct) >= 100 else _FOLDS_OF_FEW, len(distinct))
    for part in np.array_split(np.random.default_rng(seed).permutation(distinct), count):
        yield np.isin(groups, part)


def _quantile(scores: Floats) -> float:
    """The score that covers 90 % of further ones."""
    rank = min(math.ceil((len(scores) + 1) * LEVEL), len(scores))
    return float(np.sort(scores)[rank - 1])


def _fit_one(
    kind: str, networks: Networks, form: Form, rng: np.random.Generator
) -> tuple[Model, Scale]:
    if kind == "process":
        return _fit_process(networks, form, rng)
    scale = _scale(networks, logarithmic=kind != "additive")
    codes, features = networks.codes, scale.features(networks.features)
    target = scale.target(networks.target)
    if kind in ("right", "line"):
        return fit_line(features, target, steep=kind == "line"), scale
    if kind == "trees":
        return fit_trees(codes, features, target, rng), scale
    return fit_additive(networks.choices, codes, features, target), scale


def _fit_process(
    networks: Networks, form: Form, rng: np.random.Generator
) -> tuple[GaussianProcess, Scale]:
    process, scale, _ = _process_and_density(networks, form, rng, _ROWS_FOR_SCALES)
    return process, scale


def _process_and_density(
    networks: Networks, form: Form, rng: np.random.Generator, rows_for_scales: int
) -> tuple[GaussianProcess, Scale, float]:
    scale = _scale(networks, form.logarithmic)
    process, density = fit_process(
        networks.choices,
        networks.codes,
        scale.features(networks.features),
        scale.target(networks.target),
        form.ordered,
        rng,
        rows_for_scales,
    )
    return process, scale, density


@dataclass(frozen=True, slots=True)
class Form:
    """What a process learns: the logarithm or the target itself, of numbers or of names."""

    logarithmic: bool
    ordered: float


def likeliest_form(networks: Networks, seed: int) -> Form:
    """The form under which a sample of these networks is the most probable."""

    def density(form: Form) -> float:
        rng = np.random.default_rng(seed)
        _, _, of_learned = _process_and_density(networks, form, rng, _ROWS_FOR_FORM)
        # A density of logarithms is one of the target after division by the target.
        return of_learned - float(np.log(networks.target).mean() if form.logarithmic else 0)

    wide = networks.target.max() / networks.target.min() > _NARROW
    forms = [
        Form(log, ordered)
        for log in ((True, False) if wide else (False,))
        for ordered in (0.9, 0.0)
    ]
    return max(forms, key=density)


def _scale(networks: Networks, logarithmic: bool) -> Scale:
    width = networks.features.std(axis=0)
    return Scale(logarithmic, networks.features.mean(axis=0), np.where(width > 0, width, 1.0))
