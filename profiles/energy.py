"""From the readings of a power sensor to the energy of one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.records import Samples


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Energy over time, as one sensor saw it.

    Args:
        at_ns: the device's monotonic clock at each reading, increasing; shape ``(n,)``.
        energy_uj: taken since the first reading; shape ``(n,)``.
        covered: whether what passed between a reading and the next is known; shape ``(n - 1,)``.
            Over a gap ``energy_uj`` does not grow.
    """

    at_ns: Samples
    energy_uj: NDArray[np.float64]
    covered: NDArray[np.bool_]
