"""How alike two networks are, gene by gene, as a product of two matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiles.predictor.networks import UNSEEN, Choices, Codes, Floats, is_number


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Maps genomes to vectors whose product is, of each gene, how alike two choices are.

    Equal choices are alike by 1, unlike words by 0.  Numbers of one gene are alike by the share
    of thresholds between its choices that they stand on one side of, as far as ``ordered`` says.
    A choice that no training row has is like nothing.

    Args:
        tables: the vectors of each gene's choices, shape ``(choices, width)``.
        genes: which gene each component belongs to, shape ``(all widths,)``.
    """

    tables: tuple[Floats, ...]
    genes: Codes

    @classmethod
    def of(cls, choices: Choices, ordered: float) -> Similarity:
        """The map for these choices.

        Args:
            ordered: between 0 (numbers are mere names) and 1 (only their order counts).
        """
        tables = tuple(_vectors(levels, ordered) for levels in choices.levels)
        genes = np.repeat(np.arange(len(tables)), [table.shape[1] for table in tables])
        return cls(tables, genes.astype(np.int64))

    def vectors(self, codes: Codes) -> Floats:
        """One vector for each genome, shape ``(n, all widths)``."""
        found = []
        for column, table in enumerate(self.tables):
            gene = codes[:, column]
            found.append(np.where((gene == UNSEEN)[:, None], 0.0, table[gene]))
        return np.concatenate(found, axis=1)


def _vectors(levels: Sequence[str], ordered: float) -> Floats:
    """A vector of length 1 for each choice of one gene."""
    numbers = sum(is_number(level) for level in levels)
    apart = np.eye(len(levels))
    if numbers < 3 or ordered == 0:
        return apart
    # Numbers stand before words: see Choices.
    above = (np.arange(numbers)[:, None] > np.arange(numbers - 1)).astype(np.float64)
    sides = np.concatenate([above, 1 - above], axis=1) * np.sqrt(ordered / (numbers - 1))
    apart[:numbers] *= np.sqrt(1 - ordered)
    words = np.zeros((len(levels) - numbers, sides.shape[1]))
    return np.concatenate([apart, np.concatenate([sides, words])], axis=1)
