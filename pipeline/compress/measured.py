"""Budgets of milliseconds and millijoules: candidates are measured whole, beside the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.compress.costs import TOLERANCE
from pipeline.compress.module import program_of
from pipeline.compress.narrowing import Narrowing
from pipeline.compress.slim import slim
from pipeline.compress.workbench import Workbench
from profiles.compression import Budget
from profiles.errors import StageError

#: Candidates of the first question, over all that could go; and of the second, around the answer.
_COARSE, _FINE = 6, 4
_WHOLE = "whole"

Widths = Mapping[str, int]


def within_measured(
    narrowing: Narrowing,
    budget: Budget,
    bench: Workbench,
    family: Callable[[float], Widths | None] | None = None,
) -> tuple[dict[str, int], dict[str, Any]]:
    """The widest network whose measured cost is within a budget.

    Two questions to the device: which of some networks, that spread over all that is possible,
    come next to the budget; and which of some between those two meets it most closely.  Where none
    is within it, the cheapest may exceed it by 2 % (``TOLERANCE``): so far the figures of the same
    network differ from one question to the other.

    Args:
        narrowing: makes the candidates.
        budget: a measured one.
        bench: with its gauge.
        family: widths for a share of what all layers cost, each measured by itself; ``None`` where
            there are none.  Where it is not given, those of ``narrowing`` for a share of the MACs.

    Returns:
        The widths, and the record: the measured share, and those of all candidates by the share of
        layers or MACs that they were made for (``shares_of`` says of which).

    Raises:
        StageError: if none is within it, with the nearest share; or one cannot be measured.
        DeviceError: if the device cannot be reached or leaves.
    """
    structure = narrowing.structure
    whole = structure.macs(structure.gone({}))
    least = structure.macs(narrowing.gone(narrowing.at(1.0))) / whole

    def make(share: float) -> Widths | None:
        if share <= least:
            return narrowing.at(1.0)
        return family(share) if family else narrowing.within(share * whole, structure.macs)

    shares = np.linspace(least, 1.0, _COARSE + 1)[:-1]
    found = _measured(narrowing, bench, make, shares.tolist())
    low = _widest(found, budget)
    high = min((at for at in (*found, 1.0) if at > low), default=1.0)
    between = np.linspace(low, high, _FINE + 2)[:-1].tolist()
    found |= _measured(narrowing, bench, make, between)
    # What was inside the first time may be outside in other turns.
    widths, ratio = found[_widest(found, budget)]
    return dict(widths), {
        "share_found": round(ratio, 4),
        "tolerance": TOLERANCE,
        "measured_by_share": {
            f"{at:.3f}": round(ratio, 4) for at, (_, ratio) in sorted(found.items())
        },
        "shares_of": f"{budget.cost} of all layers, one by one" if family else "macs",
    }


def _widest(found: Mapping[float, tuple[Widths, float]], budget: Budget) -> float:
    """The largest share whose network is within the budget, or the cheapest one's if it nearly is.

    Raises:
        StageError: if none is, with the nearest that can be met.
    """
    inside = [at for at, (_, ratio) in found.items() if ratio <= budget.share]
    if inside:
        return max(inside)
    cheapest = min(found, key=lambda at: found[at][1])
    nearest = found[cheapest][1]
    if nearest <= budget.share * (1 + TOLERANCE):
        return cheapest
    raise StageError(
        f"budget: {budget.cost}: {budget.share:g} cannot be met: the nearest that can is"
        f" {np.ceil(nearest * 1000) / 1000:g}",
        "let more remain, or compress by another method first",
    )


def _measured(
    narrowing: Narrowing,
    bench: Workbench,
    make: Callable[[float], Widths | None],
    shares: Sequence[float],
) -> dict[float, tuple[Widths, float]]:
    """By the share they are made for, widths and what they cost as a share of the whole network."""
    if bench.gauge is None:
        raise StageError("there is no device to measure a budget on")
    candidates = {share: widths for share in shares if (widths := make(share)) is not None}
    programs = {_WHOLE: program_of(narrowing.structure.module, bench.example)}
    for share, widths in candidates.items():
        small = slim(narrowing.structure, narrowing.gone(widths))
        programs[f"{share:.3f}"] = program_of(small, bench.example)
    costs = bench.gauge.measure(programs)
    return {
        share: (widths, costs[f"{share:.3f}"] / costs[_WHOLE])
        for share, widths in candidates.items()
    }
