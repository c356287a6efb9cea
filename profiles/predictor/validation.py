"""How well networks are predicted that were not learned from, beside a plain additive model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.errors import UsageError
from profiles.predictor.fitting import FEWEST, FEWEST_GROUPS, Prediction, Predictor, Progress, fit
from profiles.predictor.networks import Floats, Networks
from profiles.statistics import agreement

#: Fewer unseen rows say nothing of ranks or of shares.
_FEWEST_TO_TEST = 5


@dataclass(frozen=True, slots=True)
class Score:
    """How well one kind of model predicts unseen networks; means over the seeds.

    Args:
        mape: mean absolute relative error, as a fraction.
        mae: mean absolute error, in the target's unit.
        within_5_percent, within_10_percent: share of networks predicted that closely.
        spearman, kendall: rank correlations; ``None`` where ranks are undefined.
        interval_coverage: share of networks inside their 90 % interval.
        seconds: fitting and predicting, per seed.
    """

    mape: float
    mae: float
    within_5_percent: float
    within_10_percent: float
    spearman: float | None
    kendall: float | None
    interval_coverage: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was found on unseen networks.

    Args:
        population: in words, what was learned from and tested on.
        n_train, n_test: rows, the mean over the seeds.
        seeds: how many random divisions.
        kinds: the model chosen with each seed.
        score: of the chosen model, means over the seeds.
        additive: the same of the additive baseline.
        by_seed, additive_by_seed: the same with each seed.
    """

    population: str
    n_train: float
    n_test: float
    seeds: int
    kinds: tuple[str, ...]
    score: Score
    additive: Score
    by_seed: tuple[Score, ...]
    additive_by_seed: tuple[Score, ...]


def evaluate(
    networks: Networks, train: int, seeds: int, *, progress: Progress | None = None
) -> Report:
    """Learn from some groups and predict the others, several times.

    Args:
        networks: all that were measured.
        train: so many rows are learned from, or as many as whole groups make of them.
        seeds: how many times, seeds 0, 1, ...
        progress: is told what is being done.

    Raises:
        UsageError: if too little is left to learn from or to test on, or groups leak.
    """
    refuse_leaks(networks)
    tell = progress or (lambda _: None)
    scores, baselines, kinds, sizes = [], [], [], []
    for seed in range(seeds):
        learned = divide(networks, train, seed)
        known, unseen = networks.take(learned), networks.take(~learned)

        def show(text: str, seed: int = seed) -> None:
            tell(f"evaluate: seed {seed + 1} of {seeds}: {text}")

        started = time.perf_counter()
        predictor = fit(known, seed=seed, progress=show)
        scores.append(score(predictor, unseen, started))
        started = time.perf_counter()
        baselines.append(score(fit(known, seed=seed, kinds=("additive",)), unseen, started))
        kinds.append(predictor.kind)
        sizes.append(len(known))
    n_train = float(np.mean(sizes))
    groups = len(np.unique(networks.groups))
    return Report(
        population=(
            f"{len(networks)} measured networks in {groups} groups; {n_train:.0f} learned from,"
            f" drawn at random by groups, the others predicted; {seeds} seeds"
        ),
        n_train=n_train,
        n_test=len(networks) - n_train,
        seeds=seeds,
        kinds=tuple(kinds),
        score=_mean(scores),
        additive=_mean(baselines),
        by_seed=tuple(scores),
        additive_by_seed=tuple(baselines),
    )


def refuse_leaks(networks: Networks) -> None:
    """Refuse groups that do not keep equal networks together.

    Raises:
        UsageError: if one genome stands in two groups: learned in the one, it would be known in
            the other.
    """
    first: dict[bytes, int] = {}
    for row, (codes, group) in enumerate(zip(networks.codes, networks.groups, strict=True)):
        before = first.setdefault(codes.tobytes(), row)
        if networks.groups[before] != group:
            raise UsageError(
                f"rows {before + 1} and {row + 1} are one network in two groups:"
                " it would leak from training to test",
                "give equal networks one group, or leave out the group column",
            )


def divide(networks: Networks, train: int, seed: int) -> NDArray[np.bool_]:
    """Mask of the rows to learn from: random whole groups, as many as ``train`` rows hold.

    Raises:
        UsageError: if there are too few rows or groups, which says how many are needed.
    """
    distinct, sizes = np.unique(networks.groups, return_counts=True)
    if train < FEWEST:
        raise UsageError(f"cannot learn from {train} networks", f"at least {FEWEST} are needed")
    if train + _FEWEST_TO_TEST > len(networks):
        raise UsageError(
            f"{len(networks)} networks are too few to learn from {train} and test on the others",
            f"measure at least {train + _FEWEST_TO_TEST}, or learn from fewer",
        )
    learned: list[int] = []
    room = train
    for group in np.random.default_rng(seed).permutation(len(distinct)):
        if sizes[group] <= room:
            learned.append(int(distinct[group]))
            room -= int(sizes[group])
    mask = np.isin(networks.groups, learned)
    if len(learned) < FEWEST_GROUPS or len(learned) == len(distinct):
        raise UsageError(
            f"{len(distinct)} groups are too few or too large: {train} rows to learn from hold"
            f" {len(learned)} of them",
            f"at least {FEWEST_GROUPS} whole groups to learn from and one to test on are needed",
        )
    return mask


def score(predictor: Predictor, unseen: Networks, started: float | None = None) -> Score:
    """Compare predictions with measurements of networks that were not learned from.

    Args:
        predictor: whose choices are those of ``unseen``.
        unseen: measured.
        started: when fitting began, of ``time.perf_counter``; ``None``: only predicting counts.
    """
    began = time.perf_counter() if started is None else started
    found = predictor.predict_codes(unseen.codes, unseen.features)
    seconds = time.perf_counter() - began
    match = agreement(found.values, unseen.target, "")
    return Score(
        mape=match.mape,
        mae=float(np.abs(found.values - unseen.target).mean()),
        within_5_percent=match.within_5_percent,
        within_10_percent=match.within_10_percent,
        spearman=match.spearman,
        kendall=match.kendall,
        interval_coverage=coverage(found, unseen.target),
        seconds=seconds,
    )


def coverage(found: Prediction, target: Floats) -> float:
    """Share of measurements inside the predicted intervals."""
    return float(((found.low <= target) & (target <= found.high)).mean())


def _mean(scores: Sequence[Score]) -> Score:
    def mean(name: str) -> float | None:
        values = [getattr(score, name) for score in scores]
        return None if None in values else float(np.mean(values))

    return Score(**{name: mean(name) for name in Score.__dataclass_fields__})  # type: ignore[arg-type]
