"""Which artifacts have become slower?  Verdicts over many, between two builds or two nights.

A verdict never rests on a single number: it takes at least three rounds of both builds, or three
visits before and three runs in the new one.

How many runs find one artifact of 50 that has become 3 % slower, in over 90 % of campaigns, where
runs vary by 2 %: 21 rounds of both builds in turns (91 %; 20 rounds find 90.1 %), or 16 runs a
night against ten nights that vary by 0.3 % beyond that (91 %).  Measured on 3000 simulated
campaigns; ``tests/profiles/test_regression.py`` repeats it on fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiles.comparison import Effect, effect_of
from profiles.moderation import LEAST_VARIANCE, moderated
from profiles.statistics import FEWEST_RUNS

Outcome = Literal["faster", "slower", "undecided"]

#: Share of the artifacts called faster or slower that may be so by chance; where nothing has
#: changed, the share of campaigns that call any of them so.
FALSE_DISCOVERIES = 0.04
#: Less is not called a change: the layout of memory alone does as much.
#: Source: Mytkowicz, Diwan, Hauswirth & Sweeney, "Producing Wrong Data Without Doing Anything
#: Obviously Wrong!", ASPLOS 2009.
LEAST_EFFECT = 0.01
#: So many visits have a variance that says something.
FEWEST_VISITS = 3


@dataclass(frozen=True, slots=True)
class Rounds:
    """One artifact before and after, measured in turns: the n-th runs belong together.

    Args:
        name: of the artifact.
        before, after: run medians, as many on both sides.
    """

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Nights:
    """One artifact in a new visit to its device, and in those before it.

    Args:
        name: of the artifact.
        history: its run medians in each visit before, empty where it was not measured; the visits
            are the same for all artifacts at one place.
        night: its run medians in the new one.
        place: the device and how it is used, as one word: what a visit does to one artifact at a
            place it does to all of them, and to none elsewhere.
    """

    name: str
    history: tuple[tuple[float, ...], ...]
    night: tuple[float, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """The verdict over one artifact.

    Args:
        name: of the artifact.
        outcome: ``undecided`` is no claim that nothing has changed.
        effect: with the interval of this artifact alone; ``None`` where one side is missing.
        q: p-value adjusted for how many artifacts were looked at; ``None`` without a p-value.
        reason: why it is undecided; empty where it is not.
    """

    name: str
    outcome: Outcome
    effect: Effect | None
    q: float | None
    reason: str = ""


def regressions(cases: Sequence[Rounds | Nights]) -> list[Change]:
    """Which artifacts have become faster or slower.

    Each artifact's variance is drawn towards that of the others (see :mod:`profiles.moderation`),
    which gives power with few visits.  For nights it is the variance *between* visits that counts:
    however many runs a night has, the device has one temperature, one memory layout of the kernel
    and one set of neighbours.  What all artifacts at a place have in common in a night is a part
    of its own, of which fifty artifacts say no more than one; another device's nights say nothing
    of it.

    Args:
        cases: one for each artifact; at each place all measured in the same visits.

    Returns:
        One verdict for each case, in the order given.  Of the artifacts called faster or slower,
        4 % at most are so by chance.

    Source: Benjamini & Hochberg, "Controlling the false discovery rate", Journal of the Royal
    Statistical Society B 57 (1995).
    """
    from scipy.stats import false_discovery_control

    lacking = [_lacking(case) for case in cases]
    ready = [(at, case) for at, case in enumerate(cases) if not lacking[at]]
    rounds = {at: case for at, case in ready if isinstance(case, Rounds)}
    effects = dict(zip(rounds, _of_rounds(list(rounds.values())), strict=True))
    nights = [(at, case) for at, case in ready if isinstance(case, Nights)]
    for where in dict.fromkeys(case.place for _, case in nights):
        mine = {at: case for at, case in nights if case.place == where}
        effects |= zip(mine, _of_nights(list(mine.values())), strict=True)
    adjusted = false_discovery_control([each.p for each in effects.values()]) if effects else []
    qs = dict(zip(effects, adjusted, strict=True))
    return [
        _judge(case.name, effects[at], float(qs[at]))
        if at in effects
        else Change(case.name, "undecided", _bare(case), None, lacking[at])
        for at, case in enumerate(cases)
    ]


def _lacking(case: Rounds | Nights) -> str:
    """What is too little for a verdict, in words."""
    if isinstance(case, Rounds):
        before, after = len(case.before), len(case.after)
        if before != after:
            return f"{before} runs before and {after} after are no rounds"
        return "" if before >= FEWEST_RUNS else f"{before} of the {FEWEST_RUNS} rounds needed"
    visits = sum(1 for visit in case.history if visit)
    if visits < FEWEST_VISITS:
        return f"the history has {visits} of the {FEWEST_VISITS} visits needed"
    if len(case.night) < FEWEST_RUNS:
        return f"the new visit has {len(case.night)} of the {FEWEST_RUNS} runs needed"
    return ""


def _bare(case: Rounds | Nights) -> Effect | None:
    """The ratio where there is one, without an interval."""
    if isinstance(case, Rounds):
        before, after = case.before, case.after
    else:
        before, after = tuple(median for visit in case.history for median in visit), case.night
    if not (before and after):
        return None
    return Effect(math.exp(_mean_log(after) - _mean_log(before)), None, None)


def _of_rounds(cases: Sequence[Rounds]) -> list[Effect]:
    differences = [np.log(case.after) - np.log(case.before) for case in cases]
    counts = [len(each) for each in differences]
    variances, degrees = moderated(
        [each.var(ddof=1) for each in differences], [count - 1 for count in counts]
    )
    return [
        effect_of(float(each.mean()), float(variance) / count, float(freedom))
        for each, variance, freedom, count in zip(
            differences, variances, degrees, counts, strict=True
        )
    ]


def _of_nights(cases: Sequence[Nights]) -> list[Effect]:
    """Two parts of the variance: what a visit does to all artifacts, and to each beyond that."""
    if not cases:
        return []
    means = np.array([[_mean_log(visit) for visit in case.history] for case in cases])
    means = means[:, ~np.isnan(means).all(axis=0)]
    visits = np.sum(~np.isnan(means), axis=1)
    usual = np.nanmean(means, axis=1)
    beyond = means - usual[:, None]
    common = np.nanmean(beyond, axis=0)
    # One in so many of the artifacts' own part is in the common one already.
    own = 1 - 1 / len(cases)
    alone, degrees = np.zeros(len(cases)), np.ones(len(cases))
    if len(cases) > 1:
        freedom = own * (visits - 1)
        alone, degrees = moderated(np.nansum((beyond - common) ** 2, axis=1) / freedom, freedom)
    shared = max(float(common.var(ddof=1)), LEAST_VARIANCE)
    total = shared + own * alone
    # Welch and Satterthwaite's degrees of freedom of a sum.
    with_both = total**2 / (shared**2 / (len(common) - 1) + (own * alone) ** 2 / degrees)
    return [
        effect_of(
            _mean_log(case.night) - float(usual[place]),
            float(total[place]) * (1 + 1 / int(visits[place])) + _fewer_runs(case),
            float(with_both[place]),
        )
        for place, case in enumerate(cases)
    ]


def _mean_log(medians: Sequence[float]) -> float:
    """NaN for none."""
    return math.fsum(map(math.log, medians)) / len(medians) if medians else math.nan


def _fewer_runs(case: Nights) -> float:
    """By what the new visit's mean varies more than those before, because it has fewer runs."""
    visits = [visit for visit in case.history if visit]
    lack = 1 / len(case.night) - sum(1 / len(visit) for visit in visits) / len(visits)
    if lack <= 0:
        return 0.0
    logs = [np.log(visit) for visit in (*visits, case.night)]
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs)
    return lack * squares / sum(len(each) - 1 for each in logs)


def _judge(name: str, found: Effect, q: float) -> Change:
    if q > FALSE_DISCOVERIES:
        return Change(name, "undecided", found, q, "the difference may be chance")
    if abs(found.ratio - 1) < LEAST_EFFECT:
        return Change(name, "undecided", found, q, "the difference is less than 1 %")
    return Change(name, "slower" if found.ratio > 1 else "faster", found, q)
