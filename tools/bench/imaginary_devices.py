"""Imaginary devices: latencies that do not add up, for benchmarks of what predicts latencies.

A network is one of a once-for-all space: five stages of two to four blocks, each with a kernel
and an expansion, at one of five resolutions.  What real devices do to a sum of blocks is here with
a strength for each: a cache that large blocks fall out of, a conversion between unlike
neighbours, a cost of every call, and noise.  None is modelled on one real device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KERNELS = (3, 5, 7)
EXPANDS = (3, 4, 6)
DEPTHS = (2, 3, 4)
RESOLUTIONS = (160, 176, 192, 208, 224)
STAGES, BLOCKS = 5, 4
#: What stands for a block that the stage is not deep enough for.
ABSENT = 0
_WIDTHS = np.array([24, 40, 80, 112, 160])
_SIDES = np.array([56, 28, 14, 14, 7]) / 224

NAMES = (
    *(f"kernel{block}" for block in range(STAGES * BLOCKS)),
    *(f"expand{block}" for block in range(STAGES * BLOCKS)),
    *(f"depth{stage}" for stage in range(STAGES)),
    "resolution",
)


def sample(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """That many networks, drawn uniformly: rows as ``NAMES`` has it, absent blocks as 0."""
    blocks = STAGES * BLOCKS
    depths = rng.choice(DEPTHS, (count, STAGES))
    there = (np.arange(BLOCKS) < depths[:, :, None]).reshape(count, blocks)
    kernels = np.where(there, rng.choice(KERNELS, (count, blocks)), ABSENT)
    expands = np.where(there, rng.choice(EXPANDS, (count, blocks)), ABSENT)
    resolution = rng.choice(RESOLUTIONS, (count, 1))
    return np.concatenate([kernels, expands, depths, resolution], axis=1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ImaginaryDevice:
    """How one device departs from a sum of blocks.

    Args:
        flops_per_ns: speed of multiplications.
        bytes_per_ns: speed of what is not in the cache.
        cache_bytes: activations beyond it are read again.
        depthwise: how much dearer a depthwise multiplication is.
        convert_ns: between blocks of unlike kernels, for each channel.
        call_ns: of every network.
        noise: relative standard deviation of a measurement.
    """

    flops_per_ns: float = 8.0
    bytes_per_ns: float = 4.0
    cache_bytes: float = 4e5
    depthwise: float = 4.0
    convert_ns: float = 400.0
    call_ns: float = 2e5
    noise: float = 0.01

    def latency_ns(
        self, networks: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Measured latencies of these networks, shape ``(n,)``."""
        blocks = STAGES * BLOCKS
        kernels, expands = networks[:, :blocks], networks[:, blocks : 2 * blocks]
        widths = np.repeat(_WIDTHS, BLOCKS)
        before = np.concatenate([[16], widths[:-1]])
        inputs = np.where(np.arange(blocks) % BLOCKS == 0, before, widths)
        sides = networks[:, -1:] * np.repeat(_SIDES, BLOCKS)
        middle = inputs * expands
        pixels = sides**2
        pointwise = pixels * middle * (inputs + widths)
        depthwise = pixels * middle * kernels**2 * self.depthwise
        activations = 4 * pixels * middle
        spilled = np.maximum(activations - self.cache_bytes, 0.0)
        costs = (pointwise + depthwise) / self.flops_per_ns + 2 * spilled / self.bytes_per_ns
        unlike = (kernels[:, 1:] != kernels[:, :-1]) & (kernels[:, 1:] != ABSENT)
        conversions = (unlike * self.convert_ns * widths[1:]).sum(axis=1)
        total = self.call_ns + costs.sum(axis=1) + conversions
        measured: NDArray[np.float64] = total * np.exp(rng.normal(0, self.noise, len(total)))
        return measured


#: Two devices of one kind: what is dear on the one is dear on the other, but not by one factor.
SOURCE = ImaginaryDevice()
TARGET = ImaginaryDevice(
    flops_per_ns=3.0,
    bytes_per_ns=1.5,
    cache_bytes=2.5e5,
    depthwise=6.0,
    convert_ns=250.0,
    call_ns=5e5,
    noise=0.015,
)
