"""Search problems whose answers are tabulated: nothing is trained, nothing is measured."""

from __future__ import annotations

import ast
import csv
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.search.nsga2 import Scores
from profiles.space import Genomes, SearchSpace, Slot

Floats = NDArray[np.float64]

STAGES, BLOCKS, FEWEST_BLOCKS = 5, 4, 2
_KERNELS, _EXPANDS = (3, 5, 7), (3, 4, 6)
_RESOLUTIONS = (160, 176, 192, 208, 224)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Something to search.

    Args:
        name: shown with every figure.
        space: of its genomes.
        values: shape ``(n, slots)`` to ``(n, 2)``: error, cost; less is better.
        reference: the hypervolume's, shape ``(2,)``.
        allowed: turns genomes into the nearest that exist; ``None``: all exist.
        pool: all that exist, where they are listed.
    """

    name: str
    space: SearchSpace
    values: Callable[[Genomes], Floats]
    reference: Floats
    allowed: Callable[[Genomes], Genomes] | None = None
    pool: Genomes | None = None

    def score(self, genomes: Genomes) -> Scores:
        """The values, with no limits."""
        return Scores.of(self.values(genomes))

    def volume(self, values: Floats) -> float:
        """Hypervolume of these values."""
        from moocore import hypervolume

        return float(hypervolume(values, ref=self.reference))


def _space(sizes: list[int]) -> SearchSpace:
    return SearchSpace(
        tuple(Slot(f"g{i}", tuple(str(j) for j in range(size))) for i, size in enumerate(sizes))
    )


def once_for_all(seed: int = 0) -> Problem:
    """A space of once-for-all's size, 26 genes: made-up table latency, made-up additive accuracy.

    Five stages of four blocks with nine choices each (kernel, expansion), depths 2 to 4, five
    resolutions.  A block beyond its stage's depth costs nothing and adds nothing.

    Source: Cai et al., "Once-for-All", ICLR 2020, section 4.1 (the space, not the numbers).
    """
    random = np.random.default_rng(seed)
    count = STAGES * BLOCKS
    size = np.array([kernel * expand for kernel in (1.0, 1.3, 1.7) for expand in _EXPANDS])
    block_ms = random.uniform(0.1, 0.3, (count, 1)) * size * random.uniform(0.85, 1.15, (count, 9))
    gain = (
        random.uniform(0.2, 1.0, (count, 1)) * np.sqrt(size) * random.uniform(0.8, 1.2, (count, 9))
    )
    scale = (np.array(_RESOLUTIONS) / 224) ** 2
    sharpness = np.array([-2.4, -1.5, -0.8, -0.3, 0.0])
    rows = np.arange(count)

    def values(genomes: Genomes) -> Floats:
        blocks = genomes[:, :count]
        depth = genomes[:, count : count + STAGES] + FEWEST_BLOCKS
        runs = (np.arange(BLOCKS) < depth[:, :, None]).reshape(len(genomes), count)
        ms = (block_ms[rows, blocks] * runs).sum(axis=1) * scale[genomes[:, -1]] + 1.0
        quality = (gain[rows, blocks] * runs).sum(axis=1) / 3 + sharpness[genomes[:, -1]]
        return np.column_stack([40.0 - quality, ms])

    space = _space([9] * count + [3] * STAGES + [5])
    return Problem("once-for-all space, made-up numbers", space, values, np.array([40.0, 60.0]))


def interacting(seed: int = 0) -> Problem:
    """A made-up problem whose choices do not add up: 14 genes, 4.8 million networks.

    Capacity saturates, and neighbouring blocks work well together or do not.
    """
    random = np.random.default_rng(1000 + seed)
    sizes = [3] * 14
    slots = len(sizes)
    gain = np.sort(random.uniform(0.0, 1.0, (slots, 3)), axis=1)
    pair = random.normal(0.0, 0.12, (slots - 1, 3, 3))
    ms = np.cumsum(random.uniform(0.2, 1.0, (slots, 3)), axis=1)
    rows = np.arange(slots)

    def values(genomes: Genomes) -> Floats:
        capacity = gain[rows, genomes].sum(axis=1)
        together = pair[rows[:-1], genomes[:, :-1], genomes[:, 1:]].sum(axis=1)
        error = 100 * np.exp(-(capacity + together) / 4)
        return np.column_stack([error, ms[rows, genomes].sum(axis=1)])

    top = values(np.array([[0] * slots, [2] * slots])).max(axis=0)
    return Problem("interacting, made-up numbers", _space(sizes), values, top * 1.1)


def digits_like(seed: int = 0) -> Problem:
    """A space as small as the digits network's, known exhaustively: 5 genes, 1,280 networks.

    It stands for a small space whose networks are all known.  Error falls with capacity, and
    neighbours work well together or do not; there is no noise of a training, which no search
    could learn.
    """
    random = np.random.default_rng(2000 + seed)
    sizes = [4, 5, 4, 4, 4]
    everything = np.array(list(itertools.product(*map(range, sizes))), dtype=np.int64)
    ms = 1 + everything @ random.uniform(0.3, 1.0, len(sizes))
    pairs = [random.normal(0, 0.3, shape) for shape in itertools.pairwise(sizes)]
    together = sum(
        pair[everything[:, place], everything[:, place + 1]] for place, pair in enumerate(pairs)
    )
    table = np.column_stack([30 * np.exp(-(ms + together) / 3) + 2, ms]).reshape(*sizes, 2)

    def values(genomes: Genomes) -> Floats:
        found: Floats = table[tuple(genomes.T)]
        return found

    top = table.reshape(-1, 2).max(axis=0) * 1.05
    return Problem("digits-like, made-up numbers", _space(sizes), values, top, pool=everything)


def measured_subnets(folder: Path) -> Problem | None:
    """The once-for-all sub-networks of which the accuracy was measured; ``None`` without the data.

    Error is 100 less ImageNet top-1; cost is millions of multiply-accumulates, as the latency
    column is empty.  Only these networks exist: other genomes become the nearest in it by genes
    that differ.

    Source: IntelLabs/DyNAS-T's measured accuracies, Apache-2.0.
    """
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    for path in sorted((folder / "subnet_accuracy").glob("*.csv")):
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                error = 100 - float(row["Top-1 Acc (%)"])
                found.setdefault(_genome(row["Sub-network"]), (error, float(row["MACs"]) / 1e6))
    if not found:
        return None
    pool = np.array(sorted(found), dtype=np.int64)
    table = np.array([found[tuple(int(gene) for gene in row)] for row in pool])
    sizes = [10] * (STAGES * BLOCKS) + [3] * STAGES
    offsets = np.cumsum([0, *sizes[:-1]])
    total = sum(sizes)
    rows = np.zeros((len(pool), total), dtype=np.float32)
    np.put_along_axis(rows, pool + offsets, 1, axis=1)

    def nearest(genomes: Genomes) -> Floats:
        mine = np.zeros((len(genomes), total), dtype=np.float32)
        np.put_along_axis(mine, genomes + offsets, 1, axis=1)
        return np.asarray((mine @ rows.T).argmax(axis=1))

    return Problem(
        f"{len(pool):,} measured once-for-all networks, MACs",
        _space(sizes),
        lambda genomes: table[nearest(genomes)],
        table.max(axis=0) * 1.02,
        allowed=lambda genomes: pool[nearest(genomes)],
        pool=pool,
    )


def _genome(text: str) -> tuple[int, ...]:
    """Blocks that do not run are 9: two networks that differ only there are one."""
    network = ast.literal_eval(text)
    genes = []
    for place, (kernel, expand) in enumerate(zip(network["ks"], network["e"], strict=True)):
        runs = place % BLOCKS < network["d"][place // BLOCKS]
        genes.append(3 * _KERNELS.index(kernel) + _EXPANDS.index(expand) if runs else 9)
    return (*genes, *(depth - FEWEST_BLOCKS for depth in network["d"]))
