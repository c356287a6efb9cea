"""Boosted regression trees, kept as arrays: what scikit-learn fits, any later version reads.

*Source:* Friedman, "Stochastic gradient boosting", Computational Statistics & Data Analysis 38
(2002), as fitted by scikit-learn's ``GradientBoostingRegressor``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.predictor.networks import UNSEEN, Codes, Floats

_SETTINGS = {"n_estimators": 300, "learning_rate": 0.08, "max_depth": 4, "subsample": 0.6}
#: A share of the genes looked at in each split.
_SHARE = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """Fitted trees; all their nodes stand in one list.

    Args:
        start: prediction before any tree.
        rate: what each tree's value counts.
        roots: index of each tree's first node.
        column, threshold: what a node asks: is this column at most this?
        yes, no: index of the node to go to; a leaf's own.
        value: of a leaf.
        noise: standard deviation of a measurement, as a first guess: the training target's.
    """

    start: float
    rate: float
    roots: Codes
    column: Codes
    threshold: Floats
    yes: Codes
    no: Codes
    value: Floats
    noise: float

    def predict(self, codes: Codes, features: Floats) -> tuple[Floats, Floats]:
        """Value of each network, and a standard deviation that grows with unseen choices."""
        # The library rounds what it splits to single precision, so that is what is compared.
        columns = np.concatenate([codes, features], axis=1).astype(np.float32)
        total = np.full(len(columns), self.start)
        rows = np.arange(len(columns))
        for root in self.roots:
            node = np.full(len(columns), root)
            while True:
                asked = columns[rows, self.column[node]] <= self.threshold[node]
                following = np.where(asked, self.yes[node], self.no[node])
                if (following == node).all():
                    break
                node = following
            total += self.rate * self.value[node]
        return total, self.noise * np.sqrt(1 + (codes == UNSEEN).sum(axis=1))


def fit_trees(codes: Codes, features: Floats, target: Floats, rng: np.random.Generator) -> Trees:
    """Fit.

    Args:
        codes: shape ``(n, genes)``; a gene's codes are taken for ordered.
        features: shape ``(n, features)``.
        target: shape ``(n,)``.
        rng: draws each tree's rows and columns.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    columns = np.concatenate([codes, features], axis=1)
    model = GradientBoostingRegressor(
        **_SETTINGS, max_features=_SHARE, random_state=int(rng.integers(2**31))
    ).fit(columns, target)
    trees = [estimator.tree_ for estimator in model.estimators_[:, 0]]
    roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]

    def next_nodes(name: str) -> Codes:
        return np.concatenate(
            [
                np.where(getattr(tree, name) < 0, np.arange(tree.node_count), getattr(tree, name))
                + root
                for tree, root in zip(trees, roots, strict=True)
            ]
        ).astype(np.int64)

    return Trees(
        start=float(target.mean()),
        rate=float(model.learning_rate),
        roots=roots.astype(np.int64),
        column=np.maximum(np.concatenate([tree.feature for tree in trees]), 0).astype(np.int64),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        yes=next_nodes("children_left"),
        no=next_nodes("children_right"),
        value=np.concatenate([tree.value[:, 0, 0] for tree in trees]),
        noise=float(target.std()),
    )
