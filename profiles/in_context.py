"""What blocks cost inside networks: learned from whole networks, drawn to what they cost alone.

A block that is measured as a network of its own reads its input from a cold buffer, pays for
layouts or conversions at its borders, and in INT8 may even be quantized in another way.  Whole
networks have none of that, and each of them says something about all of its blocks.  So the cost of
a block in context is what it costs alone, times a factor for all, times a correction of its own
that is as small as the networks allow: a ridge regression of relative errors.

*Source:* Hoerl & Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
Technometrics 12 (1970); errors of left-out rows from one fit: Allen, "The Relationship Between
Variable Selection and Data Augmentation and a Method for Prediction", Technometrics 16 (1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.errors import TableError

Floats = NDArray[np.float64]

#: With fewer networks, the blocks alone are believed.
FEWEST_NETWORKS = 10
#: Penalties that compete: a block's correction is expected to be about 1 / sqrt of one, in units of
#: the networks' own errors.
_PENALTIES = tuple(10.0**power for power in np.arange(-4, 3.1, 0.25))
#: Of the factor and the offset that all networks share: next to nothing.
_FREE = 1e-6
#: A block that hardly costs anything alone may do so in context: up to this share of a network.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class InContext:
    """What blocks cost within networks, without the call.

    Args:
        own_ns: of each block, shape ``(blocks,)``.
        half_width_ns: half of each 95 % interval, same shape.
        offset_ns: what every network takes beside its blocks.
        scale: what all blocks alone are multiplied by, before each one's own correction.
        left_out: predicted / measured - 1 of each network, by a fit to all the others.
        drift: of each run, how much longer all networks took in it than in all runs, as a factor.
        penalty: that predicted left-out networks best.
    """

    own_ns: Floats
    half_width_ns: Floats
    offset_ns: float
    scale: float
    left_out: Floats
    drift: Floats
    penalty: float

    def half_width(self, level: float = 0.9) -> float:
        """Half of the interval of a further network's measurement, as a share of it.

        Conformal: so many of the left-out networks, and one more, are within it.  A left-out
        network stood beside the others, a further one is measured at another time: the device is
        then as much faster or slower as in one run against another.

        Raises:
            TableError: if there are too few networks to tell.
        """
        then = self.drift[:, None] / self.drift[None, :]
        apart = then[~np.eye(len(self.drift), dtype=bool)] if len(self.drift) > 1 else np.ones(1)
        errors = np.sort(np.abs(np.outer(1 + self.left_out, apart) - 1), axis=None)
        share = (len(self.left_out) + 1) * level / len(self.left_out)
        rank = math.ceil(share * len(errors))
        if rank > len(errors):
            raise TableError(f"{len(self.left_out)} networks bound no {level:.0%} of further ones")
        return float(errors[rank - 1])


def in_context(counts: Floats, alone_ns: Floats, runs_ns: Floats) -> InContext:
    """Learn what blocks cost in context.

    Args:
        counts: how often each network has each block, shape ``(networks, blocks)``.
        alone_ns: of each block without the call, shape ``(blocks,)``; noise may make it negative.
        runs_ns: whole networks, in each run that they took turns in, shape ``(networks, runs)``,
            positive.

    Raises:
        TableError: for fewer than ten networks, or what does not fit together.
    """
    networks, blocks = counts.shape
    measured_ns = np.median(runs_ns, axis=1)
    if networks < FEWEST_NETWORKS:
        raise TableError(
            f"{networks} networks are too few to learn from: at least {FEWEST_NETWORKS}"
        )
    if alone_ns.shape != (blocks,) or len(runs_ns) != networks:
        raise TableError("each block needs a latency, and each network too")
    if not ((runs_ns > 0).all() and np.isfinite(runs_ns).all() and np.isfinite(alone_ns).all()):
        raise TableError("latencies are finite, and those of networks positive")
    typical_ns = float(np.median(measured_ns))
    sums_ns = counts @ alone_ns
    unit_ns = np.maximum(alone_ns, _LEAST_SHARE * typical_ns)
    columns = np.column_stack([sums_ns, np.full(networks, typical_ns), counts * unit_ns])
    columns = columns / measured_ns[:, None]
    # What is learned is how far the sum is from right: factor 1, nothing beside the blocks.
    residual = 1 - columns[:, 0]
    penalty = min(
        _PENALTIES, key=lambda each: float(np.abs(_left_out(columns, residual, each)).mean())
    )
    learned, covariance = _solved(columns, residual, penalty)
    left_out = _left_out(columns, residual, penalty)
    spread = float(np.sqrt(np.mean(left_out**2)))
    # A block's own cost is of two parts, its share of the common factor and its correction.
    mixing = np.zeros((blocks, blocks + 2))
    mixing[:, 0] = alone_ns
    mixing[np.arange(blocks), np.arange(blocks) + 2] = unit_ns
    variance = np.einsum("ij,jk,ik->i", mixing, covariance, mixing)
    return InContext(
        own_ns=alone_ns + mixing @ learned,
        half_width_ns=1.96 * spread * np.sqrt(np.maximum(variance, 0.0)),
        offset_ns=float(learned[1]) * typical_ns,
        scale=1 + float(learned[0]),
        left_out=left_out,
        drift=np.exp(np.log(runs_ns / measured_ns[:, None]).mean(axis=0)),
        penalty=float(penalty),
    )


def _solved(columns: Floats, residual: Floats, penalty: float) -> tuple[Floats, Floats]:
    weights = np.full(columns.shape[1], penalty)
    weights[:2] = _FREE
    normal = columns.T @ columns + np.diag(weights)
    inverse = np.asarray(np.linalg.inv(normal), dtype=np.float64)
    return inverse @ (columns.T @ residual), inverse


def _left_out(columns: Floats, residual: Floats, penalty: float) -> Floats:
    """Predicted / measured - 1 of each row by a fit to all others, from one fit."""
    learned, inverse = _solved(columns, residual, penalty)
    leverage = np.einsum("ij,jk,ik->i", columns, inverse, columns)
    errors: Floats = (columns @ learned - residual) / np.maximum(1 - leverage, 1e-9)
    return errors
