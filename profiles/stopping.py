"""When enough runs have been made.

The first ``plan.runs`` runs are the pilot.  What they vary by decides how many runs there are in
all, once and for good: looking at the interval after every run and stopping when it happens to be
narrow would make it narrower than it should be (see
:func:`profiles.statistics.two_stage_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from profiles.records import Plan
from profiles.statistics import FEWEST_RUNS, t_quantile, two_stage_interval


def runs_wanted(medians: Sequence[float], plan: Plan) -> int:
    """How many runs there are to be in all.

    Args:
        medians: of the runs that count so far, in the order made.  With fewer than ``plan.runs``
            of them the answer is ``plan.runs``; what comes after them changes nothing.
        plan: its ``runs``, ``max_runs`` and ``target``.

    Returns:
        From ``plan.runs`` to ``plan.max_runs``.
    """
    if len(medians) < plan.runs:
        return plan.runs
    needed = _needed(medians[: plan.runs], plan.target)
    return int(min(max(needed, plan.runs), plan.max_runs))


def why_stopped(medians: Sequence[float], plan: Plan, refused: int = 0) -> str:
    """In one line, why there are no more runs than these.

    Args:
        medians: of the runs that count, in the order made; at least one.
        plan: what they were made for.
        refused: how many more were made, and do not count.
    """
    count = len(medians)
    pilot = medians[: plan.runs]
    target = f"{100 * plan.target:.3g} %"
    full = count >= plan.runs
    if full and _needed(pilot, plan.target) <= count:
        return f"the interval is within {target} after {count} runs"
    if refused:
        counts = "1 run counts" if count == 1 else f"{count} runs count"
        made = f"{counts}, {refused} {'was' if refused == 1 else 'were'} refused"
    else:
        made = "1 run was made" if count == 1 else f"{count} runs were made"
    if full and plan.kind != "latency":
        return f"{made}, as planned"
    if count < plan.max_runs and not refused:
        made += " in the time there was"
    return f"{made}; the interval is {_width(medians, len(pilot))}, not {target}"


def _needed(pilot: Sequence[float], target: float) -> float:
    """Stein's second stage: so many runs make the interval as narrow as the target.

    Its half-width is the hyperbolic sine of what it reaches on the scale of logarithms.
    """
    if len(pilot) < FEWEST_RUNS:
        return math.inf
    spread = float(np.log(pilot).std(ddof=1))
    return math.ceil((t_quantile(len(pilot) - 1) * spread / math.asinh(target)) ** 2)


def _width(medians: Sequence[float], pilot: int) -> str:
    interval = two_stage_interval(medians, pilot)
    if interval is None:
        return "unknown"
    half = math.sinh(math.log(interval[1] / interval[0]) / 2)
    return f"±{100 * half:.2g} %"
