"""A Gaussian process over genomes: what adds up, and what does not, with what is relevant learned.

The covariance of two networks is

    a * s(x, y) + b * exp(c * (s(x, y) - s(x, x))) + 1,

where ``s`` sums over the genes how alike their choices are, each weighted by the gene's relevance.
The first term is an additive model (ridge regression on one-hot genes), the second every
interaction of relevant genes, such as of a stage's depth with the blocks beyond it.  Relevances and
scales are those of the highest posterior, under broad priors by which few rows stay near "all
genes alike".

*Source:* Rasmussen & Williams, Gaussian Processes for Machine Learning, MIT Press 2006, sections
2.2 (algorithm 2.1) and 5.4.1 (gradients of the marginal likelihood); the sum of an additive and an
interacting covariance: Duvenaud, Nickisch & Rasmussen, "Additive Gaussian Processes", NIPS 2011.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from profiles.predictor.networks import Choices, Codes, Floats
from profiles.predictor.similarity import Similarity

#: Predictions rest on so many rows at most: fitting costs their cube.
MOST_ROWS = 4000
_STEPS = 50
#: Prior precisions of the logarithms: of each relevance, and of the four scales.  Chosen on samples
#: of 30 to 300 measured accuracies; errors change by a few per cent at half or twice of each.
_RELEVANCE_PRECISION = 1.0
_SCALE_PRECISION = (0.05, 0.05, 0.05, 0.3)
_START = {"additive": 1.0, "interacting": 0.3, "steepness": 0.5, "noise": 0.02}


@dataclass(frozen=True, slots=True, eq=False)
class GaussianProcess:
    """A fitted process.

    Args:
        choices: of the genes.
        ordered: see :class:`Similarity`.
        parameters: logarithms: relevance of each gene, of each feature, then the additive and
            interacting scale, the steepness and the noise's variance.
        centre, spread: of the target, which is learned less the one and over the other.
        codes, features: the training rows.
        weights: shape ``(n,)``; a prediction is the covariance with the training rows times these.
    """

    choices: Choices
    ordered: float
    parameters: Floats
    centre: float
    spread: float
    codes: Codes
    features: Floats
    weights: Floats
    _factor: list[Floats] = field(default_factory=list, repr=False)

    @property
    def noise(self) -> float:
        """Variance of a measurement about the process, in units of ``spread`` squared."""
        return float(np.exp(self.parameters[-1]))

    def predict(self, codes: Codes, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement of each network."""
        from scipy.linalg import solve_triangular

        across = self.covariance(codes, features, self.codes, self.features)
        reduced = solve_triangular(self.factor, across.T, lower=True)
        variance = self.variance(codes, features) - (reduced**2).sum(axis=0)
        deviation = np.sqrt(np.maximum(variance, 0.0) + self.noise)
        return self.centre + self.spread * (across @ self.weights), self.spread * deviation

    @property
    def factor(self) -> Floats:
        """Lower Cholesky factor of the training rows' covariance with noise."""
        if not self._factor:
            covariance = self.covariance(self.codes, self.features, self.codes, self.features)
            covariance.flat[:: len(covariance) + 1] += self.noise
            factor = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
            self._factor.append(factor)
        return self._factor[0]

    def covariance(self, codes: Codes, features: Floats, others: Codes, further: Floats) -> Floats:
        """Prior covariance of two sets of networks, shape ``(n, m)``."""
        kernel = _Kernel.of(self.choices, self.ordered, features.shape[1])
        left, right = kernel.view(codes, features), kernel.view(others, further)
        alike, nearness = kernel.parts(self.parameters, left, right)
        additive, interacting, steepness, _ = np.exp(self.parameters[-4:])
        covariance: Floats = additive * alike + interacting * np.exp(steepness * nearness) + 1.0
        return covariance

    def variance(self, codes: Codes, features: Floats) -> Floats:
        """Prior variance of each network, shape ``(n,)``; an unseen choice is one of the genes."""
        genes = codes.shape[1]
        relevance = np.exp(self.parameters[:-4])
        additive, interacting = np.exp(self.parameters[-4:-2])
        alike = relevance[:genes].sum() + features**2 @ relevance[genes:]
        variance: Floats = additive * alike + interacting + 1.0
        return variance


View = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    """The covariance's parts and their slopes, for genes and features."""

    similarity: Similarity
    genes: int
    features: int

    @classmethod
    def of(cls, choices: Choices, ordered: float, features: int) -> _Kernel:
        return cls(Similarity.of(choices, ordered), len(choices.names), features)

    def view(self, codes: Codes, features: Floats) -> View:
        return self.similarity.vectors(codes), features

    def parts(self, parameters: Floats, left: View, right: View) -> tuple[Floats, Floats]:
        """How alike (the additive part), and how near (not above 0), shape ``(n, m)`` each."""
        relevance = np.exp(parameters[: self.genes])
        weight = np.exp(parameters[self.genes : self.genes + self.features])
        shared = (left[0] * relevance[self.similarity.genes]) @ right[0].T
        product = (left[1] * weight) @ right[1].T
        lengths = (left[1] ** 2 @ weight)[:, None] + right[1] ** 2 @ weight
        return shared + product, shared - relevance.sum() - (lengths - 2 * product)

    def slopes(self, view: View, additive: Floats, interacting: Floats) -> Floats:
        """Slope along each relevance, given those along the two parts, shape ``(n, n)``."""
        vectors, features = view
        both = additive + interacting
        shared = np.bincount(
            self.similarity.genes, ((both @ vectors) * vectors).sum(axis=0), self.genes
        )
        product = ((additive + 2 * interacting) @ features * features).sum(axis=0)
        lengths = 2 * (interacting.sum(axis=1) @ features**2)
        return np.concatenate([shared - interacting.sum(), product - lengths])


def fit_process(
    choices: Choices,
    codes: Codes,
    features: Floats,
    target: Floats,
    ordered: float,
    rng: np.random.Generator,
    rows_for_scales: int,
) -> tuple[GaussianProcess, float]:
    """Fit a process.

    Args:
        choices: of the genes.
        codes: shape ``(n, genes)``.
        features: shape ``(n, features)``, each of mean about 0 and variance about 1.
        target: shape ``(n,)``, any numbers.
        ordered: see :class:`Similarity`.
        rng: draws the rows that the scales are learned from, where there are too many.
        rows_for_scales: so many at most: one step of learning costs their cube.

    Returns:
        The process, and the logarithm of the posterior density of a row that it learned from.
    """
    from scipy.linalg import cho_solve

    kept = _some(len(target), MOST_ROWS, rng)
    codes, features, target = codes[kept], features[kept], target[kept]
    centre = float(target.mean())
    spread = float(target.std()) or abs(centre) or 1.0
    scaled = (target - centre) / spread
    learned = _some(len(target), rows_for_scales, rng)
    parameters, loss = _learn(choices, ordered, codes[learned], features[learned], scaled[learned])
    unweighted = GaussianProcess(
        choices, ordered, parameters, centre, spread, codes, features, np.empty(0)
    )
    weights = cho_solve((unweighted.factor, True), scaled)
    density = -loss / len(learned) - float(np.log(spread))
    return replace(unweighted, weights=weights), density


def _some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rows = np.arange(count) if count <= most else np.sort(rng.permutation(count)[:most])
    return rows.astype(np.int64)


def _learn(
    choices: Choices, ordered: float, codes: Codes, features: Floats, scaled: Floats
) -> tuple[Floats, float]:
    """Parameters of the highest posterior, and its negative logarithm."""
    from scipy.optimize import minimize

    kernel = _Kernel.of(choices, ordered, features.shape[1])
    view = kernel.view(codes, features)
    relevances = codes.shape[1] + features.shape[1]
    start = np.concatenate(
        [np.full(relevances, -np.log(relevances)), np.log(list(_START.values()))]
    )
    precision = np.full(len(start), _RELEVANCE_PRECISION)
    precision[-4:] = _SCALE_PRECISION

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value, slope = _likelihood(kernel, view, scaled, parameters)
        away = parameters - start
        return value + 0.5 * float(precision @ away**2), slope + precision * away

    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-14.0, 3.0)] * (len(start) - 1) + [(-9.0, 1.0)],
        options={"maxiter": _STEPS},
    )
    return np.asarray(found.x, dtype=np.float64), float(found.fun)


def _likelihood(
    kernel: _Kernel, view: View, scaled: Floats, parameters: Floats
) -> tuple[float, Floats]:
    """Negative logarithm of the marginal likelihood, and its slope along each parameter."""
    from scipy.linalg.lapack import dpotrf, dpotri

    additive, interacting, steepness, noise = np.exp(parameters[-4:])
    alike, nearness = kernel.parts(parameters, view, view)
    apart = interacting * np.exp(steepness * nearness)
    covariance = additive * alike + apart + 1.0
    covariance.flat[:: len(scaled) + 1] += noise
    factor, failed = dpotrf(covariance, lower=1)
    if failed:
        return 1e10, np.zeros_like(parameters)
    lower, _ = dpotri(factor, lower=1)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    weights = inverse @ scaled
    value = 0.5 * float(scaled @ weights) + float(np.log(np.diag(factor)).sum())
    slope = 0.5 * (inverse - np.outer(weights, weights))
    along_apart = slope * apart
    relevance = np.exp(parameters[:-4])
    scales = [
        additive * float((slope * alike).sum()),
        float(along_apart.sum()),
        steepness * float((along_apart * nearness).sum()),
        noise * float(np.trace(slope)),
    ]
    along = kernel.slopes(view, additive * slope, steepness * along_apart)
    return value, np.concatenate([relevance * along, scales])
