"""Scores of many genomes at once: one gather for each group of genes.

Genes that stand together are fused: the sums of all their combinations are worked out once, and a
genome's index into them is a number in mixed radix.  Those indices are a product of the genomes
with a matrix of weights, exact in single precision below 2^24, and are made for so many genomes at
a time that all of it stays in a core's cache.  Measured by ``python -m tools.bench.table``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import TableError
from profiles.space import SearchSpace

#: A fused table has so many values at most, 1 MB: a core's second cache holds it.  The five of a
#: once-for-all space take 4 MB together.
_MOST_FUSED = 1 << 17
#: Genomes at a time.
_CHUNK = 8192
#: Rows whose largest genes are found in one pass over contiguous bytes.
_FOLD = 64
#: Whole numbers below are exact in single precision.
_EXACT = 1 << 24

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stage:
    """Slots of which a gene keeps only the first ones.

    Args:
        slots: columns of the genome, in the order data flow through them.
        depth: column of the gene that says how many there are.
        depths: number of slots kept for each value of that gene.
    """

    slots: tuple[int, ...]
    depth: int
    depths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """Which genes are blocks, and which say what blocks there are and under what they run.

    Args:
        space: all genes; those of depth and context are slots of it like any other.
        stages: slots with a depth; all others are always there.
        context: column of the gene, such as the resolution, that decides which costs hold.
    """

    space: SearchSpace
    stages: tuple[Stage, ...] = ()
    context: int | None = None

    def __post_init__(self) -> None:
        sizes = [len(slot.choices) for slot in self.space.slots]
        blocks = [slot for stage in self.stages for slot in stage.slots]
        steering = [stage.depth for stage in self.stages]
        steering += [] if self.context is None else [self.context]
        if not set(blocks + steering) <= set(range(len(sizes))):
            raise TableError(f"a structure names a gene outside 0..{len(sizes) - 1}")
        if len(set(blocks + steering)) < len(blocks + steering):
            raise TableError("a gene of a structure has two roles", "give each gene one")
        for stage in self.stages:
            if len(stage.depths) != sizes[stage.depth]:
                name = self.space.slots[stage.depth].name
                raise TableError(f"{name} has {sizes[stage.depth]} choices, not one for each depth")

    @property
    def contexts(self) -> int:
        """How many values the context has."""
        return 1 if self.context is None else len(self.space.slots[self.context].choices)

    def blocks(self) -> list[int]:
        """Columns that are blocks, in order."""
        steering = {stage.depth for stage in self.stages} | {self.context}
        return [column for column in range(len(self.space.slots)) if column not in steering]

    def kept(self, column: int) -> tuple[int, NDArray[np.bool_]] | None:
        """The depth gene of a block and for which of its values the block is there."""
        for stage in self.stages:
            if column in stage.slots:
                return stage.depth, np.array(stage.depths) > stage.slots.index(column)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Genes that share one gather."""

    genes: tuple[int, ...]
    sums: Floats


