"""What there is to measure of a search space: its distinct blocks, and networks made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.supernet.base import Block, SuperNetwork
from profiles.space import Genomes, SearchSpace


@dataclass(frozen=True, slots=True)
class Blocks:
    """A search space's blocks.

    Args:
        places: by (slot, choice) the signature, or ``None`` for a choice that leaves its slot out.
        distinct: by signature.
    """

    places: Mapping[tuple[int, int], str | None]
    distinct: Mapping[str, Block]

    def counts(self, genomes: Genomes, signatures: Sequence[str]) -> NDArray[np.float64]:
        """How often each network has each block, shape ``(n, signatures)``."""
        column = {signature: number for number, signature in enumerate(signatures)}
        counts = np.zeros((len(genomes), len(signatures)))
        for row, genome in enumerate(genomes):
            for signature in self.of(genome):
                counts[row, column[signature]] += 1
        return counts

    def of(self, genome: Genomes) -> list[str]:
        """The signatures of a network's blocks."""
        found = (self.places[slot, int(choice)] for slot, choice in enumerate(genome))
        return [signature for signature in found if signature is not None]


def blocks_of(network: SuperNetwork) -> Blocks:
    """Enumerate a search space: every choice of every slot, each distinct block once."""
    places: dict[tuple[int, int], str | None] = {}
    distinct: dict[str, Block] = {}
    for slot, place in enumerate(network.space.slots):
        for choice in range(len(place.choices)):
            block = network.block(slot, choice)
            places[slot, choice] = block.signature if block else None
            if block:
                distinct.setdefault(block.signature, block)
    return Blocks(places, dict(sorted(distinct.items())))


def balanced(space: SearchSpace, count: int, seed: int) -> Genomes:
    """Random networks in which each slot's choices are equally frequent, shape ``(count, slots)``.

    *Source:* McKay, Beckman & Conover, "A Comparison of Three Methods for Selecting Values of Input
    Variables in the Analysis of Output from a Computer Code", Technometrics 21 (1979).
    """
    rng = np.random.default_rng(seed)
    columns = [rng.permutation(np.arange(count) % (high + 1)) for high in space.highest]
    return np.column_stack(columns).astype(np.int64)
