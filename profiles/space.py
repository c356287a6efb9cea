"""Search spaces: slots with named choices; a network is a row of integers, a genome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import TableError

Genomes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a network and what may stand there."""

    name: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All networks that one super-network holds.

    Args:
        slots: in the order data flow through them.
    """

    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """How many networks there are."""
        return math.prod(len(slot.choices) for slot in self.slots)

    @property
    def highest(self) -> NDArray[np.int64]:
        """The largest choice of each slot, shape ``(slots,)``."""
        return np.array([len(slot.choices) - 1 for slot in self.slots], dtype=np.int64)

    def check(self, genomes: ArrayLike) -> Genomes:
        """These genomes as a matrix ``(n, slots)``.

        Raises:
            TableError: names the first gene that is outside the space.
        """
        matrix = np.atleast_2d(np.asarray(genomes))
        if matrix.ndim != 2 or matrix.shape[1] != len(self.slots):
            raise TableError(f"a genome has {len(self.slots)} genes, got shape {matrix.shape}")
        if not np.issubdtype(matrix.dtype, np.integer):
            raise TableError(f"genes are integers, got {matrix.dtype}")
        outside = (matrix < 0) | (matrix > self.highest)
        if outside.any():
            row, column = (int(index) for index in np.argwhere(outside)[0])
            slot = self.slots[column]
            raise TableError(
                f"genome {row}: gene {column} ({slot.name}) is {matrix[row, column]}, outside"
                f" 0..{len(slot.choices) - 1}"
            )
        return matrix.astype(np.int64)

    def sample(self, count: int, rng: np.random.Generator) -> Genomes:
        """That many genomes, drawn uniformly and independently."""
        return rng.integers(0, self.highest + 1, size=(count, len(self.slots)), dtype=np.int64)

    def describe(self, genome: Sequence[int] | NDArray[np.int64]) -> str:
        """A genome in words; slots without a choice are left out."""
        return " ".join(
            f"{slot.name}:{slot.choices[int(gene)]}"
            for slot, gene in zip(self.slots, genome, strict=True)
            if len(slot.choices) > 1
        )