class Scorer:
    """The sum of a genome's costs, for a matrix of genomes.

    Args:
        structure: what the genes are.
        costs: shape ``(contexts, genes, most choices)``; what a block adds to its network, 0 where
            it leaves its slot out, NaN where unknown; rows of depth and context are not looked at.
        base: shape ``(contexts,)``; what a network costs without any block.

    Raises:
        TableError: if a single slot has too many choices to be indexed.
    """

    def __init__(self, structure: Structure, costs: ArrayLike, base: ArrayLike) -> None:
        self._structure = structure
        self._costs = np.asarray(costs, dtype=np.float64)
        self._base = np.asarray(base, dtype=np.float64)
        self._sizes = structure.space.highest + 1
        expected = (structure.contexts, len(self._sizes), int(self._sizes.max()))
        if self._costs.shape != expected or self._base.shape != expected[:1]:
            raise TableError(f"costs of shape {self._costs.shape} do not fit {expected}")
        self._groups = [self._fuse(columns) for columns in self._grouped()]
        self._groups[0].sums[...] += self._spread(self._base, self._groups[0].genes)
        self._weights = np.zeros((len(self._groups), len(self._sizes)), dtype=np.float32)
        for row, group in enumerate(self._groups):
            steps = np.cumprod([1, *(int(self._sizes[gene]) for gene in group.genes[:0:-1])])
            self._weights[row, list(group.genes)] = steps[::-1]
        self._sums = [group.sums.ravel() for group in self._groups]
        self._has_holes = any(np.isnan(sums).any() for sums in self._sums)

    def score(self, genomes: ArrayLike) -> Floats:
        """The score of each genome, shape ``(n,)``.

        Args:
            genomes: integers, shape ``(n, genes)``; fastest as row-major ``uint8``.

        Raises:
            TableError: names the gene that is outside the space, or the choice that is unknown.
        """
        matrix = np.atleast_2d(np.asarray(genomes))
        highest = self._structure.space.highest
        if matrix.ndim != 2 or matrix.shape[1] != len(highest) or matrix.dtype.kind not in "ui":
            self._structure.space.check(matrix)
        matrix = np.ascontiguousarray(matrix)
        total = np.empty(len(matrix))
        chunk = min(_CHUNK, max(len(matrix), 1))
        genes = np.empty((chunk, len(highest)), dtype=np.float32)
        places = np.empty((len(self._sums), chunk), dtype=np.float32)
        indices = np.empty((len(self._sums), chunk), dtype=np.intp)
        part = np.empty(chunk)
        for start in range(0, len(matrix), chunk):
            rows = matrix[start : start + chunk]
            if not _is_within(rows, highest):
                self._structure.space.check(matrix)
            count = len(rows)
            np.copyto(genes[:count], rows, casting="unsafe")
            np.matmul(self._weights, genes[:count].T, out=places[:, :count])
            np.copyto(indices[:, :count], places[:, :count], casting="unsafe")
            found = total[start : start + count]
            # Every index is within its table now: clipping only spares numpy a second look.
            np.take(self._sums[0], indices[0, :count], out=found, mode="clip")
            for sums, index in zip(self._sums[1:], indices[1:, :count], strict=True):
                np.take(sums, index, out=part[:count], mode="clip")
                found += part[:count]
        if self._has_holes and np.isnan(total).any():
            self._refuse_hole(matrix[int(np.argmax(np.isnan(total)))])
        return total

    def _grouped(self) -> list[list[int]]:
        """Blocks that follow one another, together as long as their fused table is small."""
        groups: list[list[int]] = [[]]
        for column in self._structure.blocks():
            wider = [*groups[-1], column]
            if groups[-1] and math.prod(self._sizes[self._genes(wider)]) > _MOST_FUSED:
                groups.append([column])
            else:
                groups[-1] = wider
            if math.prod(self._sizes[self._genes(groups[-1])]) > _EXACT:
                name = self._structure.space.slots[column].name
                raise TableError(f"{name} has too many choices for a table", "split the slot")
        return groups

    def _genes(self, columns: Sequence[int]) -> list[int]:
        """All that decide these blocks' sum: context, depths, and the blocks' own."""
        depths = [kept[0] for column in columns if (kept := self._structure.kept(column))]
        context = self._structure.context
        return [*([] if context is None else [context]), *dict.fromkeys(depths), *columns]

    def _fuse(self, columns: Sequence[int]) -> _Group:
        genes = tuple(self._genes(columns))
        sums = np.zeros([int(self._sizes[gene]) for gene in genes] or [1])
        for column in columns:
            cost = self._costs[:, column, : self._sizes[column]]
            own = self._spread(cost, genes, column)
            if kept := self._structure.kept(column):
                own = np.where(self._spread(kept[1], genes, kept[0], context=False), own, 0.0)
            sums += own
        return _Group(genes, sums)

    def _spread(
        self,
        values: NDArray[np.generic],
        genes: Sequence[int],
        column: int | None = None,
        *,
        context: bool = True,
    ) -> NDArray[np.generic]:
        """Values by (context and) one gene, laid along the axes of all these genes."""
        shape = [1] * max(len(genes), 1)
        if context and self._structure.context is not None:
            shape[genes.index(self._structure.context)] = self._structure.contexts
        if column is not None:
            shape[genes.index(column)] = int(self._sizes[column])
        return values.reshape(shape)

    def _refuse_hole(self, genome: NDArray[np.integer]) -> None:
        """Raise for the first block of a genome whose cost is unknown."""
        slots = self._structure.space.slots
        context = self._structure.context
        under = 0 if context is None else int(genome[context])
        for column in self._structure.blocks():
            kept = self._structure.kept(column)
            if kept and not kept[1][genome[kept[0]]]:
                continue
            if np.isnan(self._costs[under, column, genome[column]]):
                where = "" if context is None else f" with {slots[context].choices[under]}"
                choice = slots[column].choices[genome[column]]
                raise TableError(
                    f"{slots[column].name}/{choice}{where} was not measured",
                    "measure it, choose from what the table has, or ask for interpolation",
                )
        raise TableError("the cost of a network without blocks was not measured", "measure it")


def _is_within(rows: NDArray[np.integer], highest: NDArray[np.int64]) -> bool:
    """Whether all genes of contiguous rows are in the space."""
    width = rows.shape[1]
    whole = len(rows) // _FOLD * _FOLD
    folded = rows[:whole].reshape(-1, _FOLD * width)
    for part in (folded, rows[whole:]):
        if not len(part):
            continue
        if (part.max(axis=0).reshape(-1, width) > highest).any():
            return False
        if rows.dtype.kind == "i" and part.min() < 0:
            return False
    return True
